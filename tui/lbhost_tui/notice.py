"""The one line between header and table: what is out of the ordinary, and the filter."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.widgets import Input

from lbhost.status import Status
from lbhost_tui import format as fmt
from lbhost_tui.line import Lines
from lbhost_tui.messages import FilterChanged, FilterDone, Pane
from lbhost_tui.paint import Palette, Parts, Role, width_of

LINES = 3
"""At most so many lines for one thing to say."""


def gone(seen_ago_s: float | None, reason: str, *, unreadable: bool = False) -> Parts:
    """The server does not answer, or in a way that this version cannot read."""
    if unreadable:
        return ((f" {reason}", Role.BAD),)
    if seen_ago_s is None:
        return ((" no server yet", Role.WARN), (f" ({reason}), trying…", Role.DIM))
    text = f" server gone, last seen {fmt.span(seen_ago_s)} ago, reconnecting…"
    return ((text, Role.BAD), (f"  {reason}", Role.DIM))


def paused(parts: Parts) -> Parts:
    """The screen stands still; what is said beside that is as of then."""
    still: Parts = ((" paused", Role.WARN), (", space goes on", Role.DIM))
    return (*still, ("  · ", Role.DIM), *parts) if parts else still


def news(status: Status, doing: Iterable[str]) -> Parts:
    """What is going on, most important first; empty when all is well."""
    parts: list[tuple[str, Role]] = []

    def say(text: str, role: Role) -> None:
        parts.append(((" " if not parts else "  ·  ") + text, role))

    if status.state == "stopping":
        say("the server is stopping", Role.WARN)
    if status.gateway.state != "ready":
        say(f"gateway {status.gateway.state}", Role.WARN)
    if status.template is not None and status.template.state != "ready":
        say(f"fork server {status.template.state}", Role.BUSY)
    if status.rolling is not None:
        say(f"rolling restart: {status.rolling}", Role.BUSY)
    for name in doing:
        if status.rolling is None or name != "rolling restart":
            say(f"{name}…", Role.BUSY)
    down = [w for w in status.workers if w.state in ("failed", "backoff")]
    for worker in down[:1]:
        more = f" (and {len(down) - 1} more)" if len(down) > 1 else ""
        retry = (
            "" if worker.retry_in_s is None else f", next start in {fmt.span(worker.retry_in_s)}"
        )
        why = f": {worker.last_exit}" if worker.last_exit else ""
        key = ", u starts it again" if worker.state == "failed" else ""
        say(f"worker {worker.id}{more} {worker.state}{key}{retry}{why}", Role.BAD)
    for warning in status.warnings:
        say(warning, Role.WARN)
    return tuple(parts)


def wrapped(parts: Parts, width: int) -> list[Parts]:
    """One part of text as at most LINES lines, for words that must not be cut."""
    if not parts or width_of(parts) <= width:
        return [parts]
    role = parts[0][1]
    text = " ".join(text.strip() for text, _ in parts)
    lines = textwrap.wrap(text, max(10, width - 2))[:LINES]
    out: list[Parts] = []
    out += (((f" {line}", role),) for line in lines)
    return out


class FilterInput(Input):
    """The filter's line. Escape clears and leaves, enter keeps and leaves."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "clear", "clear"),
        ("enter,down", "leave", "keep"),
    ]

    def __init__(self) -> None:
        super().__init__(placeholder="words to look for, or a number", id="filter")
        self.pane = Pane.WORKERS
        """Whose filter is edited."""
        self.cursor_blink = False  # a blinking cursor would be work on a still screen

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while typing."""
        event.stop()
        self.post_message(FilterChanged(self.pane, self.value))

    def action_clear(self) -> None:
        """Show everything again."""
        self.value = ""
        self.post_message(FilterDone(self.pane))

    def action_leave(self) -> None:
        """Keep the filter and go back to the table."""
        self.post_message(FilterDone(self.pane))


class Notice(Horizontal):
    """Shows the notice, or the filter's input while it is edited."""

    def __init__(self, palette: Palette) -> None:
        super().__init__(id="notice")
        self._line = Lines(palette, name="news")
        self._label = Lines(palette, name="filter-label")
        self._input = FilterInput()

    def compose(self) -> ComposeResult:
        """Build both; one is shown at a time."""
        yield self._label
        yield self._input
        yield self._line

    def on_mount(self) -> None:
        """Start with the notice."""
        self._editing(False)

    @property
    def text(self) -> str:
        """The notice, without colours."""
        return self._line.text

    def show(self, parts: Parts, filters: Mapping[Pane, str], shown: str, said: Parts) -> None:
        """Show the notice; filters in force are named, with how much one lets through.

        `said` is what came of an order: on lines of its own, so that it covers no pane.
        """
        set_: list[tuple[str, Role]] = []
        for pane, text in filters.items():
            if text:
                set_ += [(f" filter {pane.value} ", Role.KEY), (text, Role.STRONG)]
                more = f"  {shown}" if pane is Pane.WORKERS else ""
                set_.append((f"{more}, esc clears", Role.DIM))
        if set_:
            parts = (*set_, *((("  ·  ", Role.DIM), *parts) if parts else ()))
        lines = [parts] if parts or not said else []
        if said:
            lines += wrapped(said, self.size.width)
        if self.styles.height is None or self.styles.height.value != len(lines):
            self.styles.height = len(lines)
        self._line.show(lines)

    def edit(self, pane: Pane, text: str) -> None:
        """Let the user type this pane's filter, which is `text` now."""
        self._input.pane = pane
        self._label.show([((f" filter {pane.value} ", Role.KEY),)])
        self._editing(True)
        with self._input.prevent(Input.Changed):
            self._input.value = text
        self._input.focus()

    def done(self) -> None:
        """Back to the notice."""
        self._editing(False)

    def _editing(self, on: bool) -> None:
        self._label.display = on
        self._input.display = on
        self._line.display = not on
