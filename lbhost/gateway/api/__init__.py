"""The dialects that clients speak: from a body to a neutral request, and back to their events."""
