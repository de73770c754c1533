"""From messages or text to prompt tokens."""
