"""What all painted widgets stand on: a palette, their own background, worked out once, and the keys
that tables have alike."""

from __future__ import annotations

from rich.style import Style
from textual.binding import Binding
from textual.strip import Strip
from textual.widget import Widget

from lbhost_tui.paint import Palette, Parts, strip

MOVES = (
    Binding("up,k", "move(-1)", "up", show=False),
    Binding("down,j", "move(1)", "down", show=False),
    Binding("pageup", "page(-1)", "page up", show=False),
    Binding("pagedown", "page(1)", "page down", show=False),
    Binding("home,g", "edge(-1)", "first", show=False),
    Binding("end,G", "edge(1)", "last", show=False),
)
"""The keys of a table whose lines are selected; it has the actions."""


def entitle(widget: Widget, title: str) -> None:
    """Put a title into a widget's upper line. Textual would draw it anew at every setting."""
    if (widget.border_title or "") != title:
        widget.border_title = title


class Painted(Widget):
    """A widget whose lines are `Parts`. Give it its palette with `set_palette` first."""

    def set_palette(self, palette: Palette) -> None:
        """Choose the colours."""
        self._palette = palette
        self._base: Style | None = None

    def notify_style_update(self) -> None:
        """The background may be another one now."""
        self._base = None
        super().notify_style_update()

    def paint(self, parts: Parts, *, selected: bool = False, stale: bool = False) -> Strip:
        """The parts as a line on this widget's background."""
        if self._base is None:
            # Textual walks all ancestors for this: 0.15 ms a call, as much as all the rest.
            self._base = self.rich_style
        return strip(parts, self._palette, self._base, selected=selected, stale=stale)
