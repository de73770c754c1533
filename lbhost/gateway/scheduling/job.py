"""One request between its arrival and its end, as seen by the two sides that share it.

The dispatcher moves a Job through its states and puts deltas in; the HTTP side waits for text
and takes them out. A Job keeps all its tokens, so that any worker can go on with it.
Owns no timer, no queue and no socket. One consumer at most waits on a Job.
"""

from __future__ import annotations

import array
import asyncio
import enum
import hashlib
import math
from collections.abc import Callable

import msgspec

from lbhost import order, wire
from lbhost.errors import LbhostError
from lbhost.gateway.scheduling import policy, prefix_index
from lbhost.gateway.scheduling.deltas import Delta
from lbhost.gateway.scheduling.suspicion import Death
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
    logprobs: int | None = None
    """As in wire.Submit."""
    prompt_logprobs: bool = False
    grammar: str = ""
    """What the answer must follow, as wire.Submit has it."""
    shown: tuple[int, ...] = ()
    """As in wire.Submit."""
    scope: int = 0
    """Who shares KV with whom; see wire.Submit."""
    client: str = ""
    """The name of the API key that it came with; empty: it has none."""
    weight: float = 1.0
    """That client's part of a full box, beside the others'."""
    inputs: tuple[int, ...] = ()
    """Tokens of each input in `prompt` that is to become a vector. Empty: text is wanted."""
    adapter: int = 0
    """The LoRA adapter that it is computed with; see wire.Submit."""
    adapter_name: str = ""
    """What it was asked for by; empty: there is none."""

    @property
    def fingerprint(self) -> str:
        """Names the prompt in logs, without telling what it says, and with its adapter."""
        whole = self.prompt + (b"adapter %d" % self.adapter if self.adapter else b"")
        return hashlib.sha256(whole).hexdigest()[:16]


class JobState(enum.Enum):
    """QUEUED -> RUNNING -> OVER; RUNNING -> QUEUED when its worker is lost or gives it back."""

    QUEUED = "queued"
    RUNNING = "running"
    OVER = "over"


class Bell:
    """Where one consumer waits for one job or several."""

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None
        self._rung = False
        self.served = -math.inf
        """When a worker last let go of one of the jobs; the dispatcher's to write."""

    async def wait(self, ready: Callable[[], bool]) -> None:
        """Return when it is ready, or was rung. `ready` is asked again whenever it is woken."""
        while not (ready() or self._rung):
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._rung = False

    def wake(self) -> None:
        """Something has happened."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def ring(self) -> None:
        """Have the consumer return although nothing has happened (a ping is due)."""
        self._rung = True
        self.wake()


class Job:
    """A request on its way. Fields are the dispatcher's to write, everybody's to read."""

    def __init__(self, number: int, work: Work, arrived: float) -> None:
        self.number = number
        self.work = work
        self.arrived = arrived
        """time.monotonic() of its head at this server."""
        self.chain = () if work.inputs else prefix_index.chain(work.prompt, work.scope)
        """Of all that a worker has to know before it goes on: the output so far included."""
        self.match: Match | None = None
        """The KV state that holds most of it, as of version `match_version` of the store."""
        self.match_version = -1
        self.stored = 0
        """Tokens that this state spares, less those that could be computed while it is copied."""
        self.long = work.prompt_tokens >= policy.LONG_PROMPT
        self.order = 0.0
        """Place in the queue: smaller goes first."""
        self.place = 0.0
        """The one that its arrival gave it."""
        self.moved_at = -math.inf
        """When it was last asked back from a worker."""
        self.queued = arrived
        """When it began to wait for a worker, the last time it did."""
        self.expected_tokens = work.max_tokens
        """Output tokens still to come, by what is known of such requests."""
        self.cost_s = 0.0
        """Seconds of a busy worker that it is believed to take, of those that it waits for."""
        self.booked_s = 0.0
        """What its model's work is believed to be more because of it; see Register.work_s."""
        self.output_cost_s = 0.0
        """What its client is charged for an output token; see fairness.py."""
        self.state = JobState.QUEUED
        self.attempts = 0
        """Workers that were lost with it, plus the one it is on."""
        self.given = 0
        """How often it was given to a worker, be it lost, moved or refused then."""
        self.deaths: list[Death] = []
        """Workers' processes that ended while they had it."""
        self.worker: int | None = None
        self.started: float | None = None
        """When it was last given to a worker."""
        self.first_token: float | None = None
        """When its first token came, be it from a worker that was lost later."""
        self.tokens = array.array("i")
        """All its output tokens, whichever workers produced them."""
        self.delivered_tokens = 0
        """How many of them the consumer has taken."""
        self.vectors = b""
        """Its inputs' vectors; see wire.Vectors."""
        self.prefill_s = 0.0
        """From being given to a worker to its first token, in that worker."""
        self.cached_tokens: int | None = None
        """Prompt tokens that the first worker that began it had cached; None while none has said
        so. What that computed is no cache to this request, wherever it goes on."""
        self.resumed = False
        """Whether its present worker goes on with what others have begun to answer."""
        self.finish: wire.Finish | None = None
        self.error: LbhostError | None = None
        self.cancelled = False
        """Ended because nobody wants the answer any more."""
        self._deltas: list[Delta] = []
        self._untaken = 0
        self._scored = 0
        """Prompt tokens whose log-probabilities have come."""
        self._scored_again = 0
        """Of how many the present worker will tell them once more."""
        self.bell = Bell()
        """Wakes the consumer; jobs that have one consumer share one."""

    # --- the consumer's side ---------------------------------------------------------

    @property
    def over(self) -> bool:
        return self.state is JobState.OVER

    @property
    def completion_tokens(self) -> int:
        return len(self.tokens)

    @property
    def begun(self) -> bool:
        """Whether it has output. Does not change while the job is queued."""
        return bool(self.tokens)

    @property
    def rank(self) -> int:
        """Its prompt's in a worker; see order.py."""
        return order.rank_of(self.work.rank, begun=self.begun)

    @property
    def scored(self) -> bool:
        """Whether its worker has to tell how probable the prompt's tokens are."""
        return self.work.prompt_logprobs and not self.tokens

    @property
    def tokens_to_come(self) -> int:
        """Prompt and expected output."""
        return self.known_tokens + self.expected_tokens

    @property
    def known_tokens(self) -> int:
        """What a worker has to have computed before it goes on: prompt and output so far."""
        return self.work.prompt_tokens + len(self.tokens)

    async def wait(self) -> None:
        """Return when the job is over, its bell was rung or, if it streams, has text."""
        await self.bell.wait(lambda: self.over or self.has_news)

    @property
    def has_news(self) -> bool:
        """Whether a stream's client has something to see that it has not got yet."""
        return self._untaken > 0 and self.work.stream

    def take(self) -> list[Delta]:
        """What has come since the last time; counts as delivered."""
        deltas, self._deltas = self._deltas, []
        self._untaken = 0
        self.delivered_tokens += sum(len(delta.tokens) for delta in deltas)
        return deltas

    # --- the dispatcher's side -------------------------------------------------------

    @property
    def untaken(self) -> int:
        """What waits for the consumer, in characters; see TextDelta.weight."""
        return self._untaken

    def put(self, delta: Delta) -> None:
        if delta.prompt_logprobs:
            delta = self._unscored(delta)
        self._deltas.append(delta)
        self.tokens.extend(delta.tokens)
        self._untaken += delta.weight
        if self.has_news:
            self.bell.wake()

    def _unscored(self, delta: Delta) -> Delta:
        """Without what an earlier worker has told of the prompt."""
        again = min(self._scored_again, len(delta.prompt_logprobs))
        self._scored_again -= again
        self._scored += len(delta.prompt_logprobs) - again
        rest = delta.prompt_logprobs[again:]
        return msgspec.structs.replace(delta, prompt_logprobs=rest)

    def begin(self, now: float, cached_tokens: int | None) -> None:
        """The first token has come from a worker, which had so much of the prompt."""
        if self.first_token is None:
            self.first_token = now
            self.prefill_s = now - (self.arrived if self.started is None else self.started)
        if self.cached_tokens is None:
            self.cached_tokens = cached_tokens

    def as_one(self, finish: wire.Finish, now: float) -> wire.Finish:
        """What its last worker says of it, as if that had done all of it."""
        if self.cached_tokens is not None:
            finish = msgspec.structs.replace(finish, cached_tokens=self.cached_tokens)
        if self.resumed and self.first_token is not None:
            finish = msgspec.structs.replace(
                finish, prefill_s=self.prefill_s, decode_s=now - self.first_token
            )
        return finish

    def done(self) -> bytes:
        """Its output so far, packed: what another worker needs to go on."""
        return wire.pack_tokens(self.tokens.tolist())

    def known(self) -> bytes:
        """Prompt and output so far, packed."""
        return self.work.prompt + self.done() if self.tokens else self.work.prompt

    def to_be_continued(self) -> None:
        """It goes back into the queue; whoever gets it next goes on from here."""
        self.worker = None
        self.match_version = -1
        self._scored_again = self._scored
        self.resumed = self.begun
        if self.tokens:
            self.chain = prefix_index.chain(self.known(), self.work.scope)

    def end(self, finish: wire.Finish | None = None, error: LbhostError | None = None) -> None:
        """Into OVER, with a Finish, an error, or neither (cancelled)."""
        assert not self.over
        self.state = JobState.OVER
        self.finish = finish
        self.error = error
        self.cancelled = finish is None and error is None
        self.bell.wake()
