"""From logits to a token, by each request's own settings.

Biases, greedy and draws (draw.py) are numpy's; with penalties a llama.cpp sampler chain picks,
whose memory is owned here. Greedy takes 5 us a token so, instead of the 90 that a chain needs
for its list of candidates (vocabulary of 49,152).
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy
from numpy.typing import NDArray

from lbhost.llama import Vocab
from lbhost.llamacpp import api
from lbhost.wire import Sampling
from lbhost.worker.draw import Draw

PENALTY_LAST_N = 64
"""Tokens that the penalties look back on, as in llama.cpp."""

_FORBIDDEN = -100.0
"""A logit_bias at or under this forbids the token, as the OpenAI API promises."""


class Outputs(Protocol):
    """A context after a decode, see context.Context."""

    def logits(self, index: int) -> NDArray[numpy.float32]: ...
    def sample(self, chain: Any, index: int) -> int: ...


class Sampler:
    """One request's way of picking: by a chain or a draw; with neither, the largest."""

    def __init__(
        self, biases: dict[int, float], *, draw: Draw | None = None, chain: Any = None
    ) -> None:
        self._draw = draw
        self._chain = chain
        self._biased = numpy.fromiter(biases.keys(), numpy.int32, len(biases))
        self._biases = numpy.fromiter(biases.values(), numpy.float32, len(biases))

    def pick(self, outputs: Outputs, index: int) -> int:
        """The next token of the sequence whose logits are at this batch index. Only once."""
        logits = outputs.logits(index)
        if len(self._biased):
            logits[self._biased] += self._biases
        if self._chain is not None:
            return outputs.sample(self._chain, index)
        return self._draw.pick(logits) if self._draw is not None else int(logits.argmax())

    def close(self) -> None:
        """Free the chain. Closing twice is harmless."""
        if self._chain is not None:
            api.llama_sampler_free(self._chain)
        self._chain = None


class Samplers:
    """Makes samplers for a vocabulary."""

    def __init__(self, vocab: Vocab) -> None:
        self._n_vocab = vocab.n_tokens
        self._eog = vocab.eog_tokens

    def make(
        self, sampling: Sampling, *, seed: int, ignore_eos: bool, prompt_tail: list[int]
    ) -> Sampler:
        """For one request: bias, penalties, top-k, top-p, min-p, temperature, draw.

        Args:
            seed: what the draws start from; the caller settles it when the request has none.
            prompt_tail: the prompt's last PENALTY_LAST_N tokens, which penalties count too.
        """
        biases = self._biases(sampling, ignore_eos)
        penalised = bool(sampling.presence_penalty or sampling.frequency_penalty) or (
            sampling.repeat_penalty != 1.0
        )
        greedy = sampling.temperature <= 0
        if not penalised:
            return Sampler(biases, draw=None if greedy else Draw(sampling, seed))
        rest = [api.llama_sampler_init_greedy()] if greedy else _drawing(sampling, seed)
        chain = _chain([self._penalties(sampling), *rest])
        for token in prompt_tail[-PENALTY_LAST_N:]:
            api.llama_sampler_accept(chain, token)
        return Sampler(biases, chain=chain)

    def _biases(self, sampling: Sampling, ignore_eos: bool) -> dict[int, float]:
        biases = {
            token: -math.inf if bias <= _FORBIDDEN else bias
            for token, bias in sampling.logit_bias
            if 0 <= token < self._n_vocab
        }
        if ignore_eos:
            biases.update(dict.fromkeys(self._eog, -math.inf))
        return biases

    def _penalties(self, sampling: Sampling) -> Any:
        return api.llama_sampler_init_penalties(
            self._n_vocab,
            PENALTY_LAST_N,
            sampling.repeat_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        )


def _drawing(sampling: Sampling, seed: int) -> list[Any]:
    links = []
    if sampling.top_k > 0:
        links.append(api.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        links.append(api.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0:
        links.append(api.llama_sampler_init_min_p(sampling.min_p, 1))
    links.append(api.llama_sampler_init_temp(sampling.temperature))
    # 2^32 - 1 would ask llama.cpp for a random seed
    links.append(api.llama_sampler_init_dist(seed % 0xFFFFFFFF))
    return links


def _chain(links: list[Any]) -> Any:
    params = api.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = api.llama_sampler_chain_init(params)
    for link in links:
        api.llama_sampler_chain_add(chain, link)
    return chain
