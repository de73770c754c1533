"""The requests table's columns, its order, and what each line says. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lbhost.status import RequestStatus
from lbhost_tui import format as fmt
from lbhost_tui.columns import bar
from lbhost_tui.paint import Parts, Role, fit, hue, width_of

STATES: Mapping[str, tuple[str, Role]] = {
    "queued": ("◌", Role.WARN),
    "prefill": ("◐", Role.BUSY),
    "decode": ("●", Role.GOOD),
}


@dataclass(frozen=True)
class RequestColumn:
    """One column. `rank` says which go first when there is no room (highest first)."""

    key: str
    title: str
    rank: int
    least: int
    most: int
    cell: Callable[[RequestStatus, int], Parts]
    right: bool = True


def _state(request: RequestStatus, width: int) -> Parts:
    sign, role = STATES.get(request.state, ("·", Role.TEXT))
    return ((f"{sign} {request.state}", role),)


def _workers(request: RequestStatus, width: int) -> Parts:
    if not request.workers:
        return ((fmt.UNKNOWN, Role.DIM),)
    return ((fmt.cpus(request.workers), hue(request.workers[0])),)


def _prompt(request: RequestStatus, width: int) -> Parts:
    """How much of the prompt is computed, with a bar where there is room."""
    total, done = request.prompt_tokens, request.prompt_done
    whole = done >= total
    text = fmt.number(total) if whole else f"{fmt.number(done)}/{fmt.number(total)}"
    role = Role.DIM if whole else Role.TEXT
    if width < 19 or whole:
        return ((text, role),)
    return (*bar(done / total, width - 12, Role.BAR), (text.rjust(12), role))


def _output(request: RequestStatus, width: int) -> Parts:
    out = Role.STRONG if request.tokens_out else Role.DIM
    return ((fmt.number(request.tokens_out), out), (f"/{fmt.number(request.max_tokens)}", Role.DIM))


def _speed(request: RequestStatus, width: int) -> Parts:
    role = Role.TEXT if request.tokens_s else Role.DIM
    speed = None if request.tokens_s is None else round(request.tokens_s, 1)
    return ((fmt.number(speed), role),)


def _predicted(request: RequestStatus, width: int) -> Parts:
    """When it starts while it waits, and when it ends from then on."""
    if request.starts_in_s is not None:
        return (("starts ", Role.DIM), (fmt.latency(request.starts_in_s), Role.WARN))
    if request.ends_in_s is None:
        return ((fmt.UNKNOWN, Role.DIM),)
    return (("ends ", Role.DIM), (fmt.latency(request.ends_in_s), Role.TEXT))


def _name(request: RequestStatus, width: int) -> Parts:
    more = "" if request.answers == 1 else f" x{request.answers}"
    name: Parts = ((request.id, Role.STRONG),)
    room = width - len(more)
    return (*(name if width_of(name) <= room else fit(name, room)), (more, Role.DIM))


def _or_none(text: str) -> Parts:
    return ((text, Role.TEXT),) if text else ((fmt.UNKNOWN, Role.DIM),)


COLUMNS: tuple[RequestColumn, ...] = (
    RequestColumn("id", "request", 0, 12, 28, _name, right=False),
    RequestColumn("model", "model", 8, 10, 24, lambda r, w: _or_none(r.model), right=False),
    RequestColumn("key", "key", 7, 8, 16, lambda r, w: _or_none(r.key), right=False),
    RequestColumn("tier", "tier", 9, 8, 8, lambda r, w: ((r.tier, Role.DIM),), right=False),
    RequestColumn("state", "state", 1, 9, 9, _state, right=False),
    RequestColumn("on", "on", 5, 3, 5, _workers),
    RequestColumn("prompt", "prompt", 4, 11, 30, _prompt),
    RequestColumn("out", "out", 3, 9, 9, _output),
    RequestColumn("speed", "tok/s", 6, 5, 5, _speed),
    RequestColumn("age", "age", 2, 5, 5, lambda r, w: ((fmt.latency(r.age_s), Role.TEXT),)),
    RequestColumn("predicted", "predicted", 2, 12, 12, _predicted),
)


@dataclass(frozen=True)
class PlacedColumn:
    """A column that is shown, in so many cells after its gap."""

    column: RequestColumn
    width: int


GAP = 1


def place(width: int) -> tuple[PlacedColumn, ...]:
    """The columns that fit, by rank, the wide ones grown to use up what is left."""
    left = width
    chosen: set[str] = set()
    for column in sorted(COLUMNS, key=lambda c: c.rank):
        if column.least + GAP <= left:
            chosen.add(column.key)
            left -= column.least + GAP
    widths = {column.key: column.least for column in COLUMNS if column.key in chosen}
    for key in ("id", "prompt", "key", "model", "on"):
        if key in widths:
            most = next(column.most for column in COLUMNS if column.key == key)
            more = min(left, most - widths[key])
            widths[key] += more
            left -= more
    return tuple(PlacedColumn(c, widths[c.key]) for c in COLUMNS if c.key in chosen)


def column_at(placed: Sequence[PlacedColumn], x: int) -> str | None:
    """The key of the column that the cell is of."""
    end = 0
    for one in placed:
        end += GAP + one.width
        if x < end:
            return one.column.key
    return None


def line(request: RequestStatus, placed: Sequence[PlacedColumn]) -> Parts:
    """One request as a line of the table."""
    parts: list[tuple[str, Role]] = []
    for one in placed:
        parts.append((" " * GAP, Role.TEXT))
        parts += fit(one.column.cell(request, one.width), one.width, right=one.column.right)
    return tuple(parts)


def titles(placed: Sequence[PlacedColumn], sorting: Sorting) -> Parts:
    """The line above; an arrow marks the column by which they are sorted."""
    parts: list[tuple[str, Role]] = []
    for one in placed:
        title = one.column.title
        here = one.column.key == sorting.by
        if here:
            title += "↑" if sorting.reverse else "↓"
        parts.append((" " * GAP, Role.TEXT))
        role = Role.KEY if here else Role.TITLE
        parts += fit(((title, role),), one.width, right=one.column.right)
    return tuple(parts)


_BY: Mapping[str, Callable[[RequestStatus], tuple[float | str, ...]]] = {
    "age": lambda r: (-r.age_s,),
    "predicted": lambda r: (_last_if_unknown(r.starts_in_s, r.ends_in_s),),
    "state": lambda r: (
        (("decode", "prefill", "queued").index(r.state), -r.age_s)
        if r.state in STATES
        else (9, -r.age_s)
    ),
    "speed": lambda r: (-(r.tokens_s or 0.0), -r.age_s),
    "prompt": lambda r: (-r.prompt_tokens, -r.age_s),
    "out": lambda r: (-r.tokens_out, -r.age_s),
    "on": lambda r: (min(r.workers, default=math.inf), -r.age_s),
    "key": lambda r: (r.key, -r.age_s),
    "tier": lambda r: (r.tier, -r.age_s),
    "model": lambda r: (r.model, -r.age_s),
    "id": lambda r: (r.id,),
}
SORTABLE = tuple(_BY)
"""How each order looks at a request; the first one is that at the start."""


def _last_if_unknown(starts_in_s: float | None, ends_in_s: float | None) -> float:
    """Those that run by their end, then those that wait by their start, as the table says it."""
    if starts_in_s is not None:
        return 1e6 + starts_in_s
    return 1e9 if ends_in_s is None else ends_in_s


@dataclass(frozen=True)
class Sorting:
    """By what the table is sorted."""

    by: str = "age"
    reverse: bool = False

    def next(self) -> Sorting:
        """The next column's turn."""
        names = list(_BY)
        return Sorting(names[(names.index(self.by) + 1) % len(names)])

    def by_column(self, key: str) -> Sorting:
        """This column's turn; the other way round if it is that already."""
        return self.turned() if key == self.by else Sorting(key)

    def turned(self) -> Sorting:
        """The same the other way round."""
        return Sorting(self.by, not self.reverse)

    def sorted(self, requests: Sequence[RequestStatus]) -> list[RequestStatus]:
        """The requests in this order; equal ones by their ids, so that lines do not jump."""
        key = _BY[self.by]
        return sorted(requests, key=lambda r: (*key(r), r.id), reverse=self.reverse)


def summary(requests: Sequence[RequestStatus], shown: int, total: int) -> str:
    """The pane's title: how many are where."""
    states = [request.state for request in requests]
    parts = [f"{total} request{'' if total == 1 else 's'}"]
    parts += [f"{states.count(name)} {name}" for name in STATES if name in states]
    if shown < total:
        parts.append(f"{shown} shown")
    return " · ".join(parts)
