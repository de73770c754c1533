"""What `lbhost requests` shows: a line a request. Pure."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lbhost.report import UNKNOWN, duration
from lbhost.status import Requests, RequestStatus

_STYLES = {"queued": "yellow", "prefill": "cyan", "decode": "green"}
_COLUMNS = (
    ("REQUEST", "left"),
    ("MODEL", "left"),
    ("KEY", "left"),
    ("TIER", "left"),
    ("STATE", "left"),
    ("ON", "left"),
    ("PROMPT", "right"),
    ("OUT", "right"),
    ("TOK/S", "right"),
    ("AGE", "right"),
    ("STARTS", "right"),
    ("ENDS", "right"),
)
_GIVE_WAY = (("TIER", 116), ("MODEL", 104), ("KEY", 88))
"""What a narrower terminal leaves out."""


def view(found: Requests, width: int) -> Group:
    """All of them, the oldest first, without the less telling columns where it is narrow."""
    states = [request.state for request in found.requests]
    counts = [f"{states.count(name)} in {name}" for name in ("prefill", "decode")]
    lines: list[Text | Table] = [
        Text(
            ", ".join(
                [
                    f"{found.total} request{'' if found.total == 1 else 's'}",
                    f"{states.count('queued')} queued",
                    *counts,
                ]
            )
        )
    ]
    if found.requests:
        gone = {name for name, least in _GIVE_WAY if width < least}
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="")
        for name, side in _COLUMNS:
            if name not in gone:
                table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
        for request in found.requests:
            cells = zip(_COLUMNS, _cells(request), strict=True)
            table.add_row(*(cell for (name, _), cell in cells if name not in gone))
        lines.append(table)
    if found.total > len(found.requests):
        lines.append(Text(f"and {found.total - len(found.requests)} more"))
    return Group(*lines)


def _cells(request: RequestStatus) -> tuple[Text, ...]:
    more = "" if request.answers == 1 else f" x{request.answers}"
    speed = request.tokens_s
    return (
        Text(request.id + more),
        Text(request.model[:24]),
        Text(request.key[:16]),
        Text(request.tier),
        Text(request.state, _STYLES.get(request.state, "")),
        Text(",".join(map(str, request.workers)) or UNKNOWN),
        Text(f"{request.prompt_done}/{request.prompt_tokens}"),
        Text(f"{request.tokens_out}/{request.max_tokens}"),
        Text(UNKNOWN if speed is None else f"{speed:.1f}"),
        Text(_seconds(request.age_s)),
        Text(_seconds(request.starts_in_s)),
        Text(_seconds(request.ends_in_s)),
    )


def _seconds(value: float | None) -> str:
    """ "0.4s", "12s", "3m12s"."""
    if value is None:
        return UNKNOWN
    return f"{value:.1f}s" if value < 9.95 else duration(value)
