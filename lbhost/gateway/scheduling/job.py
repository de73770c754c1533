"""One request between its arrival and its end, as seen by the two sides that share it.

The dispatcher moves a Job through its states and puts text in; the HTTP side waits for text
and takes it out. Owns no timer, no queue and no socket. One consumer at most waits on a Job.
"""

from __future__ import annotations

import asyncio
import enum

import msgspec

from lbhost import wire
from lbhost.errors import LbhostError
from lbhost.gateway.scheduling import prefix_index


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
        """time.monotonic() of its first byte at this server."""
        self.chain = prefix_index.chain(work.prompt)
        self.order = 0.0
        """Place in the queue: smaller goes first."""
        self.expected_tokens = work.max_tokens
        self.state = JobState.QUEUED
        self.attempts = 0
        """Workers that were lost with it, plus the one it is on."""
        self.worker: int | None = None
        self.started: float | None = None
        """When it was last given to a worker."""
        self.first_token: float | None = None
        self.completion_tokens = 0
        self.delivered = False
        """Whether the client may have seen text: then it cannot start again elsewhere."""
        self.finish: wire.Finish | None = None
        self.error: LbhostError | None = None
        self.cancelled = False
        """Ended because nobody wants the answer any more."""
        self._text: list[str] = []
        self._text_size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._poked = False

    # --- the consumer's side ---------------------------------------------------------

    @property
    def over(self) -> bool:
        return self.state is JobState.OVER

    async def wait(self) -> None:
        """Return when the job is over, was poked or, if it streams, has text."""
        while not (self.over or self._poked or (self._text and self.work.stream)):
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

    def take(self) -> str:
        """All text that has come since the last time; counts as delivered."""
        if not self._text:
            return ""
        text = "".join(self._text)
        self._text.clear()
        self._text_size = 0
        self.delivered = True
        return text

    # --- the dispatcher's side -------------------------------------------------------

    @property
    def untaken(self) -> int:
        """Characters that wait for the consumer."""
        return self._text_size

    def put(self, text: str) -> None:
        if text:
            self._text.append(text)
            self._text_size += len(text)
            if self.work.stream:
                self._wake()

    def forget(self) -> None:
        """Back to before the first token: the text so far was for nobody's eyes."""
        assert not self.delivered
        self._text.clear()
        self._text_size = 0
        self.completion_tokens = 0
        self.first_token = None

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
