"""What becomes of the slots' KV beyond this worker: saved for the store, taken over from it.

Owns the judgement between two steps (saving.py says when), and the test that this model's states
can be moved at all. Sends nothing itself: the loop takes `out`. Whatever goes wrong here costs
time and never an answer: what cannot be taken over is computed.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence

import msgspec

from lbhost import log
from lbhost.errors import StateError
from lbhost.state_file import Header
from lbhost.state_link import Able, FromWorker, Saved, Taken, Unable
from lbhost.wire import common_prefix
from lbhost.worker.requests import Entry, Request, Slot
from lbhost.worker.saving import Doing, Unsaved, worth
from lbhost.worker.states import States

_GUESS_BYTES_S = 0.5e9
_FIXED_S = 0.0005
_WEIGHT = 0.3
"""Of the newest save in the speed."""

Out = tuple[int | None, FromWorker, int | None]
"""(link, message, descriptor); link None: whoever keeps a store now."""


class Offer(msgspec.Struct, frozen=True):
    """A state that came with a request and is better than what the slots hold."""

    header: Header
    matched: int
    """Tokens that it has in common with the request, from the first on."""


class Keeper:
    """See the module.

    Args:
        states: None: nothing is saved and nothing taken over.
        most_s: a save that takes longer waits until nobody is computing.
    """

    def __init__(
        self,
        states: States | None,
        slots: Sequence[Slot],
        *,
        most_s: float = 0.15,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._states = states
        self._slots = slots
        self._most_s = most_s
        self._clock = clock
        self._bytes_s = _GUESS_BYTES_S
        self._bytes_per_token = 0.0
        self._token_s = 0.0
        """A token's part of a step, lately."""
        self._tested = False
        self._told = False
        self.wanted = False
        """Whether somebody keeps a store."""
        self.out: list[Out] = []

    def want(self) -> None:
        """There is a new store, which holds nothing yet."""
        self.wanted = True
        for slot in self._slots:
            slot.kept = 0
            slot.unsaved_s = len(slot.tokens) // 4 * self._token_s
        if self._states is None or not self._states.movable:
            self.out.append((None, Unable("this model's memory cannot be cut or moved"), None))
        else:
            self._test()  # while a slot is free for that: there may be none for long
            if self._states.movable:
                self.out.append((None, Able(self._states.identity), None))

    # --- saving -----------------------------------------------------------------------

    def computed(self, entries: Sequence[Entry], seconds: float) -> None:
        """A step is over, and its tokens are in the slots."""
        total = sum(len(entry.packed) for entry in entries)
        self._token_s += _WEIGHT * (4 * seconds / total - self._token_s)
        for entry in entries:
            slot = entry.slot
            new = min(len(entry.packed), len(slot.tokens) - 4 * slot.kept)
            if new > 0:
                slot.unsaved_s += seconds * new / total

    @property
    def due(self) -> bool:
        """Whether `save_one` has something to do."""
        return self._able and not (self._tested and self._next(busy=False) is None)

    def save_one(self, *, busy: bool) -> None:
        """Save the slot for which that pays most, if there is one.

        Args:
            busy: whether somebody waits for the next step.
        """
        if not self._able or (busy and self._next(busy=True) is None) or not self._test():
            return
        slot = self._next(busy=busy)
        if slot is not None:
            self._save(slot)

    def before_reuse(self, slot: Slot, keep: int) -> None:
        """All but a slot's first `keep` tokens are about to be forgotten: the last chance."""
        tokens = len(slot.tokens) // 4
        lost = tokens - max(keep, slot.kept)
        if lost <= 0:
            return
        lost_s = slot.unsaved_s * lost / (tokens - slot.kept)
        unsaved = Unsaved(Doing.NOTHING, tokens, tokens - lost, lost_s)
        if not self._saved_now(slot, unsaved):
            slot.unsaved_s -= lost_s

    def before_move(self, slot: Slot) -> None:
        """What ran in a slot goes on elsewhere at once."""
        unsaved = Unsaved(Doing.MOVE, len(slot.tokens) // 4, slot.kept, slot.unsaved_s)
        self._saved_now(slot, unsaved)

    def _saved_now(self, slot: Slot, unsaved: Unsaved) -> bool:
        """Save a slot if that pays; whether it did."""
        if not (self._able and self._tested and worth(unsaved, self._save_s(slot))):
            return False
        self._save(slot)
        return True

    @property
    def _able(self) -> bool:
        """Whether there is a store, and states that can be moved."""
        return self.wanted and self._states is not None and self._states.movable

    def _next(self, *, busy: bool) -> Slot | None:
        best, most = None, 0.0
        for slot in self._slots:
            pays = self._worth(slot)
            if pays > most and not (busy and self._save_s(slot) > self._most_s):
                best, most = slot, pays
        return best

    def _worth(self, slot: Slot) -> float:
        doing, left_s = Doing.NOTHING, math.inf
        if slot.request is not None and slot.request.next_token:
            doing = Doing.DECODE
            left = slot.request.submit.max_tokens - slot.request.completion
            left_s = max(0, left) * self._token_s
        elif slot.request is not None:
            doing = Doing.PREFILL
        unsaved = Unsaved(doing, len(slot.tokens) // 4, slot.kept, slot.unsaved_s, left_s)
        return worth(unsaved, self._save_s(slot))

    def _save_s(self, slot: Slot) -> float:
        return _FIXED_S + len(slot.tokens) // 4 * self._bytes_per_token / self._bytes_s

    def _save(self, slot: Slot) -> None:
        assert self._states is not None
        began = self._clock()
        try:
            fd, size = self._states.save(slot.index, bytes(slot.tokens), slot.scope)
        except StateError as error:
            self._tell(error.message)
        else:
            seconds = self._clock() - began
            self._bytes_per_token = size / (len(slot.tokens) // 4)
            speed = size / max(1e-6, seconds - _FIXED_S)
            self._bytes_s += _WEIGHT * (speed - self._bytes_s)
            self.out.append((None, Saved(seconds, slot.unsaved_s), fd))
        # In any case: what failed is not tried again before there is more to be saved.
        slot.kept = len(slot.tokens) // 4
        slot.unsaved_s = 0.0

    def _test(self) -> bool:
        """Whether states can be moved here: tried once, in the slot that is missed least."""
        assert self._states is not None
        if self._tested:
            return self._states.movable
        free = [slot for slot in self._slots if slot.request is None]
        if not free:
            return False
        self._tested = True
        spare = min(free, key=lambda slot: len(slot.tokens))
        spare.tokens.clear()
        spare.unsaved_s = 0.0
        try:
            self._states.test(spare.index)
        except StateError as error:
            self._tell(error.message)
            self.out.append((None, Unable(error.message), None))
        return self._states.movable

    # --- taking over ------------------------------------------------------------------

    def offer(self, request: Request, own: int) -> Offer | None:
        """What came with the request, if it spares more than the slots do.

        Args:
            own: tokens of the request that a slot holds.
        """
        if request.state is None:
            return None
        usable = request.given_tokens - 1  # the last token is computed again, for its logits
        try:
            if self._states is None or not self._states.movable:
                raise StateError("states cannot be moved here")
            header = self._states.read(request.state, request.submit.scope)
        except StateError as error:
            self._refuse(request, error.message)
            return None
        matched = min(common_prefix(header.tokens, request.given), usable)
        if matched <= own or request.scored:
            self._refuse(request, "")
            return None
        return Offer(header, matched)

    def take_over(self, slot: Slot, request: Request, offer: Offer) -> bool:
        """Replace a slot's KV by the offer. False: the slot is empty now."""
        assert self._states is not None
        assert request.state is not None
        began = self._clock()
        slot.tokens.clear()
        try:
            self._states.load(slot.index, request.state, offer.header)
        except StateError as error:
            self._refuse(request, error.message)
            return False
        slot.tokens += offer.header.tokens
        seconds = self._clock() - began
        taken = Taken(request.submit.state, offer.matched, offer.header.size, seconds)
        self._close(request, taken)
        return True

    def drop(self, request: Request) -> None:
        """The request has ended: what came with it is not needed."""
        if request.state is not None:
            os.close(request.state)
            request.state = None

    def _refuse(self, request: Request, why: str) -> None:
        if why:
            self._tell(why)
        self._close(request, Taken(request.submit.state, 0, 0, 0.0, why))

    def _close(self, request: Request, taken: Taken) -> None:
        self.out.append((request.link, taken, None))
        self.drop(request)

    def _tell(self, why: str) -> None:
        """Once: what fails once fails often."""
        if not self._told:
            self._told = True
            log.get().warning("a KV state is of no use; computing instead", why=why)
