"""What follows from the machine: where workers go, and what is left to each. Pure."""
