"""HTTP: connections and their limits, access, routes."""
