"""Which workers rest when their cores are hot."""

from __future__ import annotations

from lbhost.board import WorkerState
from lbhost.supervisor.lifecycle import Event
from lbhost.supervisor.thermal import decide

READY, RESTING, DRAINING = WorkerState.READY, WorkerState.RESTING, WorkerState.DRAINING


def run(states: dict[int, WorkerState], temps: dict[int, float | None]) -> dict[int, Event]:
    return decide(states, temps, warm_c=80, hot_c=95)


def test_a_hot_worker_rests_and_returns_when_it_is_back_at_warm() -> None:
    assert run({0: READY, 1: READY}, {0: 96.0, 1: 50.0}) == {0: Event.HOT}
    assert run({0: RESTING, 1: READY}, {0: 90.0, 1: 50.0}) == {}
    assert run({0: RESTING, 1: READY}, {0: 80.0, 1: 50.0}) == {0: Event.COOL}


def test_the_last_ready_worker_never_rests() -> None:
    assert run({0: READY}, {0: 120.0}) == {}
    assert run({0: READY, 1: READY}, {0: 97.0, 1: 99.0}) == {1: Event.HOT}
    assert run({0: READY, 1: DRAINING}, {0: 97.0, 1: 20.0}) == {}


def test_the_coolest_resting_worker_returns_when_no_other_is_ready() -> None:
    states = {0: RESTING, 1: RESTING, 2: WorkerState.BACKOFF}
    assert run(states, {0: 99.0, 1: 94.0, 2: 20.0}) == {1: Event.COOL}


def test_unknown_temperatures_change_nothing_but_end_a_rest() -> None:
    assert run({0: READY, 1: READY}, {0: None, 1: None}) == {}
    assert run({0: RESTING, 1: READY}, {0: None, 1: 50.0}) == {0: Event.COOL}
