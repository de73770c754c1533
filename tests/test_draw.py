"""Draws in numpy: beside plain definitions, and beside llama.cpp's sampler chain."""

from __future__ import annotations

import math
from collections import Counter

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import llama_cpp_sampling
from lbhost.llamacpp import api
from lbhost.wire import Sampling
from lbhost.worker.draw import Draw, LogitsError, _nucleus, _weighted

DRAWS = 4000
VOCABULARY = 1000
"""More than a block, and not a multiple of one."""


def floats(*values: float) -> NDArray[numpy.float32]:
    return numpy.array(values, numpy.float32)


def some_logits(spread: float = 3.0) -> NDArray[numpy.float32]:
    made = numpy.random.default_rng(1).standard_normal(VOCABULARY) * spread
    return made.astype(numpy.float32)


def drawn(sampling: Sampling, logits: NDArray[numpy.float32]) -> Counter[int]:
    draw = Draw(sampling)
    return Counter(draw.pick(logits) for _ in range(DRAWS))


def llama_cpp_probabilities(
    sampling: Sampling, logits: NDArray[numpy.float32]
) -> NDArray[numpy.float64]:
    """What llama.cpp's chain leaves of the distribution before it draws."""
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    for link in (
        api.llama_sampler_init_top_k(sampling.top_k),
        api.llama_sampler_init_top_p(sampling.top_p, 1),
        api.llama_sampler_init_min_p(sampling.min_p, 1),
        api.llama_sampler_init_temp(sampling.temperature),
        api.llama_sampler_init_dist(1),
    ):
        api.llama_sampler_chain_add(chain, link)
    kept = llama_cpp_sampling.apply(chain, logits)
    largest = max(logit for _, logit in kept)
    probabilities = numpy.zeros(len(logits))
    for token, logit in kept:  # the logits are divided by the temperature already
        probabilities[token] = math.exp(logit - largest)
    probabilities /= probabilities.sum()
    return probabilities


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.5),
        Sampling(temperature=1.5, top_k=40),
        Sampling(temperature=1.0, top_k=VOCABULARY + 1),
        Sampling(temperature=1.0, top_p=0.9),
        Sampling(temperature=0.7, top_p=0.999),
        Sampling(temperature=2.0, min_p=0.05),
        Sampling(temperature=0.8, top_k=100, top_p=0.95, min_p=0.01),
    ],
)
def test_the_distribution_is_that_of_llama_cpp(sampling: Sampling) -> None:
    logits = some_logits()
    wanted = llama_cpp_probabilities(sampling, logits)
    seen = drawn(sampling, logits)
    assert all(wanted[token] > 0 for token in seen)
    for token in numpy.argsort(-wanted)[:20]:
        share = float(wanted[token])
        deviation = math.sqrt(share * (1 - share) / DRAWS)
        assert abs(seen[int(token)] / DRAWS - share) <= 5 * deviation, token


@given(
    st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=600).filter(lambda w: max(w) > 0),
    st.floats(0, 1, exclude_max=True),
)
def test_weighted_choices_invert_the_running_sum(weights: list[float], uniform: float) -> None:
    at = _weighted(floats(*weights), uniform)
    assert weights[at] > 0
    total = math.fsum(weights)
    slack = 1e-6 * total  # of the blocks' single precision
    assert math.fsum(weights[:at]) <= uniform * total + slack
    assert math.fsum(weights[: at + 1]) >= uniform * total - slack


@given(
    st.lists(st.floats(-20, 0, width=32), min_size=1, max_size=300),
    st.floats(0, 1, exclude_max=True),
)
def test_a_nucleus_is_the_fewest_tokens_that_weigh_enough(
    logits: list[float], top_p: float
) -> None:
    largest = max(logits)
    logits = [float(numpy.float32(logit - largest)) for logit in logits]
    chosen = _nucleus(floats(*logits), None, top_p).tolist()
    weights = [math.exp(logit) for logit in logits]
    total = math.fsum(weights)
    slack = 1e-5 * total
    assert len(set(chosen)) == len(chosen) >= 1
    assert math.fsum(weights[i] for i in chosen) >= top_p * total - slack
    assert math.fsum(weights[i] for i in chosen[:-1]) <= top_p * total + slack
    lightest = min(weights[i] for i in chosen)
    others = [w for i, w in enumerate(weights) if i not in chosen]
    assert all(w <= lightest * (1 + 1e-5) for w in others)


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = some_logits()
    logits[:900] = -math.inf
    assert min(drawn(Sampling(temperature=2.0), logits)) >= 900


@pytest.mark.parametrize("temperature", [1e-300, 1e-9, 1e-3])
def test_the_coldest_temperatures_are_greedy(temperature: float) -> None:
    logits = some_logits()
    assert set(drawn(Sampling(temperature=temperature), logits)) == {int(logits.argmax())}


def test_the_logits_stay_as_they_are() -> None:
    logits = some_logits()
    Draw(Sampling(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1)).pick(logits)
    assert (logits == some_logits()).all()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=0.9), Sampling(top_k=5)])
def test_logits_that_are_no_numbers_are_an_error(sampling: Sampling) -> None:
    logits = some_logits()
    logits[17] = math.nan
    with pytest.raises(LogitsError):
        Draw(sampling).pick(logits)
