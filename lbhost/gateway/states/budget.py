"""How much memory KV states may take. Pure.

They are memory that nobody can swap out or drop but we: the store gives way before anybody else
has to.
"""

from __future__ import annotations

from collections.abc import Sequence

AUTO_PART = 0.25
"""Of the memory that is free at the start."""

AUTO_MOST = 8 << 30
"""Bytes; as llama-server's `--cache-ram`."""

SPARE_PART = 0.1
"""Of all memory, that is to be left: with less than half of it the supervisor warns."""

UNKNOWN = 256 << 20
"""Bytes, where nothing tells how much memory there is."""


def settle(wanted: int | None, available: float | None) -> float:
    """Bytes at most.

    Args:
        wanted: the setting; None: auto.
        available: memory that can be taken now; None if unknown.
    """
    if wanted is not None:
        return wanted
    return UNKNOWN if available is None else min(AUTO_PART * available, AUTO_MOST)


def allowed(budget: float, held: int, available: float | None, total: float | None) -> float:
    """Bytes that states may take now: less than the budget while memory is short.

    Args:
        held: bytes that they take already.
        available: memory that can be taken beside those. total: of the box or cgroup.
    """
    if available is None or total is None:
        return budget
    return max(0.0, min(budget, held + available - SPARE_PART * total))


def split(total: float, held: Sequence[int]) -> list[float]:
    """Bytes that each model's states may take, of all that the box has for them.

    An equal part is everybody's for sure; what others do not hold is anybody's. One that has grown
    into that gives it back as soon as somebody fills his own.

    Args:
        held: bytes that each takes already.
    """
    part, everything = total / max(1, len(held)), sum(held)
    return [max(part, total - (everything - own)) for own in held]
