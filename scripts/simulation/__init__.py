"""lbhost's own scheduling over virtual workers in simulated time. See `scripts/simulate --help`."""
