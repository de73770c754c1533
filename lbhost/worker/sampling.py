"""llama.cpp's sampler chains, one per request. Owns their memory."""

from __future__ import annotations

import math
from typing import Any

from lbhost.llama import Vocab
from lbhost.llamacpp import api
from lbhost.wire import Sampling

PENALTY_LAST_N = 64
"""Tokens that the penalties look back on, as in llama.cpp."""

_FORBIDDEN = -100.0
"""A logit_bias at or under this forbids the token, as the OpenAI API promises."""


class Sampler:
    """One request's chain. `handle` goes to Context.sample; `close` frees it."""

    def __init__(self, handle: Any, *, shared: bool = False) -> None:
        self.handle = handle
        self._shared = shared

    def close(self) -> None:
        """Free the chain. Closing twice is harmless."""
        if self.handle is not None and not self._shared:
            api.llama_sampler_free(self.handle)
        self.handle = None


class Samplers:
    """Makes samplers for a vocabulary."""

    def __init__(self, vocab: Vocab) -> None:
        self._n_vocab = vocab.n_tokens
        self._eog = vocab.eog_tokens
        # Plain greedy keeps no state, so that one chain (and its 0.6 MB of candidates) serves all.
        self._greedy = _chain(api.llama_sampler_init_greedy())

    def make(
        self, sampling: Sampling, *, seed: int, ignore_eos: bool, prompt_tail: list[int]
    ) -> Sampler:
        """The chain for a request: bias, penalties, top-k, top-p, min-p, temperature, draw.

        Args:
            seed: what the draws start from; the caller settles it when the request has none.
            prompt_tail: the prompt's last PENALTY_LAST_N tokens, which penalties count too.
        """
        biases = self._biases(sampling, ignore_eos)
        penalised = bool(sampling.presence_penalty or sampling.frequency_penalty) or (
            sampling.repeat_penalty != 1.0
        )
        greedy = sampling.temperature <= 0
        if greedy and not biases and not penalised:
            return Sampler(self._greedy, shared=True)
        links = []
        if biases:
            array = (api.llama_logit_bias * len(biases))(*biases.items())
            links.append(api.llama_sampler_init_logit_bias(self._n_vocab, len(biases), array))
        if penalised:
            links.append(
                api.llama_sampler_init_penalties(
                    self._n_vocab,
                    PENALTY_LAST_N,
                    sampling.repeat_penalty,
                    sampling.frequency_penalty,
                    sampling.presence_penalty,
                )
            )
        chain = _chain(*links, *(self._greedy_end() if greedy else self._drawing(sampling, seed)))
        if penalised:
            for token in prompt_tail[-PENALTY_LAST_N:]:
                api.llama_sampler_accept(chain, token)
        return Sampler(chain)

    def _biases(self, sampling: Sampling, ignore_eos: bool) -> dict[int, float]:
        biases = {
            token: -math.inf if bias <= _FORBIDDEN else bias
            for token, bias in sampling.logit_bias
            if 0 <= token < self._n_vocab
        }
        if ignore_eos:
            biases.update(dict.fromkeys(self._eog, -math.inf))
        return biases

    @staticmethod
    def _greedy_end() -> list[Any]:
        return [api.llama_sampler_init_greedy()]

    @staticmethod
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

    def close(self) -> None:
        """Free the shared chain."""
        api.llama_sampler_free(self._greedy)


def _chain(*links: Any) -> Any:
    params = api.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = api.llama_sampler_chain_init(params)
    for link in links:
        api.llama_sampler_chain_add(chain, link)
    return chain
