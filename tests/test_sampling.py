"""Sampler chains over the real vocabulary, on logits that the tests write themselves."""

from __future__ import annotations

import ctypes
from collections import Counter
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray

from lbhost.llama import Vocab
from lbhost.llamacpp import api
from lbhost.model import resolve
from lbhost.wire import Sampling
from lbhost.worker.sampling import Sampler, Samplers


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

    def logits(self, index: int) -> NDArray[numpy.float32]:
        return self._row

    def sample(self, chain: Any, index: int) -> int:
        """What llama_sampler_sample does."""
        data = numpy.zeros(len(self._row), [("id", "i4"), ("logit", "f4"), ("p", "f4")])
        data["id"], data["logit"] = numpy.arange(len(data)), self._row
        pointer = ctypes.cast(data.ctypes.data, ctypes.POINTER(api.llama_token_data))
        candidates = api.llama_token_data_array(pointer, len(data), -1, False)
        api.llama_sampler_apply(chain, ctypes.byref(candidates))
        token = int(candidates.data[candidates.selected].id)
        api.llama_sampler_accept(chain, token)
        return token


def pick(sampler: Sampler, n_vocab: int, logits: dict[int, float]) -> int:
    return sampler.pick(Outputs(n_vocab, logits), 0)


def make(samplers: Samplers, sampling: Sampling, **kwargs: object) -> Sampler:
    options: dict[str, object] = {"seed": 1, "ignore_eos": False, "prompt_tail": [], **kwargs}
    return samplers.make(sampling, **options)  # type: ignore[arg-type]


def test_greedy_takes_the_largest(samplers: Samplers, vocab: Vocab) -> None:
    sampler = make(samplers, Sampling(temperature=0.0))
    assert pick(sampler, vocab.n_tokens, {7: 5.0, 8: 6.0}) == 8
    sampler.close()


def test_logit_bias_moves_and_forbids(samplers: Samplers, vocab: Vocab) -> None:
    sampling = Sampling(temperature=0.0, logit_bias=((7, 2.0), (8, -100.0)))
    sampler = make(samplers, sampling)
    assert pick(sampler, vocab.n_tokens, {7: 5.0, 8: 900.0, 9: 6.0}) == 7
    sampler.close()


def test_a_bias_on_a_token_that_does_not_exist_is_ignored(samplers: Samplers, vocab: Vocab) -> None:
    sampling = Sampling(temperature=0.0, logit_bias=((10_000_000, 5.0), (-3, 5.0), (4, 0.1)))
    assert pick(make(samplers, sampling), vocab.n_tokens, {9: 6.0}) == 9


def test_ignore_eos_never_ends(samplers: Samplers, vocab: Vocab) -> None:
    assert vocab.eos in vocab.eog_tokens
    logits = dict.fromkeys(vocab.eog_tokens, 50.0) | {9: 1.0}
    for temperature in (0.0, 1.0):
        sampler = make(samplers, Sampling(temperature=temperature, top_k=1), ignore_eos=True)
        assert pick(sampler, vocab.n_tokens, logits) == 9
        sampler.close()


def test_penalties_count_the_prompts_tail(samplers: Samplers, vocab: Vocab) -> None:
    for sampling in (
        Sampling(temperature=0.0, presence_penalty=2.0),
        Sampling(temperature=0.0, frequency_penalty=2.0),
        Sampling(temperature=0.0, repeat_penalty=2.0),
    ):
        sampler = make(samplers, sampling, prompt_tail=[8])
        assert pick(sampler, vocab.n_tokens, {7: 5.0, 8: 6.0}) == 7
        sampler.close()


def test_penalties_count_what_was_generated(samplers: Samplers, vocab: Vocab) -> None:
    sampler = make(samplers, Sampling(temperature=0.0, presence_penalty=2.0))
    logits = {7: 5.0, 8: 6.0}
    assert [pick(sampler, vocab.n_tokens, logits) for _ in range(2)] == [8, 7]
    sampler.close()


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
    sampler.close()


def test_the_same_seed_draws_the_same(samplers: Samplers, vocab: Vocab) -> None:
    logits = dict.fromkeys(range(100, 200), 5.0)

    def draws(seed: int) -> list[int]:
        sampler = make(samplers, Sampling(temperature=1.0), seed=seed)
        drawn = [pick(sampler, vocab.n_tokens, logits) for _ in range(8)]
        sampler.close()
        return drawn

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)


def test_the_largest_seed_is_a_seed_like_any_other(samplers: Samplers, vocab: Vocab) -> None:
    logits = dict.fromkeys(range(100, 200), 5.0)
    draws = []
    for _ in range(2):
        sampler = make(samplers, Sampling(temperature=1.0), seed=0xFFFFFFFF)
        draws.append([pick(sampler, vocab.n_tokens, logits) for _ in range(8)])
        sampler.close()
    assert draws[0] == draws[1]


def test_closing_twice_is_harmless(samplers: Samplers) -> None:
    sampler = make(samplers, Sampling(temperature=1.0))
    sampler.close()
    sampler.close()
