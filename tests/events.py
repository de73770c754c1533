"""Reads streams of named server-sent events."""

from __future__ import annotations

import json
from typing import Any


def named_events(stream: bytes) -> list[tuple[str, Any]]:
    """Name and payload of each; comments are left out.

    Raises:
        ValueError: an event that is not of this form.
    """
    found: list[tuple[str, Any]] = []
    for block in stream.decode().split("\n\n"):
        if not block or block.startswith(":"):
            continue
        first, second = block.split("\n")
        if not (first.startswith("event: ") and second.startswith("data: ")):
            raise ValueError(f"not a named event: {block!r}")
        found.append((first[7:], json.loads(second[6:])))
    return found
