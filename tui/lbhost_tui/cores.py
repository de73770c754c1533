"""What each core does: a bar of its own work, others' and nothing, in the colour of whose work.

A core that is lent is drawn in its borrower's colour, and says so. Pure, but for the widget.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from lbhost.status import CoreStatus, Status
from lbhost_tui import format as fmt
from lbhost_tui.history import History
from lbhost_tui.line import Lines
from lbhost_tui.paint import Palette, Part, Parts, Role, fit, hue, width_of

LEAST = 16
"""Cells that a core's bar takes with its name; with less there is one cell a core."""
HISTORY_FROM = 44
"""Cells a core from which its last two minutes are drawn beside the bar."""
MOST_ROWS = 8
NAME = 8
"""" 12→3 " and the like: the core, and to which worker it is lent."""
OWN, OTHERS, IDLE = "━", "╍", "─"


def own(core: CoreStatus) -> float | None:
    """What lbhost's workers use of it."""
    if core.idle is None or core.others is None:
        return None
    return max(0.0, min(1.0, 1.0 - core.idle - core.others))


def colour(core: CoreStatus) -> Role:
    """Of the worker that computes there: the borrower's, else the owner's."""
    worker = core.worker if core.lent_to is None else core.lent_to
    return Role.BAR if worker is None else hue(worker)


def bar(core: CoreStatus, width: int) -> Parts:
    """Own work, others', idle. They are told apart without colours, too."""
    mine = own(core)
    if mine is None or core.others is None:
        return ((" " * width, Role.TEXT),)
    first = fmt.filled(mine, width)
    second = min(fmt.filled(core.others, width), width - first)
    parts: list[Part] = [(OWN * first, colour(core)), (OTHERS * second, Role.WARN)]
    parts.append((IDLE * (width - first - second), Role.TRACK))
    return tuple(part for part in parts if part[0])


def name(core: CoreStatus, word: str = "") -> Parts:
    """The core's number, after a word, or who has it on loan."""
    if core.lent_to is not None:
        return ((f"{core.cpu}", Role.STRONG), (f"→w{core.lent_to}", hue(core.lent_to)))
    number = Role.DIM if core.worker is None else Role.TEXT
    return ((word, Role.DIM), (f"{core.cpu}", number))


def rows(count: int, width: int) -> int:
    """Lines that so many cores take."""
    if not count:
        return 0
    return min(MOST_ROWS, -(-count // _per_row(count, width)))


def _per_row(count: int, width: int) -> int:
    """Cores in a line: as many as have room for a bar, unless that takes too many lines."""
    with_bars = max(1, min(count, (width - 1) // LEAST))
    if -(-count // with_bars) <= MOST_ROWS:
        return with_bars
    return max(8, (width - NAME) * 8 // 9 // 8 * 8)


def lines(
    cores: Sequence[CoreStatus], histories: dict[int, Histories], now: float, width: int
) -> list[Parts]:
    """The strip for this width."""
    count = len(cores)
    if not count:
        return []
    per_row = _per_row(count, width)
    if per_row * LEAST > width:
        return _dense(cores, per_row)
    each = (width - 1) // min(count, per_row)
    out: list[Parts] = []
    for start in range(0, count, per_row):
        parts: list[Part] = []
        for core in cores[start : start + per_row]:
            parts += _core(core, histories.get(core.cpu), now, each)
        out.append(tuple(parts))
    return out


def _core(core: CoreStatus, history: Histories | None, now: float, each: int) -> Parts:
    past = (each - 20) // 2 if each >= HISTORY_FROM and history is not None else 0
    parts: list[Part] = [
        (" ", Role.TEXT),
        *fit(name(core, "cpu "), NAME - 2, right=True),
        (" ", Role.TEXT),
    ]
    room = each - width_of(tuple(parts)) - 5 - (past + 1 if past else 0)
    parts += bar(core, max(1, room))
    busy = None if core.idle is None else 1.0 - core.idle
    parts.append((fmt.percent(busy).rjust(5), Role.DIM))
    if past and history is not None:
        parts.append((" ", Role.TEXT))
        parts += history.parts(now, past, colour(core))
    return fit(tuple(parts), each)


def _dense(cores: Sequence[CoreStatus], per_row: int) -> list[Parts]:
    """A cell a core, in groups of eight: how busy, in the colour of who is most of it."""
    out: list[Parts] = []
    for start in range(0, len(cores), per_row):
        parts: list[Part] = [(f"{cores[start].cpu:>6} ", Role.DIM)]
        for at, core in enumerate(cores[start : start + per_row]):
            if at and at % 8 == 0:
                parts.append((" ", Role.TEXT))
            parts.append(_cell(core))
        out.append(tuple(parts))
    return out


def _cell(core: CoreStatus) -> Part:
    if core.idle is None:
        return (fmt.UNKNOWN, Role.DIM)
    mine = own(core) or 0.0
    role = Role.WARN if (core.others or 0.0) > mine else colour(core)
    sign = fmt.level(1.0 - core.idle)
    return (sign, role) if sign.strip() else ("·", Role.TRACK)


class Histories:
    """What a core did in the last two minutes."""

    def __init__(self) -> None:
        self._own, self._others = History(), History()

    def add(self, now: float, core: CoreStatus) -> None:
        """Note a reading."""
        mine = own(core)
        if mine is not None and core.others is not None:
            self._own.add(now, mine)
            self._others.add(now, core.others)

    def parts(self, now: float, width: int, role: Role) -> Parts:
        """How busy it was, each cell in the colour of whose work was most of it."""
        mine, others = self._own.cells(now, width), self._others.cells(now, width)
        out: list[Part] = []
        for ours, theirs in zip(mine, others, strict=True):
            busy = None if ours is None else ours + (theirs or 0.0)
            whose = Role.WARN if (theirs or 0.0) > (ours or 0.0) else role
            out.append((fmt.sparkline([busy], 1.0), whose))
        return tuple(out)


class CoreStrip(Lines):
    """The widget."""

    def __init__(self, palette: Palette) -> None:
        super().__init__(palette, name="cores")
        self._histories: defaultdict[int, Histories] = defaultdict(Histories)

    def note(self, status: Status, now: float) -> None:
        """Remember what the cores do, shown or not."""
        for core in status.cores:
            self._histories[core.cpu].add(now, core)

    def draw(self, status: Status | None, now: float, *, stale: bool) -> None:
        """Show the cores."""
        if self.display and self.size.width > 0:
            cores = () if status is None else status.cores
            made = lines(cores, self._histories, now, self.size.width)
            self.show(made[:MOST_ROWS], stale=stale)
