"""Which inputs the next batch of an embedding worker computes. Pure.

Whose turn it is, is said in lbhost/order.py, by which the router predicts too: fewest tokens left
first, and a quarter for the oldest. An input is never cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lbhost.order import Overtaken, Prompt, turns

WAIT_S = 0.002
"""How long an idle worker waits for more to compute along with the first."""

MOST_SKIPPED = 32


class Waiting(msgspec.Struct, frozen=True):
    """A request with inputs left to compute."""

    number: int
    """Names it, and says how old it is."""
    lengths: Sequence[int]
    """Tokens of each input that is left, in their order."""
    rank: int

    @property
    def prompt(self) -> Prompt:
        return Prompt(self.number, sum(self.lengths), self.rank)


def pack(
    waiting: Sequence[Waiting], overtaken: Overtaken, tokens: int, inputs: int
) -> dict[int, int]:
    """How many of its next inputs each request has computed; by number.

    Args:
        overtaken: what the oldest is owed; see order.after.
        tokens: that a batch has at most, unless it is one input alone.
        inputs: that it has at most.
    """
    lengths = {one.number: one.lengths for one in waiting}
    counts: dict[int, int] = {}
    left, places = tokens, inputs
    for turn in turns([one.prompt for one in waiting], overtaken, 1):
        at = counts.get(turn.number, 0)
        own = lengths[turn.number]
        most = turn.most
        while at < len(own) and places and own[at] <= most and (own[at] <= left or not counts):
            left -= own[at]
            most -= own[at]
            places -= 1
            at += 1
            counts[turn.number] = at
        if left <= 0 or not places:
            break
    return counts


class Patience:
    """Whether it is worth waiting for more: where nobody came in vain, the next waits are skipped,
    twice as many each time."""

    def __init__(self) -> None:
        self._skip = 0
        self._skipped = 0

    def wait_s(self) -> float:
        """How long to wait now that something has come to an idle worker."""
        if self._skipped < self._skip:
            self._skipped += 1
            return 0.0
        return WAIT_S

    def waited(self, *, came: bool) -> None:
        """A wait is over; whether anything came."""
        self._skip = 0 if came else min(max(1, 2 * self._skip), MOST_SKIPPED)
        self._skipped = 0
