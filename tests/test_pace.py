"""How long one has to wait, told on a simulated clock and compared with what happens then."""

from __future__ import annotations

import heapq
from random import Random

import pytest

from lbhost.gateway.scheduling.pace import FORGET_S, GUESS_WEIGHT, Pace


@pytest.mark.parametrize("slots", [1, 4, 16])
@pytest.mark.parametrize("service_s", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("guess", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_told_is_within_twice_of_what_happens(
    slots: int, service_s: float, guess: float, seed: int
) -> None:
    """`slots` places, each busy for about service_s; the first guess is off by `guess`."""
    rng = Random(seed)
    pace = Pace()
    now = 0.0
    ends = [rng.uniform(0, 2 * service_s) for _ in range(slots)]
    heapq.heapify(ends)
    pace.waiting(True, now)

    def free_one() -> float:
        at = heapq.heappop(ends)
        heapq.heappush(ends, at + rng.uniform(0.5, 1.5) * service_s)
        return at

    for _ in range(40):
        now = free_one()
        pace.freed(now)
    queued = 60
    told = pace.wait_s(queued, guess * service_s / slots, now)
    for _ in range(queued):
        then = free_one()
    assert (then - now) / 2 <= told <= (then - now) * 2


def test_before_anything_was_seen_the_guess_is_told() -> None:
    pace = Pace()
    pace.waiting(True, 5.0)
    assert pace.wait_s(10, 0.5, 5.0) == pytest.approx(5.0)


def test_time_without_a_queue_does_not_count() -> None:
    pace = Pace()
    for start in (0.0, 100.0, 200.0):
        pace.waiting(True, start)
        for second in range(1, 11):
            pace.freed(start + second)
        pace.waiting(False, start + 10.0)
        pace.freed(start + 50.0)
    assert pace.wait_s(10, 1.0, 210.0) == pytest.approx(10.0)


def test_a_queue_that_stands_still_is_told_of_longer_and_longer() -> None:
    pace = Pace()
    pace.waiting(True, 0.0)
    pace.freed(1.0)
    waits = [pace.wait_s(4, 1.0, float(now)) for now in (1, 5, 10, 20, 29)]
    assert waits == sorted(waits)
    assert waits[-1] > 4 * waits[0]


def test_after_a_long_quiet_time_it_begins_again() -> None:
    pace = Pace()
    pace.waiting(True, 0.0)
    for tenth in range(1, 100):
        pace.freed(tenth / 10)
    pace.waiting(False, 10.0)
    assert pace.wait_s(10, 4.0, 11.0) < 5.0
    pace.waiting(True, 12.0 + FORGET_S)
    assert pace.wait_s(10, 4.0, 12.0 + FORGET_S) == pytest.approx(40.0)


def test_a_guess_weighs_little_once_places_were_seen() -> None:
    pace = Pace()
    pace.waiting(True, 0.0)
    for second in range(1, 21):
        pace.freed(float(second))
    expected = (20 + GUESS_WEIGHT * 100) / (20 + GUESS_WEIGHT)
    assert pace.wait_s(1, 100.0, 20.0) == pytest.approx(expected)
