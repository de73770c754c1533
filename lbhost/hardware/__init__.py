"""What the box offers: topology and live sensor readings."""
