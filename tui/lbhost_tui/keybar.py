"""The keys, at the foot of the screen."""

from __future__ import annotations

from textual import events

from lbhost_tui.line import Lines
from lbhost_tui.paint import Palette, Parts, Role, width_of

KEYS: tuple[tuple[str, str, str, str], ...] = (
    ("d", "drain", "drain", "drain"),
    ("u", "resume", "resume", "resume"),
    ("r", "restart", "restart", "restart"),
    ("R", "all", "rolling restart", "restart_all"),
    ("+-", "scale", "scale", "scale_up"),
    ("⏎", "more", "details", "details"),
    ("l", "log", "log", "log"),
    ("/", "filter", "filter", "filter"),
    ("?", "help", "help", "help"),
    ("q", "quit", "quit", "quit"),
)
"""Key, short label, long label, and the app's action that a click on it runs."""

GIVE_WAY = ("+-", "l", "R", "/", "r", "⏎", "u", "d", "q")
"""Which keys a narrow terminal leaves out first; help, which names all, is never left out."""


def keys(width: int) -> tuple[Parts, list[tuple[int, int, str]]]:
    """The line, and where each key stands in it: (from, to, action)."""
    tries = [(2, 3, 0), (2, 2, 0), (1, 2, 0), (1, 1, 0)]
    tries += [(1, 1, gone) for gone in range(1, len(GIVE_WAY) + 1)]
    for labels, gap, gone in tries:
        parts: list[tuple[str, Role]] = [(" ", Role.TEXT)]
        spots: list[tuple[int, int, str]] = []
        at = 1
        for key in KEYS:
            if key[0] in GIVE_WAY[:gone]:
                continue
            if spots:
                parts.append((" " * gap, Role.TEXT))
                at += gap
            parts += [(key[0], Role.KEY), (" " + key[labels], Role.DIM)]
            end = at + width_of(tuple(parts[-2:]))
            spots.append((at, end, key[3]))
            at = end
        if at <= width:
            break
    return tuple(parts), spots


class KeyBar(Lines):
    """One line of keys; a click works like the key."""

    def __init__(self, palette: Palette) -> None:
        super().__init__(palette, name="keys")
        self._spots: list[tuple[int, int, str]] = []

    def on_resize(self, event: events.Resize) -> None:
        """Use the width."""
        line, self._spots = keys(event.size.width)
        self.show([line])

    async def on_click(self, event: events.Click) -> None:
        """Run the key's action."""
        for start, end, action in self._spots:
            if start <= event.x < end:
                await self.run_action(f"app.{action}")
