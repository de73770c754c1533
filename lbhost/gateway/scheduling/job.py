"""One request between its arrival and its end, as seen by the two sides that share it.

The dispatcher moves a Job through its states and puts deltas in; the HTTP side waits for text
and takes them out. A Job keeps all its tokens, so that another worker could go on with it.
Owns no timer, no queue and no socket. One consumer at most waits on a Job.
"""

from __future__ import annotations

import array
import asyncio
import enum

import msgspec

from lbhost import order, wire
from lbhost.errors import LbhostError
from lbhost.gateway.scheduling import policy, prefix_index
from lbhost.gateway.scheduling.deltas import Delta
from lbhost.gateway.states.store import Match


class Work(msgspec.Struct, frozen=True):
    """What a request asks of a worker; all checked, tokens counted."""

    prompt: bytes
    """wire.pack_tokens."""
    prompt_tokens: int
    max_tokens: int
    sampling: wire.Sampling
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    stream: bool = False
    rank: int = order.DEFAULT
    """Its class; see lbhost/order.py."""
    scope: int = 0
    """Who shares KV with whom; see wire.Submit."""


class JobState(enum.Enum):
    """QUEUED -> RUNNING -> OVER; RUNNING -> QUEUED when its worker was lost or refused it."""

    QUEUED = "queued"
    RUNNING = "running"
    OVER = "over"


class Job:
    """A request on its way. Fields are the dispatcher's to write, everybody's to read."""

    def __init__(self, number: int, work: Work, arrived: float) -> None:
        self.number = number
        self.work = work
        self.arrived = arrived
        """time.monotonic() of its head at this server."""
        self.chain = prefix_index.chain(work.prompt, work.scope)
        self.match: Match | None = None
        """The KV state that holds most of it, as of version `match_version` of the store."""
        self.match_version = -1
        self.stored = 0
        """Tokens that this state spares, less those that could be computed while it is copied."""
        self.long = work.prompt_tokens >= policy.LONG_PROMPT
        self.order = 0.0
        """Place in the queue: smaller goes first."""
        self.queued = arrived
        """When it began to wait for a worker, the last time it did."""
        self.expected_tokens = work.max_tokens
        self.state = JobState.QUEUED
        self.attempts = 0
        """Workers that were lost with it, plus the one it is on."""
        self.worker: int | None = None
        self.started: float | None = None
        """When it was last given to a worker."""
        self.first_token: float | None = None
        """When its first token came, be it from a worker that was lost later."""
        self.tokens = array.array("i")
        """All output tokens that its present attempt has produced."""
        self.delivered_tokens = 0
        """How many of them the consumer has taken."""
        self.delivered = False
        """Whether the client may have seen text: then it cannot start again elsewhere."""
        self.finish: wire.Finish | None = None
        self.error: LbhostError | None = None
        self.cancelled = False
        """Ended because nobody wants the answer any more."""
        self._deltas: list[Delta] = []
        self._untaken = 0
        self._waiter: asyncio.Future[None] | None = None
        self._poked = False

    # --- the consumer's side ---------------------------------------------------------

    @property
    def over(self) -> bool:
        return self.state is JobState.OVER

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens)

    async def wait(self) -> None:
        """Return when the job is over, was poked or, if it streams, has text."""
        while not (self.over or self._poked or (self._untaken and self.work.stream)):
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._poked = False

    def poke(self) -> None:
        """Wake the consumer although nothing has happened (a ping is due)."""
        self._poked = True
        self._wake()

    def take(self) -> list[Delta]:
        """What has come since the last time; counts as delivered."""
        deltas, self._deltas = self._deltas, []
        self.delivered = self.delivered or self._untaken > 0
        self._untaken = 0
        self.delivered_tokens += sum(len(delta.tokens) for delta in deltas)
        return deltas

    # --- the dispatcher's side -------------------------------------------------------

    @property
    def untaken(self) -> int:
        """Characters that wait for the consumer."""
        return self._untaken

    def put(self, delta: Delta) -> None:
        self._deltas.append(delta)
        self.tokens.extend(delta.tokens)
        if delta.text:
            self._untaken += len(delta.text)
            if self.work.stream:
                self._wake()

    def forget(self) -> None:
        """Back to before the first token: nobody has seen any of the text so far."""
        assert not self.delivered
        self._deltas.clear()
        self._untaken = 0
        self.delivered_tokens = 0
        del self.tokens[:]

    def end(self, finish: wire.Finish | None = None, error: LbhostError | None = None) -> None:
        """Into OVER, with a Finish, an error, or neither (cancelled)."""
        assert not self.over
        self.state = JobState.OVER
        self.finish = finish
        self.error = error
        self.cancelled = finish is None and error is None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
