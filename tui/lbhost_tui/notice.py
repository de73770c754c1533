"""The one line between header and table: what is out of the ordinary, and the filter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.widgets import Input

from lbhost.status import Status
from lbhost_tui import format as fmt
from lbhost_tui.line import Lines
from lbhost_tui.messages import FilterChanged, FilterDone
from lbhost_tui.paint import Palette, Parts, Role


def gone(seen_ago_s: float | None, reason: str) -> Parts:
    """The server does not answer."""
    if seen_ago_s is None:
        return ((" no server yet", Role.WARN), (f" ({reason}), trying…", Role.DIM))
    text = f" server gone, last seen {fmt.span(seen_ago_s)} ago, reconnecting…"
    return ((text, Role.BAD), (f"  {reason}", Role.DIM))


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
        say(f"template {status.template.state}", Role.BUSY)
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
        say(f"worker {worker.id}{more} {worker.state}{retry}{why}", Role.BAD)
    return tuple(parts)


class FilterInput(Input):
    """The filter's line. Escape clears and leaves, enter keeps and leaves."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "clear", "clear"),
        ("enter,down", "leave", "keep"),
    ]

    def __init__(self) -> None:
        super().__init__(
            placeholder="words to look for, or a worker, core or pid number", id="filter"
        )
        self.cursor_blink = False  # a blinking cursor would be work on a still screen

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while typing."""
        event.stop()
        self.post_message(FilterChanged(self.value))

    def action_clear(self) -> None:
        """Show everything again."""
        self.value = ""
        self.post_message(FilterDone())

    def action_leave(self) -> None:
        """Keep the filter and go back to the table."""
        self.post_message(FilterDone())


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
        self._label.show([((" filter ", Role.KEY),)])
        self._editing(False)

    @property
    def text(self) -> str:
        """The notice, without colours."""
        return self._line.text

    def show(self, parts: Parts, filter_text: str, shown: str) -> None:
        """Show the notice; a filter in force is named, with how much it lets through."""
        if filter_text:
            set_: Parts = (
                (" filter ", Role.KEY),
                (filter_text, Role.STRONG),
                (f"  {shown}, / then esc clears", Role.DIM),
            )
            parts = (*set_, *((("  ·  ", Role.DIM), *parts) if parts else ()))
        self._line.show([parts])

    def edit(self) -> None:
        """Let the user type a filter."""
        self._editing(True)
        self._input.focus()

    def done(self) -> None:
        """Back to the notice."""
        self._editing(False)

    def _editing(self, on: bool) -> None:
        self._label.display = on
        self._input.display = on
        self._line.display = not on
