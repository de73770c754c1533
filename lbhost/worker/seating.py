"""Which slot a request gets, and how much of it that holds already without any computing.

What the slots hold themselves (slot_choice.py), what another one is about to hold (sharing.py), and
the KV state that came with the request (keeper.py). Owns no slot; the engine's are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from lbhost.wire import common_prefix
from lbhost.worker.interfaces import ContextLike
from lbhost.worker.keeper import Keeper
from lbhost.worker.requests import Request, Slot
from lbhost.worker.sharing import Held, share
from lbhost.worker.slot_choice import SlotView, choose

_COPY_BYTES_S = 1.5e9
_MIN_COPY_WORTH = 32
_GUESS_TOK_S = 100.0


class Seating:
    """See the module.

    Args:
        prefill_tok_s: tells how fast prompts are computed; None while that is unknown.
    """

    def __init__(
        self,
        context: ContextLike,
        slots: Sequence[Slot],
        keeper: Keeper,
        prefill_tok_s: Callable[[], float | None],
    ) -> None:
        self._context = context
        self._slots = slots
        self._keeper = keeper
        self._prefill_tok_s = prefill_tok_s

    def fill(self, request: Request) -> Slot:
        """A free slot that holds as much of the request as can be had without computing."""
        scope = request.submit.scope
        # what is to be scored must be computed: nothing of it is taken from a slot
        sought = b"" if request.scored else request.given
        views = [
            SlotView(
                slot=slot.index,
                busy=slot.request is not None,
                matched=common_prefix(slot.tokens, sought) if slot.scope == scope else 0,
                last_used=slot.last_used,
                along=slot.request is None or slot.request.adapter == request.adapter,
            )
            for slot in self._slots
        ]
        choice = choose(views, request.given_tokens, self._copy_worth())
        assert choice is not None, "a slot is free"
        offer = self._keeper.offer(request, choice.reuse)
        if offer is not None:  # nobody's match is needed: whoever was used longest ago makes room
            views = [msgspec.structs.replace(view, matched=0) for view in views]
            choice = choose(views, request.given_tokens, None)
            assert choice is not None, "a slot is free"
        slot = self._slots[choice.slot]
        overwritten = offer is not None or choice.copy_from is not None
        self._keeper.before_reuse(slot, 0 if overwritten else choice.reuse)
        if overwritten:
            slot.unsaved_s = 0.0
        if offer is not None:
            taken = self._keeper.take_over(slot, request, offer)
            self._truncate(slot, offer.matched if taken else 0)
            return slot
        if choice.copy_from is not None:
            self._context.copy(choice.copy_from, slot.index)
            slot.tokens[:] = self._slots[choice.copy_from].tokens
        self._truncate(slot, choice.reuse)
        return slot

    def share(self) -> frozenset[int]:
        """Copy what prompts that begin alike need of each other; who still waits for that."""
        worth = self._copy_worth()
        running = [slot.request for slot in self._slots if slot.request is not None]
        if worth is None or len(running) < 2 or all(request.next_token for request in running):
            return frozenset()
        sharing = share([_held(slot) for slot in self._slots], worth)
        for copy in sharing.copies:
            source, target = self._slots[copy.source], self._slots[copy.target]
            assert target.request is not None
            before = len(target.tokens) // 4
            self._context.copy(source.index, target.index)
            target.tokens[:] = source.tokens
            self._truncate(target, copy.tokens)
            more = max(0, len(target.tokens) // 4 - before)
            target.request.cached = min(target.request.cached + more, target.request.prompt_tokens)
        return sharing.waiting

    def _copy_worth(self) -> int | None:
        """Tokens whose prefill takes as long as copying a slot's whole KV stream."""
        if not self._context.can_copy:
            return None
        copy_s = self._context.stream_bytes / _COPY_BYTES_S
        speed = self._prefill_tok_s() or _GUESS_TOK_S
        return max(_MIN_COPY_WORTH, int(copy_s * speed))

    def _truncate(self, slot: Slot, length: int) -> None:
        """Cut a slot's KV to `length` tokens, or to none where it cannot be cut there."""
        if len(slot.tokens) == 4 * length:
            return
        kept = length if self._context.truncate(slot.index, length) else 0
        del slot.tokens[4 * kept :]


def _held(slot: Slot) -> Held:
    request = slot.request
    if request is None or request.next_token:
        return Held(slot.index, slot.tokens, scope=slot.scope)
    return Held(
        slot.index,
        slot.tokens,
        request.given,
        request.number,
        request.rank,
        request.scored,
        slot.scope,
    )
