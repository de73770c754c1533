"""Samplers over the real vocabulary, on logits that the tests write themselves."""

from __future__ import annotations

import math
from collections import Counter

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import llama_cpp_sampling
from lbhost.llama import Vocab
from lbhost.llamacpp import api
from lbhost.model import resolve
from lbhost.wire import Sampling
from lbhost.worker.sampling import PENALTY_LAST_N, Penalties, Sampler, Samplers

Floats = NDArray[numpy.float32]


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return Vocab.load(resolve("starter").path)


@pytest.fixture
def samplers(vocab: Vocab) -> Samplers:
    return Samplers(vocab)


class Outputs:
    """Logits as a context would have them, all at -10 but for the given ones."""

    def __init__(self, n_vocab: int, logits: dict[int, float]) -> None:
        self._row = numpy.full(n_vocab, -10, numpy.float32)
        for token, logit in logits.items():
            self._row[token] = logit

    def logits(self, index: int) -> Floats:
        return self._row


def pick(sampler: Sampler, n_vocab: int, logits: dict[int, float]) -> int:
    return sampler.pick(Outputs(n_vocab, logits), 0)


def make(samplers: Samplers, sampling: Sampling, **kwargs: object) -> Sampler:
    options: dict[str, object] = {"ignore_eos": False, "history": [], **kwargs}
    return samplers.make(sampling, **options)  # type: ignore[arg-type]


def test_greedy_takes_the_largest(samplers: Samplers, vocab: Vocab) -> None:
    sampler = make(samplers, Sampling(temperature=0.0))
    assert pick(sampler, vocab.n_tokens, {7: 5.0, 8: 6.0}) == 8


def test_logit_bias_moves_and_forbids(samplers: Samplers, vocab: Vocab) -> None:
    sampling = Sampling(temperature=0.0, logit_bias=((7, 2.0), (8, -100.0)))
    sampler = make(samplers, sampling)
    assert pick(sampler, vocab.n_tokens, {7: 5.0, 8: 900.0, 9: 6.0}) == 7


def test_a_bias_on_a_token_that_does_not_exist_is_ignored(samplers: Samplers, vocab: Vocab) -> None:
    sampling = Sampling(temperature=0.0, logit_bias=((10_000_000, 5.0), (-3, 5.0), (4, 0.1)))
    assert pick(make(samplers, sampling), vocab.n_tokens, {9: 6.0}) == 9


def test_ignore_eos_never_ends(samplers: Samplers, vocab: Vocab) -> None:
    assert vocab.eos in vocab.eog_tokens
    logits = dict.fromkeys(vocab.eog_tokens, 50.0) | {9: 1.0}
    for temperature in (0.0, 1.0):
        sampler = make(samplers, Sampling(temperature=temperature, top_k=1), ignore_eos=True)
        assert pick(sampler, vocab.n_tokens, logits) == 9


def test_penalties_count_the_history(samplers: Samplers, vocab: Vocab) -> None:
    for sampling in (
        Sampling(temperature=0.0, presence_penalty=2.0),
        Sampling(temperature=0.0, frequency_penalty=2.0),
        Sampling(temperature=0.0, repeat_penalty=2.0),
    ):
        sampler = make(samplers, sampling, history=[8])
        assert pick(sampler, vocab.n_tokens, {7: 5.0, 8: 6.0}) == 7


def test_penalties_count_what_was_generated(samplers: Samplers, vocab: Vocab) -> None:
    sampler = make(samplers, Sampling(temperature=0.0, presence_penalty=2.0))
    logits = {7: 5.0, 8: 6.0}
    assert [pick(sampler, vocab.n_tokens, logits) for _ in range(2)] == [8, 7]


@pytest.mark.parametrize(
    ("sampling", "possible"),
    [
        (Sampling(temperature=1.0, top_k=2), {7, 8}),
        (Sampling(temperature=1.0, top_p=0.5), {8}),
        (Sampling(temperature=1.0, min_p=0.3), {7, 8}),
        (Sampling(temperature=0.05), {8}),
    ],
)
def test_draws_stay_within_what_the_settings_allow(
    samplers: Samplers, vocab: Vocab, sampling: Sampling, possible: set[int]
) -> None:
    # probabilities 0.24, 0.64 and 0.12 for 7, 8 and 9
    sampler = make(samplers, sampling)
    logits = {7: 15.0, 8: 16.0, 9: 14.3}
    seen = Counter(pick(sampler, vocab.n_tokens, logits) for _ in range(40))
    assert set(seen) == possible


def test_the_same_seed_draws_the_same(samplers: Samplers, vocab: Vocab) -> None:
    logits = dict.fromkeys(range(100, 200), 5.0)

    def draws(seed: int) -> list[int]:
        sampler = make(samplers, Sampling(temperature=1.0, seed=seed))
        return [pick(sampler, vocab.n_tokens, logits) for _ in range(8)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)


def llama_cpp_penalised(sampling: Sampling, history: list[int], logits: Floats) -> Floats:
    """What llama.cpp's own penalties make of the logits."""
    penalties = api.llama_sampler_init_penalties(
        len(logits),
        PENALTY_LAST_N,
        sampling.repeat_penalty,
        sampling.frequency_penalty,
        sampling.presence_penalty,
    )
    for token in history:
        api.llama_sampler_accept(penalties, token)
    changed = numpy.zeros(len(logits), numpy.float32)
    for token, logit in llama_cpp_sampling.apply(penalties, logits):
        changed[token] = logit
    return changed


FEW = 12
"""Tokens of a vocabulary in which most come more than once."""


@given(
    sampling=st.builds(
        Sampling,
        repeat_penalty=st.just(1.0) | st.floats(0.1, 10),
        frequency_penalty=st.just(0.0) | st.floats(-2, 2),
        presence_penalty=st.just(0.0) | st.floats(-2, 2),
    ),
    history=st.lists(st.integers(0, FEW - 1), max_size=2 * PENALTY_LAST_N),
    later=st.lists(st.integers(0, FEW - 1), max_size=2 * PENALTY_LAST_N),
    logits=st.lists(
        st.floats(-30, 30, width=32) | st.sampled_from([0.0, -math.inf]),
        min_size=FEW,
        max_size=FEW,
    ),
)
def test_penalties_are_those_of_llama_cpp(
    sampling: Sampling, history: list[int], later: list[int], logits: list[float]
) -> None:
    penalties = Penalties(sampling, history)
    for token in later:
        penalties.accept(token)
    row = numpy.array(logits, numpy.float32)
    wanted = llama_cpp_penalised(sampling, history + later, row)
    penalties.apply(row)
    # compilers may fuse the multiplication and the subtraction, and round once
    numpy.testing.assert_allclose(row, wanted, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("repeat", [1.0, 1.3])
@pytest.mark.parametrize("frequency", [0.0, 0.2])
@pytest.mark.parametrize("presence", [0.0, -0.5])
def test_penalised_logits_over_the_real_vocabulary(
    vocab: Vocab, repeat: float, frequency: float, presence: float
) -> None:
    rng = numpy.random.default_rng(1)
    sampling = Sampling(
        repeat_penalty=repeat, frequency_penalty=frequency, presence_penalty=presence
    )
    history = rng.integers(0, vocab.n_tokens, 2 * PENALTY_LAST_N).tolist()
    logits = (rng.standard_normal(vocab.n_tokens) * 5).astype(numpy.float32)
    wanted = llama_cpp_penalised(sampling, history, logits)
    Penalties(sampling, history).apply(logits)
    numpy.testing.assert_allclose(logits, wanted, rtol=1e-6, atol=1e-5)
