"""The table of live requests: a line each, sorted, with a selection that follows the request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from lbhost.status import Requests, RequestStatus
from lbhost_tui.filter import Filter
from lbhost_tui.line import Lines
from lbhost_tui.paint import Palette, Parts, Role, fit
from lbhost_tui.request_columns import (
    PlacedColumn,
    Sorting,
    column_at,
    line,
    place,
    summary,
    titles,
)
from lbhost_tui.surface import MOVES, Painted, entitle


class RequestRows(ScrollView, Painted, can_focus=True):
    """The lines. Only those that changed are drawn again."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *MOVES,
        Binding("x,delete", "app.cancel_request", "cancel", show=False),
        Binding("s", "app.sort_requests", "sort", show=False),
        Binding("S", "app.turn_requests", "the other way round", show=False),
        Binding("escape", "app.close_requests", "close", show=False),
    ]

    @dataclass
    class Chosen(Message):
        """A line was clicked or moved to."""

        line: int

    def __init__(self, palette: Palette) -> None:
        super().__init__(id="request-rows")
        self.set_palette(palette)
        self._lines: list[Parts] = []
        self._selected = -1
        self._stale = False
        self._empty = ""

    def show(self, lines: list[Parts], selected: int, empty: str, *, stale: bool) -> None:
        """Show these lines, or a word about why there are none."""
        before, self._lines = self._lines, lines
        was, self._selected = self._selected, selected
        if len(before) != len(lines):
            self.virtual_size = Size(self.size.width, len(lines))
        if len(before) != len(lines) or stale != self._stale or empty != self._empty:
            self._stale, self._empty = stale, empty
            self.refresh()
            return
        moved = {was, selected} if was != selected else set()
        for y, parts in enumerate(lines):
            if parts != before[y] or y in moved:
                self.refresh_line(y)

    def render_line(self, y: int) -> Strip:
        """One line, for Textual."""
        width = self.content_size.width
        at = y + self.scroll_offset.y
        if at < len(self._lines):
            parts, selected = self._lines[at], at == self._selected
            if selected:
                parts = (("▸", Role.KEY), (parts[0][0][1:], parts[0][1]), *parts[1:])
            return self.paint(fit(parts, width), selected=selected, stale=self._stale)
        text = f" {self._empty}" if at == 0 else ""
        return self.paint(fit(((text, Role.DIM),), width))

    def go(self, line_number: int) -> None:
        """Keep this line in sight."""
        top, height = self.scroll_offset.y, max(1, self.size.height)
        if line_number < top:
            self.scroll_to(y=line_number, animate=False)
        elif line_number >= top + height:
            self.scroll_to(y=line_number - height + 1, animate=False)

    def _choose(self, line_number: int) -> None:
        if self._lines:
            line_number = max(0, min(len(self._lines) - 1, line_number))
            self.post_message(self.Chosen(line_number))

    def action_move(self, by: int) -> None:
        """Select the line above or below."""
        self._choose(self._selected + by)

    def action_page(self, by: int) -> None:
        """Move by a screenful."""
        self._choose(self._selected + by * max(1, self.size.height - 1))

    def action_edge(self, to: int) -> None:
        """Select the first or the last one."""
        self._choose(0 if to < 0 else len(self._lines) - 1)

    def on_click(self, event: events.Click) -> None:
        """Select what was clicked."""
        self._choose(event.y + self.scroll_offset.y)


class RequestTable(Vertical):
    """Titles and rows."""

    def __init__(self, palette: Palette) -> None:
        super().__init__(id="requests")
        self._head = Lines(palette, name="requests-head")
        self.rows = RequestRows(palette)
        self._found = Requests(requests=[], total=0)
        self._shown: list[RequestStatus] = []
        self._filter = Filter()
        self._sorting = Sorting()
        self._selected: str | None = None
        self._at = 0
        """The selected line: an id is the client's, and several requests may have it."""
        self._problem = ""
        self._stale = False
        self._placed: tuple[PlacedColumn, ...] = ()

    def compose(self) -> ComposeResult:
        """Head, rows."""
        yield self._head
        yield self.rows

    @property
    def found(self) -> Sequence[RequestStatus]:
        """All that the server has told."""
        return self._found.requests

    @property
    def selected(self) -> RequestStatus | None:
        """The selected request."""
        return next((one for one in self._shown if one.id == self._selected), None)

    def show(self, found: Requests | None, problem: str = "", *, stale: bool = False) -> None:
        """Show these requests; None: those of before, and what is wrong."""
        if found is not None:
            self._found = found
        self._problem, self._stale = problem, stale
        self.draw()

    def filter(self, filter_: Filter) -> None:
        """Show only what the filter lets through."""
        self._filter = filter_
        self.draw()

    def sort(self, *, turn: bool = False) -> None:
        """By the next column, or the other way round."""
        self._sorting = self._sorting.turned() if turn else self._sorting.next()
        self.draw()

    def sort_by(self, key: str) -> None:
        """By this column; the other way round if they are already."""
        self._sorting = self._sorting.by_column(key)
        self.draw()

    def on_click(self, event: events.Click) -> None:
        """A click on a title sorts by it."""
        head = self._head.region
        if not head.contains(event.screen_x, event.screen_y):
            return
        key = column_at(self._placed, event.screen_x - head.x)
        if key is not None:
            self.sort_by(key)

    def on_resize(self) -> None:
        """Choose the columns anew."""
        self.draw()

    def draw(self) -> None:
        """Everything anew; what looks the same is not sent to the terminal."""
        width = self.size.width - 1
        if width <= 0 or not self.display:
            return
        self._placed = place(width)
        passed = [one for one in self._found.requests if self._filter.request(one)]
        self._shown = self._sorting.sorted(passed)
        same = [y for y, one in enumerate(self._shown) if one.id == self._selected]
        at = min(same, key=lambda y: abs(y - self._at), default=-1)
        if at < 0 and self._shown:
            at, self._selected = 0, self._shown[0].id
        self._at = at
        entitle(self, summary(self._found.requests, len(self._shown), self._found.total))
        self._head.show([titles(self._placed, self._sorting)], stale=self._stale)
        empty = self._problem or (
            "no request matches the filter" if self._found.requests else "no request waits or runs"
        )
        lines = [line(one, self._placed) for one in self._shown]
        self.rows.show(lines, at, empty, stale=self._stale or bool(self._problem))

    def on_request_rows_chosen(self, message: RequestRows.Chosen) -> None:
        """Another one is selected."""
        message.stop()
        if message.line < len(self._shown):
            self._selected, self._at = self._shown[message.line].id, message.line
            self.draw()
            self.rows.go(message.line)
