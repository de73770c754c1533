"""The table: one line a worker.

Every column is a widget of its own, because Textual sends a widget's changed lines: that way
only cells that changed cross the wire, and a screen over SSH stays cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from lbhost_tui.columns import COLUMNS, Column, Placed, Row, place, place_columns
from lbhost_tui.line import Lines
from lbhost_tui.messages import DetailsWanted, WorkerSelected
from lbhost_tui.models import Heading
from lbhost_tui.paint import Palette, Parts, Role, crop, fit
from lbhost_tui.surface import MOVES, Painted

Line: TypeAlias = Row | Heading

MARGIN = 1
"""Blank cells at the right, where a scrollbar appears when there is one."""


class ColumnView(Painted):
    """One column's cells, with the gap to its left."""

    @dataclass
    class Clicked(Message):
        """A line of the table was clicked, once or twice."""

        line: int
        twice: bool

    def __init__(self, column: Column, palette: Palette) -> None:
        super().__init__(id=f"column-{column.key}", classes="column")
        self.set_palette(palette)
        self.column = column
        self._placed: Placed | None = None
        self._rows: Sequence[Line] = ()
        self._drawn: dict[int, Parts] = {}
        """What stands in the lines that were in sight at the last `show`."""
        self._selected = -1
        self._table_width = 0
        self._stale = False

    def place(self, placed: Placed | None) -> None:
        """Take a place in the table, or none."""
        self._placed = placed
        self.display = placed is not None
        if placed is not None:
            self.styles.width = placed.width + placed.gap

    def show(
        self, rows: Sequence[Line], window: range, selected: int, width: int, *, stale: bool
    ) -> None:
        """Show these rows of a table so wide; of those in sight, draw what changed again."""
        self._table_width = width
        placed = self._placed
        if placed is None:
            return
        self._rows = rows
        drawn, self._drawn = self._drawn, {y: self._cell(rows[y], placed) for y in window}
        was, self._selected = self._selected, selected
        if stale != self._stale:
            self._stale = stale
            self.refresh()
            return
        moved = {was, selected} if was != selected else set()
        for y, cell in self._drawn.items():
            if cell != drawn.get(y) or y in moved:
                self.refresh(Region(0, y, placed.width + placed.gap, 1))

    def _cell(self, row: Line, placed: Placed) -> Parts:
        if isinstance(row, Heading):
            return crop(row.line(self._table_width), placed.at, placed.width + placed.gap)
        parts = fit(self.column.cell(row, placed.width), placed.width, right=self.column.right)
        return ((" " * placed.gap, Role.TEXT), *parts)

    def on_click(self, event: events.Click) -> None:
        """Tell the table which line was meant."""
        self.post_message(self.Clicked(event.y, event.chain == 2))

    def render_line(self, y: int) -> Strip:
        """One cell, for Textual."""
        if self._placed is None or y >= len(self._rows):
            return self.paint(fit((), self.size.width))
        selected = y == self._selected
        cell = self._drawn.get(y) or self._cell(self._rows[y], self._placed)
        if selected and self.column.key == "id":
            cell = (("▸" + cell[0][0][1:], Role.KEY), *cell[1:])
        return self.paint(cell, selected=selected, stale=self._stale)


class WorkersTable(Widget, can_focus=True):
    """The table with its selection. The selection follows the worker, not the line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *MOVES,
    ]

    def __init__(self, palette: Palette) -> None:
        super().__init__(id="workers")
        self._palette = palette
        self._head = Lines(palette, name="head")
        self._views = [ColumnView(column, palette) for column in COLUMNS]
        self._scroll = VerticalScroll(id="rows", can_focus=False)
        self._columns = Horizontal(id="columns")
        self._empty = Static(id="empty", markup=False)
        self._rows: list[Line] = []
        self._selected: int | None = None
        self._stale = False
        self._placed: tuple[Placed, ...] = ()

    def compose(self) -> ComposeResult:
        """Head, rows, and what is shown when there are none."""
        yield self._head
        with self._scroll, self._columns:
            yield from self._views
        yield self._empty

    @property
    def selected(self) -> int | None:
        """The selected worker's id."""
        return self._selected

    @property
    def placed(self) -> tuple[Placed, ...]:
        """The columns that are shown."""
        return self._placed

    def show(self, rows: Sequence[Line], *, stale: bool, empty: str) -> None:
        """Show these workers, or the line `empty` when there are none."""
        count = len(self._rows)
        self._rows, self._stale = list(rows), stale
        if count != len(rows) or not self._placed:
            self._columns.styles.height = max(1, len(rows))
        self._scroll.display = self._head.display = bool(rows)
        self._empty.display = not rows
        if not rows:
            self._empty.update(empty)
        ids = [row.worker.id for row in rows if isinstance(row, Row)]
        if self._selected not in ids:
            below = [i for i in ids if self._selected is not None and i <= self._selected]
            self._select(below[-1] if below else ids[0] if ids else None)
        self._draw()

    def on_mount(self) -> None:
        """Lines that come into sight are drawn then."""
        self.watch(self._scroll, "scroll_y", self._draw, init=False)

    def on_resize(self) -> None:
        """Choose the columns anew."""
        self._draw()

    def _draw(self) -> None:
        width = self.size.width - MARGIN
        if width <= 0:
            return
        workers = [row.worker for row in self._rows if isinstance(row, Row)]
        cores = max(map(len, map(place, workers)), default=0)
        placed = place_columns(width, cores)
        if placed != self._placed:
            self._placed = placed
            self._place()
        at = self._line_of(self._selected)
        top = int(self._scroll.scroll_offset.y)
        window = range(top, min(len(self._rows), top + max(1, self.size.height)))
        used = sum(one.width + one.gap for one in placed)
        for view in self._views:
            view.show(self._rows, window, at, used, stale=self._stale)
        self._head.show([self._titles()], stale=self._stale)

    def _place(self) -> None:
        by_key = {placed.column.key: placed for placed in self._placed}
        for view in self._views:
            view.place(by_key.get(view.column.key))

    def _titles(self) -> Parts:
        parts: list[tuple[str, Role]] = []
        for placed in self._placed:
            title = placed.column.title if len(placed.column.title) <= placed.width else ""
            cell = fit(((title, Role.TITLE),), placed.width, right=placed.column.right)
            parts += [(" " * placed.gap, Role.TEXT), *cell]
        return tuple(parts)

    def _line_of(self, worker: int | None) -> int:
        for y, row in enumerate(self._rows):
            if isinstance(row, Row) and row.worker.id == worker:
                return y
        return -1

    def _select(self, worker: int | None) -> None:
        if worker != self._selected:
            self._selected = worker
            self.post_message(WorkerSelected(worker))

    def _go(self, line: int, step: int = 1) -> None:
        """Select this line, or the next worker's in the direction of `step`."""
        line = max(0, min(len(self._rows) - 1, line))
        lines = [y for y, row in enumerate(self._rows) if isinstance(row, Row)]
        if not lines:
            return
        if line not in lines:
            ahead = [y for y in lines if (y > line) is (step > 0)]
            # Beyond the last one there is no next: it stays where it was, at the edge.
            line = (ahead or lines[-1:])[0] if step > 0 else (ahead or lines[:1])[-1]
        row = self._rows[line]
        assert isinstance(row, Row)
        self._select(row.worker.id)
        self._draw()
        height = self._scroll.size.height
        top = self._scroll.scroll_offset.y
        if line < top:
            self._scroll.scroll_to(y=line, animate=False)
        elif line >= top + height:
            self._scroll.scroll_to(y=line - height + 1, animate=False)

    def action_move(self, by: int) -> None:
        """Select the line above or below."""
        self._go(self._line_of(self._selected) + by, by)

    def action_page(self, by: int) -> None:
        """Move by a screenful."""
        self._go(self._line_of(self._selected) + by * max(1, self._scroll.size.height - 1), by)

    def action_edge(self, to: int) -> None:
        """Select the first or the last worker."""
        self._go(0 if to < 0 else len(self._rows) - 1, -to)

    def on_column_view_clicked(self, message: ColumnView.Clicked) -> None:
        """Select a line; a second click on it opens the details."""
        message.stop()
        if message.line < len(self._rows):
            self._go(message.line)
            if message.twice:
                self.post_message(DetailsWanted())
