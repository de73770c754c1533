"""Calls of the client's functions: how models write them, and how they are read. Pure."""
