"""Figures of the recent past, on a clock that the test moves."""

from __future__ import annotations

import pytest

from lbhost.gateway.scheduling import policy
from lbhost.gateway.scheduling.fading import HALF_LIFE_S, KEPT_S, ErrorRate, FadingMean
from lbhost.gateway.scheduling.worker_view import WorkerView


def test_a_mean_is_gone_a_minute_after_its_newest_reading() -> None:
    mean = FadingMean()
    assert mean.at(0.0) is None
    mean.add(6.0, 100.0)
    mean.add(7.0, 130.0)
    assert mean.at(130.0) == pytest.approx(6.1)
    assert mean.at(130.0 + KEPT_S) == pytest.approx(6.1)
    assert mean.at(130.1 + KEPT_S) is None


def test_after_a_pause_a_mean_begins_anew() -> None:
    mean = FadingMean()
    mean.add(6.0, 100.0)
    mean.add(0.1, 300.0)
    assert mean.at(300.0) == pytest.approx(0.1)


def test_an_error_rate_halves_while_nothing_comes() -> None:
    rate = ErrorRate()
    for second in range(50):
        rate.add(True, float(second))
    worst = rate.at(49.0)
    assert worst > 0.5
    assert rate.at(49.0 + HALF_LIFE_S) == pytest.approx(worst / 2)
    assert rate.at(49.0 + 10 * HALF_LIFE_S) < 0.001


def test_a_worker_that_failed_once_gets_work_again() -> None:
    rate = ErrorRate()
    for _ in range(20):
        rate.add(True, 0.0)
    need = policy.Need(100, 50)

    def seconds(now: float) -> float:
        penalty = policy.penalty(rate.at(now), 1e9)
        view = WorkerView(worker=0, epoch=1, slots=4, in_flight=0, penalty=penalty)
        return policy.predict(need, view, policy.ASSUMED_SPEEDS)

    healthy = WorkerView(worker=1, epoch=1, slots=4, in_flight=2)
    busy = policy.predict(need, healthy, policy.ASSUMED_SPEEDS)
    assert seconds(0.0) > busy
    assert seconds(40.0) < busy
