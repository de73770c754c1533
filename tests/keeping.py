"""An engine with a keeper of states, for its tests: what it wants sent is noted."""

from __future__ import annotations

import os
from typing import Any

from fake_engine import FakeContext, FakeSamplers, FakeVocab
from lbhost import state_file
from lbhost.state_file import Header
from lbhost.state_link import Taken
from lbhost.wire import Delta
from lbhost.worker.engine import Engine
from lbhost.worker.states import States

IDENTITY = bytes(range(32))
N_CTX = 4096


class UntestedStates(States):
    """The fake has no logits to compare."""

    def test(self, slot: int) -> None:
        self._context.truncate(slot, 0)


class Bench:
    """An engine whose steps take a second, and what its keeper wants sent."""

    def __init__(self, *, slots: int = 2, identity: bytes = IDENTITY, movable: bool = True) -> None:
        self.context = FakeContext(slots=slots, n_ctx=N_CTX, batch_size=256)
        self.context.can_copy = movable
        self.now = 0.0
        self.context.during_decode = self._second
        self.engine = Engine(
            self.context,
            FakeSamplers(),
            FakeVocab(),
            target_s=0.15,
            clock=lambda: self.now,
            cpu_clock=lambda: self.now,
            states=UntestedStates(self.context, identity),
        )
        self.keeper = self.engine.keeper
        self.keeper.want()
        self.deltas: list[Delta] = []
        self.sent: list[Any] = []
        self.states: list[tuple[Header, int]] = []

    def _second(self) -> None:
        self.now += 1.0

    def run(self, *, idle_only: bool = False) -> None:
        """As the loop does it, until there is nothing left to do.

        Args:
            idle_only: no time is found for saving while something runs.
        """
        for _ in range(10_000):
            if not (self.engine.busy or self.keeper.due):
                break
            if self.engine.busy:
                self.deltas += [delta for _, delta in self.engine.step()]
            if not (idle_only and self.engine.busy):
                self.keeper.save_one(busy=self.engine.busy)
            self._take()
        else:
            raise AssertionError("never at rest")
        self._take()

    def _take(self) -> None:
        for _, message, fd in self.keeper.out:
            self.sent.append(message)
            if fd is not None:
                self.states.append((state_file.read(fd), fd))
        self.keeper.out.clear()

    def answer(self, request: int) -> list[int]:
        return [t for delta in self.deltas if delta.request == request for t in delta.tokens]

    def cached(self, request: int) -> int:
        found = [d.finish for d in self.deltas if d.request == request and d.finish is not None]
        assert len(found) == 1
        return found[0].cached_tokens

    def taken(self) -> list[Taken]:
        return [message for message in self.sent if isinstance(message, Taken)]

    def close(self) -> None:
        for _, fd in self.states:
            os.close(fd)
