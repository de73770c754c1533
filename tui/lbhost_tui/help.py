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
    ("/", "filter this pane, the workers or the log: words, or a number"),
    ("esc", "clear this pane's filter; without one, close the pane"),
)
QUIT = "quit; the server goes on"
QUIT_AND_STOP = "quit, which stops this server, too; asks first"
COLUMNS = (
    ("idle", "free part of its core", "others", "taken by other programs"),
    ("slots", "running, of all", "pend", "prompt tokens still to read"),
    ("in/s", "prompt tokens a second", "out/s", "answers' tokens a second"),
    ("ttft", "time to first token", "kv", "how full its KV cache is"),
    ("mem", "resident memory", "rst", "restarts so far"),
)
WIDTH = 72


def lines(*, stops_server: bool) -> list[Parts]:
    """The text, for 80 columns and 24 lines."""
    last = QUIT_AND_STOP if stops_server else QUIT
    out: list[Parts] = [((" keys", Role.TITLE),)]
    out += [((f" {key:<7}", Role.KEY), (text, Role.TEXT)) for key, text in (*KEYS, ("q", last))]
    head = f"   {UNKNOWN} is a reading that does not exist, or of long ago"
    out += [(), ((" columns", Role.TITLE), (head, Role.DIM))]
    for left, meaning, right, other in COLUMNS:
        out.append(
            (
                (f" {left:<7}", Role.STRONG),
                (f"{meaning:<25}", Role.TEXT),
                (f"{right:<8}", Role.STRONG),
                (other, Role.TEXT),
            )
        )
    out.append(
        ((f" {'header':<9}", Role.TITLE), ("ttft and failing: of the last minute", Role.DIM))
    )
    names = [name for name in STATES if name != "degraded"]
    for start in range(0, len(names), 4):
        row = names[start : start + 4]
        title = (f" {'states' if not start else '':<9}", Role.TITLE)
        out.append((title, *((f"{STATES[n][0]} {n:<12}", STATES[n][1]) for n in row)))
    return out


class Help(ModalScreen[None]):
    """Any of the closing keys goes back."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q,question_mark,enter", "dismiss", "close")]

    def __init__(self, palette: Palette, *, stops_server: bool) -> None:
        super().__init__()
        self._stops_server = stops_server
        self._lines = Lines(palette, name="help-lines")

    def compose(self) -> ComposeResult:
        """One box."""
        with VerticalScroll(id="help"):
            yield self._lines

    def on_mount(self) -> None:
        """Fill it."""
        text = lines(stops_server=self._stops_server)
        self._lines.styles.height = len(text)
        self._lines.show(text)
