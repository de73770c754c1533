"""What lbhost survives: a real server under load, broken on purpose; see scripts/chaos."""
