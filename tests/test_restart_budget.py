"""When a crashed process is started again."""

from __future__ import annotations

import pytest

from lbhost.supervisor.budget import GOOD_RUN_S, LONGEST_DELAY_S, Restarts, after_crash


def crash(
    past: Restarts,
    at: float,
    ran: float = 0.0,
    budget: int | None = 5,
    jitter: float = 0.0,
) -> tuple[Restarts, float | None]:
    return after_crash(
        past,
        now_s=at,
        ran_s=ran,
        jitter=jitter,
        window_s=60.0,
        budget=budget,
    )


def test_five_restarts_are_allowed_within_a_minute_and_the_sixth_crash_is_the_last() -> None:
    past, delays = Restarts(), []
    for at in range(6):
        past, delay = crash(past, float(at))
        delays.append(delay)
    assert delays == [pytest.approx(0.1 * 2**n) for n in range(5)] + [None]


def test_crashes_that_are_a_minute_old_are_forgotten() -> None:
    past = Restarts()
    for at in (0.0, 1.0, 2.0, 3.0, 4.0):
        past, _ = crash(past, at)
    _, delay = crash(past, 59.9)
    assert delay is None
    _, delay = crash(past, 64.0)
    assert delay is not None


def test_after_a_good_run_it_is_started_at_once_and_a_short_one_waits_longer_each_time() -> None:
    past, _ = crash(Restarts(), 0.0)
    past, delay = crash(past, 10.0, ran=GOOD_RUN_S / 2)
    assert delay == pytest.approx(0.2)
    past, delay = crash(past, 20.0, ran=GOOD_RUN_S)
    assert delay == 0.0
    past, delay = crash(past, 30.0)
    assert delay == pytest.approx(0.1)


def test_what_is_killed_again_and_again_after_a_good_run_never_waits() -> None:
    past = Restarts()
    for n in range(20):
        past, delay = crash(past, 6.0 * n, ran=5.0, budget=None, jitter=1.0)
        assert delay == 0.0


def test_good_runs_do_not_refill_the_budget() -> None:
    past, delay = Restarts(), None
    for n in range(6):
        past, delay = crash(past, 11.0 * n, ran=GOOD_RUN_S)
    assert delay is None


def test_without_a_budget_the_delay_grows_to_its_limit_and_never_ends() -> None:
    past, delay, at = Restarts(), None, 0.0
    for _ in range(200):
        past, delay = crash(past, at, budget=None)
        assert delay is not None
        at += delay
    assert delay == LONGEST_DELAY_S
    assert len(past.times) == 1


@pytest.mark.parametrize(("jitter", "expected"), [(-1.0, 0.08), (0.0, 0.1), (1.0, 0.12)])
def test_jitter_moves_the_delay_by_a_fifth(jitter: float, expected: float) -> None:
    _, delay = crash(Restarts(), 0.0, jitter=jitter)
    assert delay == pytest.approx(expected)
