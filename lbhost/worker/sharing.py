"""Prompts that begin alike are computed once: who waits for whom, and who may copy. Pure.

Several answers to one prompt, or requests with the same long instructions, arrive together, when
nothing of them is computed yet. The first computes what they share; the others wait for it and
then copy its state, instead of each computing the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lbhost.wire import common_prefix


class Held(msgspec.Struct, frozen=True):
    """A slot, and the request in it if there is one."""

    slot: int
    tokens: bytes | bytearray
    """What its KV holds, packed."""
    prompt: bytes = b""
    """Of a request of which some of the prompt is still to be computed."""
    number: int = 0
    """Counts the arrivals."""
    rank: int = 0
    scored: bool = False
    """It must compute all of its prompt itself."""
    scope: int = 0
    """Whose tokens these are; see wire.Submit."""

    @property
    def place(self) -> tuple[int, int, int]:
        """Smaller goes first, as in lbhost/order.py."""
        return self.rank, len(self.prompt) - len(self.tokens), self.number


class Copy(msgspec.Struct, frozen=True):
    """A slot takes over the beginning of another one's KV."""

    source: int
    target: int
    tokens: int


class Sharing(msgspec.Struct, frozen=True):
    """What is to be done before the next step."""

    copies: tuple[Copy, ...]
    waiting: frozenset[int]
    """Numbers of the requests whose prompts others are computing."""


def share(slots: Sequence[Held], copy_worth: int) -> Sharing:
    """Which prompts to hold back, and which KV to copy.

    One waits only for those that go before it anyhow: a short prompt never waits for a long one,
    and of those that are alike the first computes.

    Args:
        copy_worth: tokens that a copy must save to pay.
    """
    copies: list[Copy] = []
    waiting: set[int] = set()
    for one in slots:
        if one.scored:
            continue
        own = len(one.tokens) // 4
        usable = len(one.prompt) // 4 - 1  # the last token is computed: its logits are needed
        if usable - own < copy_worth:
            continue
        others = [other for other in slots if other is not one and other.scope == one.scope]
        have = {other.slot: common_prefix(other.tokens, one.prompt) for other in others}
        best = max(others, key=lambda other: have[other.slot], default=None)
        held = 0 if best is None else min(usable, have[best.slot])
        coming = max(
            (
                common_prefix(other.prompt, one.prompt)
                for other in others
                if other.prompt and other.place < one.place
            ),
            default=0,
        )
        if min(usable, coming) > held and min(usable, coming) - own >= copy_worth:
            waiting.add(one.number)
        elif best is not None and held - own >= copy_worth:
            copies.append(Copy(best.slot, one.slot, held))
    return Sharing(tuple(copies), frozenset(waiting))
