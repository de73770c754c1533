"""When a slot's KV is worth saving: a pure rule of what it cost to compute and what saving costs.

What has ended is saved once, for whoever comes with the same beginning, here or in another worker.
What runs is saved as an insurance against this worker's end, and only so often that nobody notices.
"""

from __future__ import annotations

import enum
import math

import msgspec


class Doing(enum.Enum):
    """What the slot's sequence is at."""

    PREFILL = enum.auto()
    DECODE = enum.auto()
    MOVE = enum.auto()
    """It goes on in another worker, which needs all of it now."""
    NOTHING = enum.auto()
    """It has ended; its KV waits for one that begins alike."""


LEAST = {Doing.PREFILL: 64, Doing.DECODE: 8, Doing.MOVE: 8, Doing.NOTHING: 32}
"""Tokens that the store does not have, at least. A save in the middle of a prompt is obsolete with
the next one, but without it nothing gets on where workers die sooner than they compute a prompt."""

PAYS = {Doing.PREFILL: 100.0, Doing.DECODE: 70.0, Doing.MOVE: 3.0, Doing.NOTHING: 10.0}
"""Computing them must have taken so many times as long as saving will: all saves of a running
sequence together take at most a seventieth of its time, and under a third of that again where the
gateway frees those that they take the place of; its worker's end costs it at most what seventy
saves take, half of that on average, and less in so far as prefill is faster than decoding."""

LEAST_S = {Doing.DECODE: 0.25}
"""Computing them must have taken so long at all. What a worker's end costs a stream beside them,
until others know of it and have a slot, is more than computing them again at a prompt's speed; and
an answer of a second is saved when it ends, without one or two saves on the way."""


class Unsaved(msgspec.Struct, frozen=True):
    """What a slot holds beyond what the store has."""

    doing: Doing
    tokens: int
    """All that the slot holds: saving takes them all."""
    kept: int
    """How many of them, from the first on, the store has."""
    computed_s: float
    """Seconds that computing the others took."""
    left_s: float = math.inf
    """Seconds that computing the rest takes at most, counted as `computed_s`; then it ends, and is
    saved for that."""


def worth(slot: Unsaved, save_s: float) -> float:
    """By how much a save pays; 0: it does not.

    Args:
        save_s: seconds that it is expected to take.
    """
    if slot.tokens - slot.kept < LEAST[slot.doing]:
        return 0.0
    least_s = max(PAYS[slot.doing] * save_s, LEAST_S.get(slot.doing, 0.0))
    # A checkpoint is an insurance until the next one: near the end it is one for less time.
    insured = min(1.0, slot.left_s / least_s) if slot.doing is Doing.DECODE else 1.0
    return slot.computed_s if slot.computed_s * insured >= least_s else 0.0
