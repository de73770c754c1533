"""A guess at which prompts each worker still has in its KV cache.

Pure. Only a prediction for the router: the worker compares token by token before it reuses
anything, so a wrong guess costs a little time and never a wrong answer.

A prompt is described by its chain: hash i covers the first (i + 1) * BLOCK tokens, so that
one look-up answers for a whole prefix.
"""

from __future__ import annotations

import functools
from typing import TypeAlias

BLOCK = 32
"""Tokens per link of a chain."""

_BLOCK_BYTES = BLOCK * 4

Chain: TypeAlias = tuple[int, ...]


@functools.lru_cache(maxsize=1)
def chain(packed: bytes, scope: int = 0) -> Chain:
    """The chain of a prompt given as wire.pack_tokens; the last partial block is left out.

    Prompts of different scopes (see wire.Submit) have nothing in common. The last chain is
    remembered: several answers to one prompt ask one after the other.
    """
    links: list[int] = []
    link = scope
    for at in range(0, len(packed) - _BLOCK_BYTES + 1, _BLOCK_BYTES):
        link = hash((link, packed[at : at + _BLOCK_BYTES]))
        links.append(link)
    return tuple(links)


class PrefixIndex:
    """What one worker probably holds: its last few sequences, at most one per slot."""

    def __init__(self, slots: int) -> None:
        self._slots = max(1, slots)
        self._sequences: list[Chain] = []

    def predict(self, wanted: Chain) -> int:
        """How many leading tokens of the prompt are probably cached there."""
        if not wanted:
            return 0
        return BLOCK * max((_common(wanted, held) for held in self._sequences), default=0)

    def add(self, sent: Chain) -> None:
        """A prompt went to the worker: it takes over the slot that holds most of it.

        Without one, the sequence used longest ago makes room.
        """
        best = max(
            range(len(self._sequences)),
            key=lambda i: _common(sent, self._sequences[i]),
            default=None,
        )
        if best is not None and _common(sent, self._sequences[best]) == len(self._sequences[best]):
            del self._sequences[best]
        elif len(self._sequences) >= self._slots:
            del self._sequences[0]
        self._sequences.append(sent)


def _common(one: Chain, other: Chain) -> int:
    """Length of the common prefix. Equal links mean equal prefixes, so bisection will do."""
    if not (one and other and one[0] == other[0]):
        return 0
    low, high = 1, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
