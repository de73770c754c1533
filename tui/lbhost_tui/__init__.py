"""lbhost's terminal dashboard: Textual, speaking only the admin API."""
