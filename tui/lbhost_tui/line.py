"""A widget of one or more painted lines that redraws only the lines that changed."""

from __future__ import annotations

from collections.abc import Sequence

from textual.geometry import Region
from textual.strip import Strip

from lbhost_tui.paint import Palette, Parts, fit
from lbhost_tui.surface import Painted


class Lines(Painted):
    """Shows `Parts`, one per line, cut or padded to its width."""

    def __init__(
        self, palette: Palette, *, name: str | None = None, classes: str | None = None
    ) -> None:
        super().__init__(id=name, classes=classes)
        self.set_palette(palette)
        self._lines: list[Parts] = []
        self._stale = False

    @property
    def text(self) -> str:
        """What is shown, without colours."""
        return "\n".join("".join(text for text, _ in line) for line in self._lines)

    def show(self, lines: Sequence[Parts], *, stale: bool = False) -> None:
        """Show these lines; only changed ones are drawn again."""
        old, self._lines = self._lines, list(lines)
        if stale != self._stale or len(old) > len(lines):
            self._stale = stale
            self.refresh()
            return
        width = self.size.width
        for y, line in enumerate(self._lines):
            if y >= len(old) or old[y] != line:
                self.refresh(Region(0, y, width, 1))

    def render_line(self, y: int) -> Strip:
        """One line, for Textual."""
        width = self.content_size.width
        if y >= len(self._lines):
            return self.paint(fit((), width))
        return self.paint(fit(self._lines[y], width), stale=self._stale)
