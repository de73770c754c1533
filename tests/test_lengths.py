"""How long answers are taken to be."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbhost.gateway.scheduling.lengths import KEPT, Lengths


def learnt(*answers: tuple[int, bool]) -> Lengths:
    lengths = Lengths()
    for _ in range(KEPT // len(answers) + 1):
        for tokens, cut_off in answers:
            lengths.add(tokens, cut_off=cut_off)
    return lengths


def test_before_any_answer_a_guess_serves_and_never_exceeds_the_limit() -> None:
    assert Lengths().expected(16) == 16
    assert Lengths().expected(10_000) == 128


def test_the_mean_of_what_answers_of_at_most_so_many_tokens_produce() -> None:
    lengths = learnt((20, False), (100, False))
    assert lengths.expected(1000) == 60
    assert lengths.expected(50) == pytest.approx(35, abs=1)
    assert lengths.expected(20) == 20
    assert lengths.expected(5) == 5


def test_answers_that_were_cut_off_would_have_been_longer() -> None:
    # Half end at 20; the others ran into limits, and one in a while shows that they go to 200.
    lengths = learnt((20, False), (20, False), (64, True), (200, False))
    assert lengths.expected(64) == pytest.approx(42, abs=2)
    assert lengths.expected(1000) == pytest.approx(110, abs=3)


def test_where_every_answer_was_cut_off_a_longer_limit_is_used_up_to_its_double() -> None:
    lengths = learnt((64, True))
    assert lengths.expected(64) == 64
    assert lengths.expected(100) == 100
    assert lengths.expected(10_000) == 128


@given(
    answers=st.lists(st.tuples(st.integers(0, 5000), st.booleans()), max_size=40),
    limit=st.integers(1, 10_000),
)
def test_an_expectation_is_between_one_and_the_limit_and_grows_with_it(
    answers: list[tuple[int, bool]], limit: int
) -> None:
    lengths = Lengths()
    for tokens, cut_off in answers:
        lengths.add(tokens, cut_off=cut_off)
    assert 1 <= lengths.expected(limit) <= limit
    assert lengths.expected(limit) <= lengths.expected(limit + 100)


def test_random_lengths_under_random_limits_are_estimated_without_bias() -> None:
    rng = Random(4)
    lengths = Lengths()
    true: list[int] = []
    for _ in range(KEPT):
        length, limit = 1 + int(rng.expovariate(1 / 150)), rng.choice([64, 128, 256, 4096])
        true.append(length)
        lengths.add(min(length, limit), cut_off=length > limit)
    for limit in (32, 128, 512, 2000):
        mean = sum(min(length, limit) for length in true) / len(true)
        assert lengths.expected(limit) == pytest.approx(mean, rel=0.15)


def test_what_is_still_to_come_of_an_answer_that_has_begun() -> None:
    lengths = learnt((20, False), (100, False))
    # Half end at 20: one that has 20 goes on to 100, one that has 10 ends at 20 or at 100.
    assert lengths.expected(1000, 20) == pytest.approx(80, abs=2)
    assert lengths.expected(1000, 10) == pytest.approx(50, abs=2)
    assert lengths.expected(50, 20) == pytest.approx(30, abs=1)
    assert lengths.expected(50, 49) == lengths.expected(50, 50) == 1
    assert lengths.expected(1000, 0) == lengths.expected(1000)


@given(
    st.lists(st.tuples(st.integers(1, 300), st.booleans()), max_size=40),
    st.integers(1, 2000),
    st.integers(0, 2000),
)
def test_what_is_still_to_come_is_within_what_is_left(
    answers: list[tuple[int, bool]], limit: int, done: int
) -> None:
    lengths = Lengths()
    for tokens, cut_off in answers:
        lengths.add(tokens, cut_off=cut_off)
    assert 1 <= lengths.expected(limit, done) <= max(1, limit - done)
