"""What all painted widgets stand on: a palette, and their own background, worked out once."""

from __future__ import annotations

from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from lbhost_tui.paint import Palette, Parts, strip


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
