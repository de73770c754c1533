"""The keys, at the foot of the screen: those of the pane that has the focus."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from textual import events

from lbhost_tui.line import Lines
from lbhost_tui.orders import ORDERS
from lbhost_tui.paint import Palette, Parts, Role, width_of


class Context(enum.Enum):
    """Whose keys are shown."""

    WORKERS = "workers"
    REQUESTS = "requests"
    LOG = "log"


Key = tuple[str, str, str, str]
"""Key, short label, long label, and the app's action that a click on it runs."""

_SHARED: tuple[Key, ...] = (
    ("/", "filter", "filter", "filter"),
    (":", "command", "command", "command_palette"),
    ("␣", "pause", "pause", "pause"),
    ("?", "help", "help", "help"),
    ("q", "quit", "quit", "quit"),
)
KEYS: dict[Context, tuple[Key, ...]] = {
    Context.WORKERS: (
        ("d", "drain", "drain", "drain"),
        ("u", "resume", "resume", "resume"),
        ("r", "restart", "restart", "restart"),
        ("R", "all", "rolling restart", "restart_all"),
        ("+-", "scale", "scale", "scale_up"),
        ("t", "requests", "requests", "requests"),
        ("⏎", "more", "details", "details"),
        ("l", "log", "log", "log"),
        *_SHARED,
    ),
    Context.REQUESTS: (
        ("x", "cancel it", "cancel this request", "cancel_request"),
        ("s", "sort", "sort by the next column", "sort_requests"),
        ("S", "reverse", "reverse", "turn_requests"),
        ("t", "close", "close", "requests"),
        *_SHARED,
    ),
    Context.LOG: (
        ("L", "one worker", "one worker alone", "worker_log"),
        ("y", "copy", "copy", "copy_log"),
        ("w", "save", "save", "save_log"),
        ("l", "close", "close", "log"),
        *_SHARED,
    ),
}

GIVE_WAY = (
    ":",
    "␣",
    "R",
    "⏎",
    "+-",
    "l",
    "S",
    "/",
    "L",
    "r",
    "u",
    "w",
    "d",
    "y",
    "s",
    "t",
    "x",
    "q",
)
"""Which keys a narrow terminal leaves out first; help, which names all, is never left out."""


def keys(
    width: int, context: Context = Context.WORKERS, *, readonly: bool = False
) -> tuple[Parts, list[tuple[int, int, str]]]:
    """The line, and where each key stands in it: (from, to, action)."""
    offered = [key for key in KEYS[context] if not (readonly and key[3] in ORDERS)]
    tries = [(2, 3, 0), (2, 2, 0), (1, 2, 0), (1, 1, 0)]
    tries += [(1, 1, gone) for gone in range(1, len(GIVE_WAY) + 1)]
    for labels, gap, gone in tries:
        kept = [key for key in offered if key[0] not in GIVE_WAY[:gone]]
        parts, spots, end = _line(kept, labels, gap)
        if end <= width:
            break
    return parts, spots


def _line(
    kept: Sequence[Key], labels: int, gap: int
) -> tuple[Parts, list[tuple[int, int, str]], int]:
    parts: list[tuple[str, Role]] = [(" ", Role.TEXT)]
    spots: list[tuple[int, int, str]] = []
    at = 1
    for key in kept:
        if spots:
            parts.append((" " * gap, Role.TEXT))
            at += gap
        parts += [(key[0], Role.KEY), (" " + key[labels], Role.DIM)]
        end = at + width_of(tuple(parts[-2:]))
        spots.append((at, end, key[3]))
        at = end
    return tuple(parts), spots, at


class KeyBar(Lines):
    """One line of keys; a click works like the key."""

    def __init__(self, palette: Palette, *, readonly: bool = False) -> None:
        super().__init__(palette, name="keys")
        self._readonly = readonly
        self._pane = Context.WORKERS
        self._spots: list[tuple[int, int, str]] = []

    def turn(self, context: Context) -> None:
        """Show another pane's keys."""
        self._pane = context
        self._draw(self.size.width)

    def on_resize(self, event: events.Resize) -> None:
        """Use the width."""
        self._draw(event.size.width)

    def _draw(self, width: int) -> None:
        line, self._spots = keys(width, self._pane, readonly=self._readonly)
        self.show([line])

    async def on_click(self, event: events.Click) -> None:
        """Run the key's action."""
        for start, end, action in self._spots:
            if start <= event.x < end:
                await self.run_action(f"app.{action}")
