"""`lbhost doctor`: what to tell a person about this box."""
