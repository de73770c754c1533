"""What the speakers of a conversation said, put into the order that chat templates take. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from lbhost.gateway.api.generation import Turn


def merged(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Turns of one speaker that follow each other as one: many templates refuse two, and both
    dialects that use this define it so."""
    kept: list[Turn] = []
    for turn in turns:
        if kept and (kept[-1].role, kept[-1].name) == (turn.role, turn.name):
            kept[-1] = Turn(turn.role, f"{kept[-1].text}\n\n{turn.text}", turn.name)
        else:
            kept.append(turn)
    return tuple(kept)
