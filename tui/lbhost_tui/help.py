"""The help: every key, every column, every state."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen

from lbhost_tui.columns import STATES
from lbhost_tui.format import UNKNOWN
from lbhost_tui.line import Lines
from lbhost_tui.paint import Palette, Parts, Role

KEYS = (
    ("↑ ↓", "select a worker (also j k, page up/down, home, end)"),
    ("enter", "details of the selected worker, or close them"),
    ("d", "drain: finish its requests, then stop and stay down"),
    ("u", "resume: withdraw a drain, or start it again"),
    ("r  R", "restart this one; all, one after the other"),
    ("+  -", "one worker more; one fewer"),
    ("l", "event log: show or hide (tab, then ↑ ↓ to scroll)"),
    ("/", "filter workers and events: words, or a number"),
    ("esc", "close a pane; clear the filter while typing it"),
    ("q", "quit; the server goes on"),
)
COLUMNS = (
    ("idle", "free of its core", "others", "taken by other programs"),
    ("slots", "running, of all", "pend", "prompt tokens still to read"),
    ("ttft", "time to first token", "kv", "how full its KV cache is"),
    ("mem", "resident memory", "rst", "restarts so far"),
)


def lines() -> list[Parts]:
    """The text."""
    out: list[Parts] = [((" keys", Role.TITLE),)]
    out += [((f" {key:<7}", Role.KEY), (text, Role.TEXT)) for key, text in KEYS]
    out += [
        (),
        ((" columns", Role.TITLE), (f"   {UNKNOWN} is a reading that does not exist", Role.DIM)),
    ]
    for left, meaning, right, other in COLUMNS:
        out.append(
            (
                (f" {left:<7}", Role.STRONG),
                (f"{meaning:<22}", Role.TEXT),
                (f"{right:<8}", Role.STRONG),
                (other, Role.TEXT),
            )
        )
    out += [(), ((" states", Role.TITLE),)]
    names = [name for name in STATES if name != "degraded"]
    for start in range(0, len(names), 4):
        row = names[start : start + 4]
        out.append(((" ", Role.TEXT), *((f"{STATES[n][0]} {n:<12}", STATES[n][1]) for n in row)))
    return out


class Help(ModalScreen[None]):
    """Any of the closing keys goes back."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q,question_mark,enter", "dismiss", "close")]

    def __init__(self, palette: Palette) -> None:
        super().__init__()
        self._lines = Lines(palette, name="help-lines")

    def compose(self) -> ComposeResult:
        """One box."""
        with VerticalScroll(id="help"):
            yield self._lines

    def on_mount(self) -> None:
        """Fill it."""
        text = lines()
        self._lines.styles.height = len(text)
        self._lines.show(text)
