"""What the speakers of a conversation said, put into the order that chat templates take. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from lbhost.errors import InvalidRequestError
from lbhost.gateway.api.generation import Turn


def merged(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Turns of one speaker that follow each other as one: many templates refuse two, and both
    dialects that use this define it so. Results of calls stay apart: each answers its own."""
    kept: list[Turn] = []
    for turn in turns:
        last = kept[-1] if kept else None
        if last is None or turn.role == "tool" or (last.role, last.name) != (turn.role, turn.name):
            kept.append(turn)
            continue
        kept[-1] = msgspec.structs.replace(
            last,
            text=_both(last.text, turn.text) or "",
            calls=last.calls + turn.calls,
            thought=_both(last.thought, turn.thought),
        )
    return tuple(kept)


def check_results(turns: Sequence[Turn], param: str) -> None:
    """Raises InvalidRequestError: the result of a call that nobody made before."""
    made: set[str] = set()
    for turn in turns:
        made.update(call.id for call in turn.calls)
        if turn.answers is not None and turn.answers not in made:
            raise InvalidRequestError(
                f"{param}: a result of the call {turn.answers[:64]!r}, which nobody made before it",
                param=param,
            )


def _both(first: str | None, second: str | None) -> str | None:
    return f"{first}\n\n{second}" if first and second else first or second
