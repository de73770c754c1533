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
    ("↑ ↓", "select a line (also j k, home, end); tab: the next pane"),
    ("enter", "details of the selected worker, or close them"),
    ("d  u", "drain: finish its requests, then stop; resume: start it again"),
    ("r  R", "restart this one; all, one after the other"),
    ("+  -", "one worker more; one fewer"),
    ("t", "live requests: x cancels one, s sorts, S the other way round"),
    ("c  l", "what each core does; event log (there: y copy, w save)"),
    ("L", "the selected worker alone: its events and what it writes"),
    ("/  :", "filter this pane: words, or a number; type a command"),
    ("space", "stand still, or go on; esc: clear the filter, close the pane"),
)
ORDER_KEYS = frozenset({"d  u", "r  R", "+  -"})
"""Not there with --readonly."""
QUIT = "quit; the server goes on"
QUIT_AND_STOP = "quit, which stops this server, too; asks first"
COLUMNS = (
    ("idle", "free part of its core", "others", "taken by other programs"),
    ("slots", "running, of all", "pend", "prompt tokens still to read"),
    ("in/s", "prefill: prompt tokens/s", "out/s", "decode: answers' tokens/s"),
    ("ttft", "time to first token", "kv", "how full its KV cache is"),
    ("cores", "━ ours ╍ others' ─ idle", "0→w1", "core 0 is lent to worker 1"),
)
WIDTH = 72


def lines(*, stops_server: bool, readonly: bool = False) -> list[Parts]:
    """The text, for 80 columns and 24 lines."""
    last = QUIT_AND_STOP if stops_server else QUIT
    keys = [key for key in KEYS if not (readonly and key[0] in ORDER_KEYS)]
    out: list[Parts] = [((" keys", Role.TITLE),)]
    out += [((f" {key:<7}", Role.KEY), (text, Role.TEXT)) for key, text in (*keys, ("q", last))]
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
        (
            (f" {'header':<9}", Role.TITLE),
            ("ttft, failing: of the last minute; p95 = what it was spent on", Role.DIM),
        )
    )
    names = [name for name in STATES if name not in ("degraded", "sleeping")]
    for start in range(0, len(names), 4):
        row = names[start : start + 4]
        title = (f" {'states' if not start else '':<9}", Role.TITLE)
        out.append((title, *((f"{STATES[n][0]} {n:<12}", STATES[n][1]) for n in row)))
    return out


class Help(ModalScreen[None]):
    """Any of the closing keys goes back."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape,q,question_mark,enter", "dismiss", "close")]

    def __init__(self, palette: Palette, *, stops_server: bool, readonly: bool = False) -> None:
        super().__init__()
        self._readonly = readonly
        self._stops_server = stops_server
        self._lines = Lines(palette, name="help-lines")

    def compose(self) -> ComposeResult:
        """One box."""
        with VerticalScroll(id="help"):
            yield self._lines

    def on_mount(self) -> None:
        """Fill it."""
        text = lines(stops_server=self._stops_server, readonly=self._readonly)
        self._lines.styles.height = len(text)
        self._lines.show(text)
