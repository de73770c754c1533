"""The dashboard's log: chains of states folded into a line, messages wrapped and harmless."""

from __future__ import annotations

import itertools

from fake_admin import event
from lbhost.status import Event
from lbhost_tui import eventlog
from lbhost_tui.fold import fold
from lbhost_tui.paint import width_of
from tui_driver import plain


def states(worker: int, *names: str, at: float = 0.0, step: float = 0.1) -> list[Event]:
    return [
        event(worker=worker, time=at + n * step, message=f"worker {worker}: {before} -> {after}")
        for n, (before, after) in enumerate(itertools.pairwise(names))
    ]


RESTART = ("ready", "draining", "stopping", "stopped", "starting", "ready")


def test_a_restart_is_one_line_in_the_log() -> None:
    asked = event(kind="operator", message="restart worker 1")
    folded = fold([asked, *states(1, *RESTART)])
    assert [line.message for line in folded] == ["restart worker 1", "up again after 0.4 s"]


def test_a_rolling_restart_is_a_line_a_worker() -> None:
    begin = event(kind="rolling", worker=None, message="rolling restart of 2 workers")
    turn = [event(kind="rolling", worker=w, message=f"worker {w}, {w} of 2 done") for w in (0, 1)]
    done = event(kind="rolling", worker=None, message="rolling restart done: 2 workers")
    folded = fold([begin, turn[0], *states(0, *RESTART), turn[1], *states(1, *RESTART), done])
    assert [(line.worker, line.message) for line in folded] == [
        (None, begin.message),
        (0, "up again after 0.4 s"),
        (1, "up again after 0.4 s"),
        (None, done.message),
    ]


def test_a_chain_that_is_not_over_shows_where_it_is() -> None:
    assert [line.message for line in fold(states(1, *RESTART[:4]))] == [
        "worker 1: stopping -> stopped"
    ]


def test_what_interrupts_a_chain_is_never_folded_away() -> None:
    crash = event(level="error", kind="worker_exit", message="worker 1 ended: SIGKILL")
    story = [*states(1, "ready", "draining"), crash, *states(1, "backoff", "starting", "ready")]
    assert fold(story) == story
    withdrawn = fold(states(1, "ready", "draining", "ready"))
    assert [line.message for line in withdrawn] == ["worker 1: draining -> ready"]


def test_messages_cannot_move_the_cursor() -> None:
    lines = eventlog.lines_of(event(message="a\x1b[2Jb\nc", level="error"), 60)
    assert all("\x1b" not in plain(line) for line in lines)
    assert "✕" in plain(lines[0])


def test_long_messages_are_wrapped_under_themselves() -> None:
    lines = eventlog.lines_of(event(message="word " * 30), 60)
    assert len(lines) > 3
    assert all(width_of(line) <= 60 for line in lines)
    assert plain(lines[1]).startswith(" " * 22 + "word")


def test_what_is_shown_already_is_not_wrapped_again() -> None:
    events = [event(seq=number, message=f"{number} " + "word " * 30) for number in range(3)]
    wrapping = eventlog.Wrapping()
    before = wrapping.lines(events[:2], 60)
    after = wrapping.lines(events[1:], 60)
    assert after == [line for one in events[1:] for line in eventlog.lines_of(one, 60)]
    assert after[0] is before[len(before) // 2], "the very same"
    narrow = wrapping.lines(events[1:], 50)
    assert narrow == [line for one in events[1:] for line in eventlog.lines_of(one, 50)]
