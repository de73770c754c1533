"""What a request's answer is made of, piece by piece. Pure.

A Job hands deltas to the HTTP side; each dialect turns them into its own events.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import msgspec


class TextDelta(msgspec.Struct, frozen=True):
    """What one engine step added to an answer."""

    text: str
    """May be empty, and lag behind the tokens: half a character, what may become a stop string."""
    tokens: tuple[int, ...]


Delta: TypeAlias = TextDelta
"""All kinds that there are."""


def text_of(deltas: Iterable[Delta]) -> str:
    """Their text, as one."""
    return "".join([delta.text for delta in deltas])
