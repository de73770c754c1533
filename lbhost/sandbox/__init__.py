"""What a child process may still do: less than the user who started lbhost may (SECURITY.md)."""
