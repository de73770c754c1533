"""What a request's answer is made of, piece by piece. Pure.

A Job hands deltas to the HTTP side; each dialect turns them into its own events.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec

from lbhost import wire

_SCORE_WEIGHT = 64
"""What a log-probability and each of its alternatives count as, in characters."""


class TextDelta(msgspec.Struct, frozen=True):
    """What one engine step, or several of them, added to an answer."""

    text: str
    """May be empty, and lag behind the tokens: half a character, what may become a stop string."""
    tokens: tuple[int, ...]
    logprobs: tuple[wire.TokenLogprob, ...] = ()
    """Of these tokens, whatever has become of their text; see wire.Delta."""
    prompt_logprobs: tuple[wire.TokenLogprob, ...] = ()

    @property
    def weight(self) -> int:
        """What it takes while it waits for its client: its characters, and as many for the rest.

        0: there is nothing in it that a client would see."""
        if not (self.logprobs or self.prompt_logprobs):
            return len(self.text)
        return len(self.text) + _SCORE_WEIGHT * self.scores

    @property
    def scores(self) -> int:
        """Log-probabilities in it, those of alternatives included."""
        scores = self.logprobs + self.prompt_logprobs
        return sum(1 + len(score.top) for score in scores)


Delta: TypeAlias = TextDelta
"""All kinds that there are."""


def text_of(deltas: Iterable[Delta]) -> str:
    """Their text, as one."""
    return "".join([delta.text for delta in deltas])


def merged(deltas: Sequence[Delta]) -> TextDelta:
    """All of them as one."""
    if len(deltas) == 1:
        return deltas[0]
    return TextDelta(
        text_of(deltas),
        tuple(itertools.chain.from_iterable(delta.tokens for delta in deltas)),
        tuple(itertools.chain.from_iterable(delta.logprobs for delta in deltas)),
        tuple(itertools.chain.from_iterable(delta.prompt_logprobs for delta in deltas)),
    )
