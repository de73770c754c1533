"""Which slot a new prompt goes to, and how much of its KV it keeps: pure functions.

Tokens are compared themselves, never hashes of them: a prompt cache that mixed up
conversations has happened (llama.cpp #27148).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class SlotView(msgspec.Struct, frozen=True):
    """A slot as the choice sees it."""

    slot: int
    busy: bool
    matched: int
    """Tokens that its KV and the new prompt have in common from the start."""
    last_used: int
    """Rises with time; 0 for a slot never used."""
    along: bool = True
    """Whether what runs there is computed in the same steps as the new prompt: not where that has
    another LoRA adapter."""


class Choice(msgspec.Struct, frozen=True):
    """Where the prompt goes."""

    slot: int
    reuse: int
    """Tokens whose KV is kept."""
    copy_from: int | None = None
    """Slot whose KV is copied over first."""


def choose(slots: Sequence[SlotView], prompt_tokens: int, copy_worth: int | None) -> Choice | None:
    """A free slot for a prompt, None if all are busy.

    The longest match wins, then a slot beside busy ones, then the least recently used.
    Neighbours matter because llama.cpp computes only sequences with consecutive numbers in
    one go: decoding slots 0 and 2 takes 1.3 times as long as 0 and 1.

    Args:
        copy_worth: tokens that copying another slot's KV must save to pay; None: cannot copy.
    """
    free = [s for s in slots if not s.busy]
    if not free:
        return None
    busy = {s.slot for s in slots if s.busy and s.along}

    def rank(s: SlotView) -> tuple[int, bool, int, int]:
        alone = bool(busy) and not ({s.slot - 1, s.slot + 1} & busy)
        return -s.matched, alone, s.last_used, s.slot

    best = min(free, key=rank)
    usable = prompt_tokens - 1  # the last token is computed again: its logits are needed
    source = max(slots, key=lambda s: s.matched)
    if copy_worth is not None and min(source.matched, usable) - best.matched >= copy_worth:
        return Choice(best.slot, min(source.matched, usable), copy_from=source.slot)
    return Choice(best.slot, min(best.matched, usable))
