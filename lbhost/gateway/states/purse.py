"""The memory that KV states of all models may take, and each model's part of it now.

Owns no state; tells each plane its limit.
"""

from __future__ import annotations

from typing import Protocol

from lbhost.gateway.states import budget


class Holder(Protocol):
    """One model's states: plane.Plane."""

    @property
    def bytes(self) -> int: ...
    def allow(self, limit: float) -> None: ...


class Purse:
    """See the module.

    Args:
        wanted: bytes that all states may take; 0: nothing is kept; None: a part of what is free.
    """

    def __init__(self, wanted: int | None) -> None:
        self.budget: float | None = None if wanted is None else wanted
        self.limit: float = budget.UNKNOWN if wanted is None else wanted
        """Of all together, now."""
        self._holders: list[Holder] = []

    @property
    def empty(self) -> bool:
        """Nothing is to be kept."""
        return self.budget == 0

    def add(self, holder: Holder) -> None:
        """One more model."""
        self._holders.append(holder)
        self.spread()

    def want(self, wanted: int | None) -> None:
        """Another budget: bytes, not 0; None: a part of what is free at the next `settle`."""
        self.budget = wanted
        if wanted is not None:
            self.limit = min(self.limit, wanted)
            self.spread()

    def settle(self, available: float | None, total: float | None) -> None:
        """Give way while memory is short.

        Args:
            available: bytes that can be taken now. total: of the box. None where unknown.
        """
        if self.budget is None:
            self.budget = budget.settle(None, available)
        held = sum(holder.bytes for holder in self._holders)
        self.limit = budget.allowed(self.budget, held, available, total)
        self.spread()

    def spread(self) -> None:
        """Tell everybody his part; to be called when somebody holds more than before."""
        parts = budget.split(self.limit, [holder.bytes for holder in self._holders])
        for holder, part in zip(self._holders, parts, strict=True):
            holder.allow(part)
