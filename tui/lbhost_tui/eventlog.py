"""The event log: what happened, newest at the end, wrapped to the width. Of one worker alone: its
events, and between them what its processes have written.
"""

from __future__ import annotations

import textwrap
import time
from collections import deque
from collections.abc import Iterable
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from lbhost.status import Event, LogLine
from lbhost_tui import format as fmt
from lbhost_tui.filter import Filter
from lbhost_tui.fold import fold, without_name
from lbhost_tui.paint import Palette, Part, Parts, Role, fit
from lbhost_tui.surface import Painted

LIMIT = 1000
"""Events that are kept: as many as the server keeps."""

_SIGNS = {
    "warning": ("!", Role.WARN),
    "error": ("✕", Role.BAD),
    "critical": ("✕", Role.BAD),
}
_LEVELS = ("debug", "info", *_SIGNS)
_WHO = 10


def lines_of(event: Event, width: int) -> list[Parts]:
    """One event as lines of `width` cells: time, sign, who, message."""
    sign, role = _SIGNS.get(event.level, (" ", Role.TEXT))
    who = "" if event.worker is None else f"worker {event.worker}"
    head: tuple[Part, ...] = (
        (f" {fmt.clock(event.time)} ", Role.DIM),
        (f"{sign} ", role),
        (who.ljust(_WHO), Role.DIM),
    )
    message = printable(event.message if event.worker is None else without_name(event.message))
    return _wrapped(head, message, role, width)


def log_lines_of(line: LogLine, width: int) -> list[Parts]:
    """One line of a worker's log, the same way."""
    sign, role = _SIGNS.get(line.level, (" ", Role.TEXT if line.level else Role.WARN))
    head: tuple[Part, ...] = (
        (f" {fmt.clock(line.time)} ", Role.DIM),
        (f"{sign} ", role),
        ((line.level if line.level in _LEVELS else "output").ljust(_WHO), Role.DIM),
    )
    return _wrapped(
        head, printable(line.message), Role.DIM if line.level == "debug" else role, width
    )


def _lines_of(one: Event | LogLine, width: int) -> list[Parts]:
    return log_lines_of(one, width) if isinstance(one, LogLine) else lines_of(one, width)


def _wrapped(head: tuple[Part, ...], message: str, role: Role, width: int) -> list[Parts]:
    indent = 12 + _WHO
    wrapped = textwrap.wrap(message, max(16, width - indent)) or [""]
    first: Parts = (*head, (wrapped[0], role))
    return [first, *(((" " * indent, Role.TEXT), (more, role)) for more in wrapped[1:])]


def _plain(event: Event | LogLine, worker: int | None) -> str:
    at = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(event.time))
    if isinstance(event, LogLine):
        return f"{at} {event.level or 'output'} worker {worker} {printable(event.message)}"
    return f"{at} {event.level} {event.kind} {printable(event.message)}"


def printable(message: str) -> str:
    """Whatever a message holds, it must not move the cursor."""
    return "".join(c if c.isprintable() else " " for c in message)


class Wrapping:
    """Lines of what is shown. Each is wrapped once, for that costs most: all but the newest stay as
    they are when a worker writes a lot."""

    def __init__(self) -> None:
        self._width = 0
        self._parts: dict[Event | LogLine, list[Parts]] = {}
        """Of each that was shown last, at this width."""

    def lines(self, shown: Iterable[Event | LogLine], width: int) -> list[Parts]:
        """All of them as lines of `width` cells."""
        before = self._parts if width == self._width else {}
        self._width = width
        self._parts = {one: before.get(one) or _lines_of(one, width) for one in shown}
        return [line for lines in self._parts.values() for line in lines]


class EventLog(ScrollView, Painted, can_focus=True):
    """The pane. It follows the newest event unless scrolled up."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.close_log", "close", show=False),
        Binding("y", "app.copy_log", "copy", show=False),
        Binding("w", "app.save_log", "save", show=False),
    ]

    def __init__(self, palette: Palette) -> None:
        super().__init__(id="log")
        self.set_palette(palette)
        self._events: deque[Event] = deque(maxlen=LIMIT)
        self._written: deque[LogLine] = deque(maxlen=LIMIT)
        """By the worker that is shown alone."""
        self._filter = Filter()
        self.worker: int | None = None
        """Whose events alone are shown; None: everybody's."""
        self._lines: list[Parts] = []
        self._wrapping = Wrapping()
        self._width = 0
        self._follow = True
        """Whether new events scroll the pane: so it is until the user scrolls up."""

    @property
    def text(self) -> str:
        """What the pane holds, without colours."""
        return "\n".join("".join(text for text, _ in line) for line in self._lines)

    @property
    def plain(self) -> str:
        """What is shown, a line an event, for files and other programs."""
        return "".join(f"{_plain(event, self.worker)}\n" for event in self._shown())

    @property
    def name_for_files(self) -> str:
        """What a file with all that is called."""
        return "lbhost-events" if self.worker is None else f"lbhost-worker-{self.worker}"

    def only(self, worker: int | None) -> None:
        """Show only this worker's events, and what it has written; None: everybody's events."""
        if worker != self.worker:
            self._written.clear()
        self.worker = worker
        self._rebuild()

    def _shown(self) -> list[Event | LogLine]:
        events: list[Event | LogLine] = [
            event
            for event in fold(self._events)
            if self._filter.event(event) and self.worker in (None, event.worker)
        ]
        written = [line for line in self._written if self._filter.log_line(line)]
        return sorted([*events, *written], key=lambda one: one.time) if written else events

    def add_written(self, worker: int, lines: Iterable[LogLine], *, first: bool) -> None:
        """Append what a worker has written, oldest first.

        Args:
            first: it is all that there is: forget what was there.
        """
        if worker != self.worker:
            return
        if first:
            self._written.clear()
        self._written.extend(lines)
        self._rebuild()

    def add(self, events: Iterable[Event]) -> None:
        """Append events, oldest first."""
        self._events.extend(events)
        self._rebuild()

    def filter(self, filter_: Filter) -> None:
        """Show only what the filter lets through."""
        self._filter = filter_
        self._rebuild()

    def on_resize(self) -> None:
        """Wrap anew."""
        if self.size.width != self._width:
            self._width = self.size.width
            self._rebuild()
        self._keep_up()

    def _rebuild(self) -> None:
        """A new event may change earlier lines: it can end a chain that is folded then."""
        if not self._width:
            return
        self._lines = self._wrapping.lines(self._shown(), self._width - 1)
        self.virtual_size = Size(self._width, len(self._lines))
        self._keep_up()
        self.refresh()

    def _keep_up(self) -> None:
        if self._follow:
            self.scroll_end(animate=False)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """The user scrolled, or the pane followed."""
        super().watch_scroll_y(old_value, new_value)
        if round(new_value) >= self.max_scroll_y:
            self._follow = True
        elif new_value < old_value:  # where it has grown meanwhile, the end is further down
            self._follow = False

    def render_line(self, y: int) -> Strip:
        """One line, for Textual."""
        width = self.content_size.width
        at = y + self.scroll_offset.y
        if at < len(self._lines):
            return self.paint(fit(self._lines[at], width))
        if at == 0:
            text = " no events yet"
            if self._events or self._written:
                alone = "" if self.worker is None else f" of worker {self.worker}"
                text = f" nothing{alone} matches" if self._filter else f" nothing{alone} yet"
            return self.paint(fit(((text, Role.DIM),), width))
        return self.paint(fit((), width))
