"""Which requests go on elsewhere."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lbhost import order
from lbhost.gateway.scheduling import moving
from lbhost.gateway.scheduling.moving import Offer, Running, best, evacuate, preempt


def running(attempt: int, **more: Any) -> Running:
    given = {"rank": order.DEFAULT, "place": float(attempt), "left": 100, "surely_s": math.inf}
    return Running(attempt, **{**given, **more})


def test_those_that_would_stay_longest_leave_first() -> None:
    there = [running(1, left=10), running(2, left=90), running(3, left=50)]
    assert evacuate(there, 2) == [2, 3]
    assert evacuate(there, 9) == [2, 3, 1]
    assert evacuate(there, 0) == evacuate(there, -3) == []


def test_what_is_over_in_a_moment_does_not_leave() -> None:
    there = [running(1, surely_s=moving.SOON_S / 2), running(2, surely_s=moving.SOON_S * 2)]
    assert evacuate(there, 9) == [2]


def test_the_lowest_rank_gives_its_slot_up_and_of_those_the_last_that_came() -> None:
    there = [running(1), running(2), running(3, rank=order.FLEX, place=0.5)]
    assert preempt(there, 0.0) == 3
    assert preempt(there[:2], 0.0) == 2


def test_what_would_come_before_the_priority_request_in_the_queue_stays() -> None:
    assert preempt([running(1), running(2)], 1.5) == 2
    assert preempt([running(1), running(2)], 2.0) is None
    assert preempt([running(1, rank=order.PRIORITY)], 0.0) is None


def test_what_has_just_been_moved_or_is_about_to_end_keeps_its_slot() -> None:
    assert preempt([running(1, settled=False), running(2, surely_s=0.0)], 0.0) is None


def test_a_request_moves_for_a_clear_gain_only() -> None:
    clear = Offer(1, stay_s=10.0, go_s=5.0, pause_s=0.5)
    assert best([clear]) == clear
    assert best([Offer(1, stay_s=7.0, go_s=5.0, pause_s=0.5)]) is None
    assert best([Offer(1, stay_s=1.2, go_s=0.5, pause_s=0.1)]) is None
    assert best([Offer(1, stay_s=90.0, go_s=9.0, pause_s=moving.MOST_PAUSE_S * 2)]) is None
    more = Offer(2, stay_s=30.0, go_s=8.0, pause_s=0.5)
    assert best([clear, more]) == more
    later = Offer(3, stay_s=12.0, go_s=7.9, pause_s=0.5)
    assert best([clear, later]) == clear, "what it gains counts, not how long it takes"
    assert best([]) is None


@given(st.floats(0.01, 1e3), st.floats(0.01, 1e3), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_nobody_moves_back_at_once(here: float, there: float, pause: float, back: float) -> None:
    """What is worth moving one way is never worth moving the other way by the same figures."""
    if best([Offer(1, stay_s=here, go_s=there + pause, pause_s=pause)]) is not None:
        assert best([Offer(1, stay_s=there, go_s=here + back, pause_s=back)]) is None
