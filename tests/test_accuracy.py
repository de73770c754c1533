"""Errors of predictions, and the factors that follow them."""

from __future__ import annotations

from random import Random

import pytest

from lbhost.gateway.scheduling.accuracy import (
    HALF_LIFE_S,
    KEPT,
    Accuracy,
    Errors,
    Factor,
    Forecast,
    like,
)


def forecast(ttft_s: float, output_s: float, tokens: int, accuracy: Accuracy) -> Forecast:
    """As the router makes it, at time 0."""
    first, between = accuracy.narrow.ttft.at(0.0), accuracy.narrow.output.at(0.0)
    return Forecast(ttft_s * first, output_s * between, tokens, first, between)


def test_a_systematic_error_corrects_itself() -> None:
    accuracy = Accuracy()
    rng = Random(1)
    for _ in range(80):
        made = forecast(1.0, 0.02, 50, accuracy)
        luck = rng.uniform(0.9, 1.1)
        ttft_s, between_s = 1.5 * luck, 0.013 * luck
        accuracy.began(made, ttft_s, 0.0)
        accuracy.ended(made, ttft_s, ttft_s + 49 * between_s, 50, 0.0)
    assert accuracy.narrow.ttft.at(0.0) == pytest.approx(1.5, rel=0.05)
    assert accuracy.narrow.output.at(0.0) == pytest.approx(0.65, rel=0.05)
    assert (accuracy.ttft.absolute or 1.0) < 0.2
    assert (accuracy.completion.absolute or 1.0) < 0.2
    assert abs(accuracy.ttft.signed or 1.0) < 0.1


def test_many_requests_sent_before_the_first_answers_move_a_factor_no_further() -> None:
    accuracy = Accuracy()
    made = [forecast(1.0, 0.02, 2, accuracy) for _ in range(50)]
    for one in made:
        accuracy.began(one, 1.3, 0.0)
    assert accuracy.narrow.ttft.at(0.0) == pytest.approx(1.3, rel=0.02)


def test_a_factor_is_bounded_and_one_outlier_hardly_moves_it() -> None:
    factor = Factor()
    for _ in range(100):
        factor.add(100.0, 1.0, 0.0)
    assert factor.at(0.0) == pytest.approx(2.0)
    factor = Factor()
    for _ in range(50):
        factor.add(1.0, 1.0, 0.0)
    factor.add(1000.0, 1.0, 0.0)
    assert factor.at(0.0) < 1.06


def test_a_factor_fades_so_that_a_worker_is_tried_again() -> None:
    factor = Factor()
    for _ in range(100):
        factor.add(2.0, 1.0, 0.0)
    assert factor.at(HALF_LIFE_S) == pytest.approx(2.0**0.5, rel=0.02)
    assert factor.at(10 * HALF_LIFE_S) == pytest.approx(1.0, rel=0.01)


def test_errors_are_of_the_last_requests_and_none_before_the_first() -> None:
    errors = Errors()
    assert (errors.absolute, errors.signed) == (None, None)
    for _ in range(KEPT):
        errors.add(3.0, 1.0)
    for _ in range(KEPT):
        errors.add(0.9, 1.0)
    assert errors.absolute == pytest.approx(0.1)
    assert errors.signed == pytest.approx(-0.1)


def test_times_with_lent_cores_have_factors_of_their_own() -> None:
    accuracy = Accuracy()
    for _ in range(60):
        factor = accuracy.wide.ttft.at(0.0)
        accuracy.began(Forecast(factor, 0.02, 2, factor, wide=True), 0.3, 0.0)
    assert accuracy.wide.ttft.at(0.0) == pytest.approx(0.3, rel=0.05)
    assert accuracy.narrow.ttft.at(0.0) == 1.0
    newcomer = like([accuracy, accuracy, Accuracy()], 0.0)
    assert newcomer.wide.ttft.at(0.0) == pytest.approx(0.3, rel=0.05)
    assert like([], 0.0).wide.ttft.at(0.0) == 1.0


def test_few_tokens_say_nothing_of_the_time_between_them() -> None:
    accuracy = Accuracy()
    accuracy.ended(forecast(1.0, 0.02, 2, accuracy), 1.0, 5.0, 2, 0.0)
    assert accuracy.narrow.output.at(0.0) == 1.0
    assert accuracy.completion.absolute is not None
