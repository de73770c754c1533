"""What is refused because it cannot be done in time, and when nothing is said yet."""

from __future__ import annotations

import pytest

from lbhost.errors import TooLateError, TooSlowError
from lbhost.gateway.scheduling.accuracy import Accuracy
from lbhost.gateway.scheduling.prospects import LEAST_SEEN, MARGIN, Limits, refusal, trusted

LIMITS = Limits(to_begin_s=60.0, to_end_s=600.0)


def accurate(predicted: float, answers: int) -> Accuracy:
    """So many answers that took a second each."""
    accuracy = Accuracy()
    for _ in range(answers):
        accuracy.completion.add(predicted, 1.0)
    return accuracy


def test_nothing_is_trusted_before_enough_was_seen_and_found_right() -> None:
    assert not trusted([])
    assert not trusted([accurate(1.0, LEAST_SEEN - 1)])
    assert trusted([accurate(1.0, LEAST_SEEN // 2), accurate(1.2, LEAST_SEEN)])
    assert not trusted([accurate(3.0, LEAST_SEEN)])


@pytest.mark.parametrize("wait_s", [None, 0.0, 59.0, 60.0 * MARGIN])
def test_what_may_be_done_in_time_is_taken(wait_s: float | None) -> None:
    assert refusal(wait_s, 5.0, LIMITS) is None
    assert refusal(None, 600.0 * MARGIN, LIMITS) is None


def test_a_queue_that_is_too_slow_is_told_with_the_time_that_is_missing() -> None:
    error = refusal(100.0, 5.0, LIMITS)
    assert isinstance(error, TooLateError)
    assert error.status == 429
    assert error.retryable
    assert error.retry_after_s == pytest.approx(40.0)
    late = refusal(400.0, 700.0, Limits(to_begin_s=None, to_end_s=600.0))
    assert isinstance(late, TooLateError)
    assert late.retry_after_s == pytest.approx(500.0)


def test_what_takes_too_long_even_alone_is_told_not_to_come_back() -> None:
    error = refusal(None, 601.0 * MARGIN, LIMITS)
    assert isinstance(error, TooSlowError)
    assert error.status == 503
    assert not error.retryable
    assert error.retry_after_s is None
