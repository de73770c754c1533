"""Log-probabilities: the numbers, and what the engine tells of outputs and of prompts."""

from __future__ import annotations

import math
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_bench import Bench
from fake_engine import EOG, LIKELY, N_VOCAB, FakeContext, continuation, lively, next_token, submit
from lbhost.wire import FinishReason
from lbhost.worker import logprobs
from lbhost.worker.context import Decoded
from lbhost.worker.draw import LogitsError

LIKELY_LOGPROB = LIKELY - math.log(math.exp(LIKELY) + N_VOCAB - 1)
OTHER_LOGPROB = -math.log(math.exp(LIKELY) + N_VOCAB - 1)


@settings(deadline=None)
@given(
    size=st.integers(1, 2000) | st.integers(1, 60_000),
    seed=st.integers(0, 1 << 32),
    spread=st.sampled_from([0.0, 0.1, 5.0, 1000.0]),
    place=st.floats(0, 1, exclude_max=True),
    top=st.integers(0, 20),
)
def test_they_are_those_of_a_softmax_and_the_top_ones_are_sorted(
    size: int, seed: int, spread: float, place: float, top: int
) -> None:
    rng = numpy.random.default_rng(seed)
    logits = (spread * rng.standard_normal(size)).astype(numpy.float32)
    if size > 1:
        logits[rng.integers(size, size=size // 4)] = -numpy.inf
        logits[rng.integers(size)] = 3.0
    before = logits.copy()
    token = int(place * size)
    found = logprobs.of_token(logits, token, top)
    assert (logits == before).all()
    exact = logits.astype(numpy.float64)
    exact = exact - exact.max()
    exact = numpy.maximum(exact - math.log(numpy.exp(exact).sum()), -9999.0)
    assert found.token == token
    assert found.logprob == pytest.approx(float(exact[token]), rel=1e-5, abs=1e-4)
    assert len({one for one, _ in found.top}) == len(found.top) == min(top, size)
    best = numpy.sort(exact)[::-1][:top]
    assert [logprob for _, logprob in found.top] == pytest.approx(list(best), rel=1e-5, abs=1e-4)
    for one, logprob in found.top:
        assert logprob == pytest.approx(float(exact[one]), rel=1e-5, abs=1e-4)


def test_what_is_no_number_has_none() -> None:
    logits = numpy.zeros(300, numpy.float32)
    logits[7] = numpy.nan
    with pytest.raises(LogitsError):
        logprobs.of_token(logits, 1, 2)


# --- the engine -------------------------------------------------------------------------


def scores_of(bench: Bench, *requests: int) -> dict[int, tuple[list[Any], list[Any]]]:
    """What was told of each request's outputs and of its prompt, until all is over."""
    told: dict[int, tuple[list[Any], list[Any]]] = {number: ([], []) for number in requests}
    while bench.engine.busy:
        for delta in bench.step():
            assert len(delta.logprobs) in (0, len(delta.tokens))
            told[delta.request][0].extend(delta.logprobs)
            told[delta.request][1].extend(delta.prompt_logprobs)
    return told


def test_every_output_token_has_one_where_they_were_asked_for() -> None:
    bench = Bench()
    bench.submit(submit(1, lively(5), max_tokens=8, logprobs=2))
    bench.submit(submit(2, lively(5, 1), max_tokens=8))
    told = scores_of(bench, 1, 2)
    tokens = continuation(lively(5), 8, 64)
    outputs, prompt = told[1]
    assert [score.token for score in outputs] == tokens == bench.result(1).tokens
    assert prompt == []
    for score in outputs:
        assert score.logprob == pytest.approx(LIKELY_LOGPROB, abs=1e-4)
        assert score.top[0][0] == score.token
        assert score.top[1][1] == pytest.approx(OTHER_LOGPROB, abs=1e-4)
    assert told[2] == ([], [])


def test_the_token_that_ends_it_has_none() -> None:
    prompt = next(
        list(range(start, start + 5))
        for start in range(1, 900)
        if EOG in continuation(list(range(start, start + 5)), 20, 64)
    )
    bench = Bench()
    bench.submit(submit(1, prompt, logprobs=0))
    outputs, _ = scores_of(bench, 1)[1]
    assert bench.result(1).tokens[-1] == EOG
    assert [score.token for score in outputs] == bench.result(1).tokens[:-1]
    assert all(score.top == () for score in outputs)


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 13, 30])
@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_every_prompt_token_but_the_first_has_one(length: int, max_tokens: int) -> None:
    prompt = lively(length)
    bench = Bench()
    bench.submit(submit(1, prompt, max_tokens=max_tokens, logprobs=0, prompt_logprobs=True), link=0)
    outputs, scored = scores_of(bench, 1)[1]
    assert [score.token for score in scored] == prompt[1:]
    for place, score in enumerate(scored, 1):
        expected = next_token(prompt[:place]) == prompt[place]
        assert score.logprob == pytest.approx(
            LIKELY_LOGPROB if expected else OTHER_LOGPROB, abs=1e-4
        )
    assert [score.token for score in outputs] == continuation(prompt, max_tokens, 64)
    finish = bench.finish(1)
    assert (finish.reason, finish.completion_tokens) == (FinishReason.LENGTH, max_tokens)
    assert (finish.prompt_tokens, finish.cached_tokens) == (length, 0)


def test_a_prompt_is_scored_although_its_state_is_there_and_may_be_reused_after() -> None:
    prompt = lively(20)
    bench = Bench()
    bench.submit(submit(1, prompt, max_tokens=2))
    bench.run()
    bench.submit(submit(2, prompt, max_tokens=2, logprobs=1, prompt_logprobs=True))
    assert len(scores_of(bench, 2)[2][1]) == 19
    assert bench.finish(2).cached_tokens == 0
    bench.submit(submit(3, prompt, max_tokens=2))
    bench.run()
    assert bench.finish(3).cached_tokens == 19
    assert bench.result(3).tokens == bench.result(1).tokens


def test_scored_prompts_share_the_outputs_of_a_batch_with_everybody() -> None:
    """FakeContext checks that there are never too many."""
    bench = Bench(FakeContext(slots=4))
    bench.submit(submit(1, lively(4), max_tokens=30))
    bench.step()
    for number in (2, 3, 4):
        prompt = lively(18, number)
        bench.submit(submit(number, prompt, max_tokens=3, logprobs=0, prompt_logprobs=True))
    told = scores_of(bench, 1, 2, 3, 4)
    for number in (2, 3, 4):
        assert [score.token for score in told[number][1]] == lively(18, number)[1:]
        assert bench.result(number).tokens == continuation(lively(18, number), 3, 64)
    assert bench.result(1).tokens == continuation(lively(4), 30, 64)


def test_an_aborted_step_tells_nothing_twice() -> None:
    bench = Bench()
    bench.context.results = [Decoded.OK, Decoded.ABORTED]
    bench.submit(submit(1, lively(20), max_tokens=3, logprobs=0, prompt_logprobs=True))
    outputs, scored = scores_of(bench, 1)[1]
    assert [score.token for score in scored] == lively(20)[1:]
    assert len(outputs) == 3


def test_no_output_at_all_leaves_the_prompt_for_the_next() -> None:
    bench = Bench()
    bench.submit(submit(1, lively(12), max_tokens=0))
    bench.run()
    assert bench.result(1).tokens == []
    assert bench.result(1).text == ""
    bench.submit(submit(2, lively(12), max_tokens=1))
    bench.run()
    assert bench.finish(2).cached_tokens == 11
