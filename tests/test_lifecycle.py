"""Every (state, event) pair of a worker's life."""

from __future__ import annotations

import itertools

import pytest

from lbhost.board import Wanted, WorkerState
from lbhost.supervisor import lifecycle
from lbhost.supervisor.lifecycle import TABLE, Event, LifecycleError

S, E = WorkerState, Event

LEGAL = {
    S.STOPPED: {E.START: S.STARTING},
    S.STARTING: {
        E.READY: S.READY,
        E.STOP: S.STOPPING,
        E.CRASHED: S.BACKOFF,
        E.GAVE_UP: S.FAILED,
    },
    S.READY: {
        E.HOT: S.RESTING,
        E.DRAIN: S.DRAINING,
        E.STOP: S.STOPPING,
        E.CRASHED: S.BACKOFF,
        E.GAVE_UP: S.FAILED,
    },
    S.RESTING: {
        E.COOL: S.READY,
        E.DRAIN: S.DRAINING,
        E.STOP: S.STOPPING,
        E.CRASHED: S.BACKOFF,
        E.GAVE_UP: S.FAILED,
    },
    S.DRAINING: {
        E.WITHDRAW: S.READY,
        E.STOP: S.STOPPING,
        E.ENDED: S.STOPPED,
        E.CRASHED: S.BACKOFF,
        E.GAVE_UP: S.FAILED,
    },
    S.STOPPING: {E.ENDED: S.STOPPED},
    S.BACKOFF: {E.START: S.STARTING, E.STOP: S.STOPPED},
    S.FAILED: {E.START: S.STARTING, E.STOP: S.STOPPED},
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(S, E)))
def test_every_pair_of_state_and_event(state: WorkerState, event: Event) -> None:
    expected = LEGAL[state].get(event)
    table = dict(TABLE)
    if expected is not None:
        assert lifecycle.apply(state, event) is expected
    else:
        with pytest.raises(LifecycleError) as caught:
            lifecycle.apply(state, event)
        assert (caught.value.state, caught.value.event) == (state, event)
        assert state.name in caught.value.message
    assert dict(TABLE) == table


def test_the_table_holds_nothing_else() -> None:
    assert len(TABLE) == sum(len(events) for events in LEGAL.values())


def test_every_state_can_be_left_and_reached() -> None:
    assert {state for state, _ in TABLE} == set(S)
    assert set(TABLE.values()) == set(S)


@pytest.mark.parametrize("state", sorted(lifecycle.ALIVE))
@pytest.mark.parametrize("wanted", list(Wanted))
@pytest.mark.parametrize("budget_left", [True, False])
def test_the_end_of_a_process_is_always_a_legal_event(
    state: WorkerState, wanted: Wanted, budget_left: bool
) -> None:
    event = lifecycle.on_exit(state, wanted, budget_left=budget_left)
    after = lifecycle.apply(state, event)
    asked_for = state is S.STOPPING or (state is S.DRAINING and wanted is Wanted.DOWN)
    if asked_for:
        assert after is S.STOPPED
    else:
        assert after is (S.BACKOFF if budget_left else S.FAILED)


def test_no_process_can_end_where_none_is() -> None:
    for state in set(S) - lifecycle.ALIVE:
        for event in (E.ENDED, E.CRASHED, E.GAVE_UP):
            assert (state, event) not in TABLE
