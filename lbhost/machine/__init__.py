"""What the box is, and what its sensors read."""
