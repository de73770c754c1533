"""From logits to a token, by each request's own settings.

Biases, penalties, greedy and draws (draw.py) are numpy's. The same settings, with their seed,
and the same logits give the same tokens.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from typing import Protocol

import numpy
from numpy.typing import NDArray

from lbhost.guidance import Constraints, GrammarError, Matcher
from lbhost.llama import Vocab
from lbhost.wire import Sampling
from lbhost.worker.draw import Draw, LogitsError

PENALTY_LAST_N = 64
"""Tokens that the penalties look back on, as in llama.cpp."""

_FORBIDDEN = -100.0
"""A logit_bias at or under this forbids the token, as the OpenAI API promises."""


class Outputs(Protocol):
    """A context after a decode, see context.Context."""

    def logits(self, index: int) -> NDArray[numpy.float32]: ...


class Penalties:
    """What the last tokens cost when they come again. The formula is llama.cpp's.

    Args:
        history: the tokens before the next one; the last PENALTY_LAST_N count.
    """

    def __init__(self, sampling: Sampling, history: list[int]) -> None:
        self._repeat = numpy.float32(sampling.repeat_penalty)
        self._frequency = numpy.float32(sampling.frequency_penalty)
        self._presence = numpy.float32(sampling.presence_penalty)
        self._window = deque(history, PENALTY_LAST_N)
        self._counts = Counter(self._window)

    def apply(self, logits: NDArray[numpy.float32]) -> None:
        """Change the logits of the tokens in the window, in place."""
        distinct = len(self._counts)
        tokens = numpy.fromiter(self._counts.keys(), numpy.intp, distinct)
        counts = numpy.fromiter(self._counts.values(), numpy.float32, distinct)
        before = logits[tokens]
        # a division would make a token with a negative logit more likely
        repeated = numpy.where(before <= 0, before * self._repeat, before / self._repeat)
        logits[tokens] = repeated - (counts * self._frequency + self._presence)

    def accept(self, token: int) -> None:
        """Put the token that was picked into the window."""
        if len(self._window) == PENALTY_LAST_N:
            oldest = self._window[0]
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        self._window.append(token)
        self._counts[token] += 1


class Sampler:
    """One request's way of picking: by a draw; without one, the largest."""

    def __init__(
        self,
        biases: dict[int, float],
        penalties: Penalties | None,
        draw: Draw | None,
        matcher: Matcher | None = None,
    ) -> None:
        self._penalties = penalties
        self._draw = draw
        self._matcher = matcher
        self._biased = numpy.fromiter(biases.keys(), numpy.int32, len(biases))
        self._biases = numpy.fromiter(biases.values(), numpy.float32, len(biases))

    @property
    def finished(self) -> bool:
        """Whether its grammar lets nothing follow but the end."""
        return self._matcher is not None and self._matcher.finished

    def forced(self) -> list[int]:
        """The next tokens as far as its grammar lets nothing else come, whatever the model says.

        Raises GrammarError: its grammar is too complex.
        """
        if self._matcher is None or len(self._biased):  # which may forbid them
            return []
        return self._matcher.forced()

    def take(self, token: int) -> None:
        """Go on behind a forced token as if it had been picked. Raises GrammarError."""
        if self._draw is not None:
            self._draw.skip()
        if self._penalties is not None:
            self._penalties.accept(token)
        if self._matcher is not None:
            self._matcher.accept(token)

    def pick(self, outputs: Outputs, index: int) -> int:
        """The next token of the sequence whose logits are at this batch index. Only once.

        Raises:
            LogitsError: one of them is no number.
            GrammarError: its grammar is too complex, or its biases forbid all that it allows.
        """
        logits = outputs.logits(index)
        if self._matcher is not None:
            self._matcher.mask(logits)
        if len(self._biased):
            logits[self._biased] += self._biases
        if self._penalties is not None:
            self._penalties.apply(logits)
        if self._matcher is not None and logits.max() == -math.inf:
            raise GrammarError("logit_bias forbids every token that the grammar allows here")
        if self._draw is not None:
            token = self._draw.pick(logits)
        else:
            token = int(logits.argmax())  # the first that is no number, if there is one
            if logits[token] != logits[token]:
                raise LogitsError
        if self._penalties is not None:
            self._penalties.accept(token)
        if self._matcher is not None:
            self._matcher.accept(token)
        return token


class Samplers:
    """Makes samplers for a vocabulary."""

    def __init__(self, vocab: Vocab, constraints: Constraints | None = None) -> None:
        """`constraints`: for grammars; without them, requests with one are refused."""
        self._constraints = constraints
        self._n_vocab = vocab.n_tokens
        self._eog = vocab.eog_tokens

    def make(
        self,
        sampling: Sampling,
        *,
        ignore_eos: bool,
        history: list[int],
        done: Sequence[int] = (),
        grammar: str = "",
    ) -> Sampler:
        """For one request: grammar, bias, penalties, top-k, top-p, min-p, temperature, draw.

        Args:
            history: the tokens before the first one; the penalties look at the last
                PENALTY_LAST_N of them.
            done: tokens of the answer that other samplers have picked already.
            grammar: as guidance.check returned it.

        Raises:
            GrammarError: it cannot be compiled, or the answer so far does not follow it.
        """
        penalised = bool(sampling.presence_penalty or sampling.frequency_penalty) or (
            sampling.repeat_penalty != 1.0
        )
        return Sampler(
            self._biases(sampling, ignore_eos),
            Penalties(sampling, history) if penalised else None,
            Draw(sampling, len(done)) if sampling.temperature > 0 else None,
            self._matcher(grammar, done) if grammar else None,
        )

    def _matcher(self, grammar: str, done: Sequence[int]) -> Matcher:
        if self._constraints is None:
            raise GrammarError("this worker knows no grammars")
        matcher = self._constraints.matcher(grammar)
        for token in done:
            matcher.accept(token)
        return matcher

    def _biases(self, sampling: Sampling, ignore_eos: bool) -> dict[int, float]:
        biases = {
            token: -math.inf if bias <= _FORBIDDEN else bias
            for token, bias in sampling.logit_bias
            if 0 <= token < self._n_vocab
        }
        if ignore_eos:
            biases.update(dict.fromkeys(self._eog, -math.inf))
        return biases
