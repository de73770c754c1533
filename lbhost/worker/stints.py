"""Which LoRA adapter the context computes with: that of one group of requests at a time.

Owns what the context is set to, and whose turn is next; the rule is in lbhost/order.py. Owns no
slot; the engine's are handed in.
"""

from __future__ import annotations

from collections.abc import Sequence

from lbhost import adapters, order
from lbhost.worker.interfaces import ContextLike
from lbhost.worker.requests import Slot


class Stints:
    """See the module.

    Args:
        stint_s: seconds after which those with other adapters have their turn.
    """

    def __init__(self, context: ContextLike, slots: Sequence[Slot], stint_s: float) -> None:
        self._context = context
        self._slots = slots
        self._stint_s = stint_s
        self._line: list[int] = []
        """Who has something to compute; whose turn ended last, or who came last, comes last."""
        self._spent_s = 0.0
        self.current = adapters.NONE
        """The adapter of the newest step, and of the next one as far as `turn` has said."""
        self.switches = 0
        """Times that the context got another one."""
        self.settled = True
        """Whether the next step takes as long as most will: the first after a change does not,
        unless there is a change before every one."""
        self._changed = False

    def turn(self, held: frozenset[int]) -> int:
        """The adapter that the next step computes with; the context is set to it.

        Args:
            held: numbers of the requests that have nothing to compute yet, as others compute what
                they begin with (sharing.py).
        """
        if not self._context.adapters:
            return adapters.NONE
        there = [slot.request for slot in self._slots if slot.request is not None]
        running = [request for request in there if request.number not in held]
        running.sort(key=lambda request: request.number)
        having = dict.fromkeys(request.adapter for request in running)
        waited = [adapter for adapter in self._line if adapter in having]
        self._line = list(dict.fromkeys([*waited, *having]))
        ranks: dict[int, int] = {}
        for request in running:
            ranks[request.adapter] = min(request.rank, ranks.get(request.adapter, request.rank))
        chosen = order.whose_turn(self._line, self.current, ranks, self._spent_s, self._stint_s)
        before, self._changed = self._changed, chosen != self.current
        self.settled = before or not self._changed
        if self._changed:
            self._context.adapt(chosen)
            self._line.sort(key=lambda adapter: adapter == self.current)  # to the end
            self.current = chosen
            self.switches += 1
            self._spent_s = 0.0
        return chosen

    def spent(self, seconds: float) -> None:
        """A step took so long."""
        self._spent_s += seconds
