"""Queue, deadlines, cancellation, retries: which job is where, and how it gets on.

Owns every Job between submit and its end. *Decide, then do, then tell*: `_decide` is synchronous
and takes the slots, the writing to links comes after it, and whoever counts or logs is told
last and cannot disturb it. A slot is given back in one place only, `_release` or `_on_lost`,
when the worker says that the attempt ended or its link does.

Late binding: a job stays here until a worker has a free slot for it. The queue is ordered by
arrival plus predicted cost (at most MAX_OVERTAKEN_S of it), so that short requests pass long
ones and nothing waits for ever; between clients with keys, who has had less comes first
(fairness.py). Priority gets a head start; flex gets what nobody else wants, some
slots left over, and may wait as long as it may take. Behind a job that cannot be placed now,
others may go first.
Every wait has a limit: in the queue and in a worker the job's deadline, at the end the grace.

Which workers are READY is read from the board. That is routing only: a worker that has just
begun to drain refuses what still comes, and the request goes elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from random import Random

from lbhost import order, wire
from lbhost.config import Settings
from lbhost.errors import (
    ClientTimeoutError,
    DeadlineError,
    EngineError,
    LbhostError,
    NotReadyError,
    QueryOfDeathError,
    UnprocessableError,
    WorkerLostError,
)
from lbhost.gateway.scheduling import outgoing
from lbhost.gateway.scheduling.admission import Admission
from lbhost.gateway.scheduling.deadlines import Deadlines
from lbhost.gateway.scheduling.deltas import TextDelta
from lbhost.gateway.scheduling.job import Job, JobState, Work
from lbhost.gateway.scheduling.job_queue import JobQueue
from lbhost.gateway.scheduling.lender import LOOK_S, Lender
from lbhost.gateway.scheduling.mover import Mover
from lbhost.gateway.scheduling.moving import Reason
from lbhost.gateway.scheduling.observer import GuardedObserver, Observer, tell_later
from lbhost.gateway.scheduling.pace import Pace
from lbhost.gateway.scheduling.placer import Placer
from lbhost.gateway.scheduling.progress import Progress, queued, running
from lbhost.gateway.scheduling.readings import FRESH_NS
from lbhost.gateway.scheduling.router import Router
from lbhost.gateway.scheduling.sessions import Attempt, Outlook, Session, Sessions
from lbhost.gateway.scheduling.suspicion import Condemned, Death, Ends, Trust, settle, trust
from lbhost.gateway.scheduling.worker_link import OpenLink, WorkerLink
from lbhost.gateway.states.plane import Plane
from lbhost.gateway.states.purse import Purse

MAX_ATTEMPTS = 100
"""Workers that may be lost under a request before it is given up, however they ended."""

MAX_OVERTAKEN_S = 20.0
"""A request is passed only by those that arrive less than this after it."""

PRIORITY_AHEAD_S = 30.0
"""A priority request goes before all that arrived less than this earlier: it passes nearly
everybody, and the oldest still come to their turn however many of its kind there are."""

POLL_S = 0.02
"""While something is queued, the board is looked at so often: a worker may have become READY."""

NOT_READY_GRACE_S = 2.0
"""How long after the last worker went requests are still queued: a replacement takes 0.3 s."""

REJECT_HOLD_S = 0.05
"""A worker that refused a request is left alone so long: its state is about to change."""

MAX_UNTAKEN = 1 << 20
"""Characters (TextDelta.weight) of a stream that may wait for a client that reads too slowly; then
it is cut off. A plain answer is bounded by its tokens, and nobody could take it earlier."""

_REQUEUED_FIRST = -1e9

_FAILURES = (wire.FinishReason.ERROR, wire.FinishReason.FAILED)
_GOES_ON = (wire.FinishReason.REJECTED, wire.FinishReason.MOVED, wire.FinishReason.FAILED)
_DEADLY = "workers end or fail when they compute this request; it is not tried again"


class Dispatcher:
    """All requests of the gateway. Lives on one event loop; nothing here blocks."""

    def __init__(
        self,
        settings: Settings,
        sessions: Sessions,
        observer: Observer,
        *,
        rng: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        router: Router | None = None,
        open_link: OpenLink = WorkerLink.open,
        states: Plane | None = None,
        lender: Lender | None = None,
        move_for_speed: bool = True,
    ) -> None:
        """Of one model. `lender`: the one of all models; None: there is no other model."""
        self._settings = settings
        self._sessions = sessions
        self._observer = GuardedObserver(observer)
        self._ends = Ends()
        self._condemned = Condemned()
        self._router = router or Router(settings, sessions, rng or Random())
        self._clock = clock
        self._clock_ns = clock_ns
        self._open_link = open_link
        self._queue = JobQueue()
        self._pace = Pace()
        self._admission = Admission(settings, self._queue, self._pace, self._router, clock)
        self._jobs: dict[int, Job] = {}
        self._attempts: dict[int, Attempt] = {}
        self.states = states or Plane(Purse(0), sessions, clock)
        self._placer = Placer(sessions, self._queue, self._router, clock, self.states.look)
        self._mover = Mover(
            sessions, self._queue, self._router, clock, clock_ns, for_speed=move_for_speed
        )
        self._deadlines = Deadlines(self._on_deadline, clock)
        self._lender = lender or Lender(
            sessions.readings, sessions, enabled=settings.lend, clock=clock
        )
        self._poll: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None
        self._numbers = 0
        self._ready_at = -1e9
        self._idle = asyncio.Event()
        self._idle.set()
        self.stopping = False
        self.retiring = False
        """Another gateway takes what comes: a connection's next answer is its last."""

    def __repr__(self) -> str:
        return f"Dispatcher({self._sessions.in_flight} in flight, {len(self._queue)} queued)"

    @property
    def queue_depth(self) -> int:
        return len(self._queue)

    @property
    def oldest_wait_s(self) -> float | None:
        """How long the oldest queued request has waited for a worker; None when none waits."""
        since = self._queue.oldest()
        return None if since is None else max(0.0, self._clock() - since)

    @property
    def next_start_s(self) -> float | None:
        """Seconds that a request which came now is predicted to wait; None while none waits."""
        return self._admission.next_start_s()

    @property
    def in_flight(self) -> int:
        return self._sessions.in_flight

    @property
    def workers(self) -> int:
        """Workers with a link."""
        return self._sessions.workers

    @property
    def active(self) -> int:
        """Requests that have not ended."""
        return len(self._jobs)

    def adopt(self, settings: Settings) -> None:
        """Other settings from now on. What is queued or runs keeps the deadlines that it has."""
        self._settings = self._admission.settings = settings
        self._router.policy = settings.policy
        self._lender.enabled = settings.lend
        self._pump()

    # --- links -----------------------------------------------------------------------

    async def attach(self, fd: int, worker: int, epoch: int, states_fd: int | None = None) -> None:
        """A data link has come, and a states link. Raises OSError if a descriptor is none."""
        with contextlib.ExitStack() as unless_taken:
            if states_fd is not None:
                unless_taken.callback(os.close, states_fd)
            link = await self._open_link(fd, worker, epoch, self._on_step, self._on_lost)
            if not link.alive:  # `_on_lost` has come already
                return
            unless_taken.pop_all()
        if states_fd is not None:
            self.states.join(link, states_fd)
        old = self._sessions.current(worker)
        if old is not None and old.epoch == epoch:
            old.link.close()
        self._sessions.join(link)
        self._pump()

    def close(self) -> None:
        """Drop all links and timers; for the end of the process and of tests."""
        for link in self._sessions.links():
            link.close()
        self.states.close()
        self._deadlines.close()
        for timer in (self._poll, self._look):
            if timer is not None:
                timer.cancel()

    # --- the HTTP side ---------------------------------------------------------------

    def ready(self) -> bool:
        """Whether a request that comes now would find a worker."""
        return not self.stopping and self._outlook() is Outlook.OPEN

    def check_open(self, preparing: int = 0, client: str = "", own_preparing: int = 0) -> None:
        """Refuse early what `submit` would refuse.

        Args:
            preparing: requests about to be submitted.
            client: whose this one is. own_preparing: those of them that are the same client's.

        Raises:
            NotReadyError: shutting down, or no worker and none about to come.
            QueueFullError: the queue is at its limit.
        """
        if self.stopping:
            raise NotReadyError("the server is shutting down", retry_after_s=2)
        if self._outlook() is Outlook.CLOSED and not self._just_ready():
            raise NotReadyError("no worker is ready", retry_after_s=1)
        self._admission.check_depth(preparing)
        self._admission.check_client(client, preparing, own_preparing)

    def expected_tokens(self, work: Work) -> int:
        """Output tokens that an answer is believed to have."""
        return self._router.expected_tokens(work)

    def submit(
        self, work: Work, arrived: float, complete: float | None = None, *, again: bool = False
    ) -> Job:
        """Queue a request, and send it if a worker has room.

        Args:
            arrived: time.monotonic() of its head here. Its deadline and its time to first token
                count from then, whatever was done with it since.
            complete: time.monotonic() of its last byte, if that is later. Its place in the queue
                counts from then: nobody gets ahead by sending slowly.
            again: one more answer to the prompt of the job before.

        Raises:
            DeadlineError: all its time is gone already.
            TooLateError, TooSlowError: it cannot be done in time, by all that was measured.
            NotReadyError, QueueFullError: as check_open; flex may fill only a part of the queue;
                too many tokens, or too much work, are waiting.
            QueryOfDeathError: it has ended workers a while ago.
        """
        self.check_open(client=work.client)
        if self._condemned and self._condemned.holds(work.fingerprint, self._clock()):
            raise QueryOfDeathError(_DEADLY)
        self._admission.check_class(work)
        waited = self._clock() - arrived
        if waited >= self._settings.request_timeout_s:
            raise DeadlineError(
                f"{waited:.1f} s went before it could be queued, which is over the limit",
                retry_after_s=self._admission.wait_s(),
            )
        self._numbers += 1
        job = Job(self._numbers, work, arrived)
        job.expected_tokens = self._router.expected_tokens(work)
        self.states.look(job)
        job.cost_s = self._router.busy_cost_s(job, again=again)
        since = arrived if complete is None else complete
        alone_s = self._router.lonely_cost_s(job)
        job.order = since + min(alone_s, MAX_OVERTAKEN_S)
        if work.rank == order.PRIORITY:
            job.order -= PRIORITY_AHEAD_S
        job.place = job.order
        self._admission.check_work(job)
        self._admission.check_time(job, alone_s)
        self._jobs[job.number] = job
        self._idle.clear()
        self._enqueue(job)
        self._pump()
        return job

    def cancel(self, job: Job, error: LbhostError | None = None) -> None:
        """Nobody wants the answer any more, or it is an error. Harmless when it is over."""
        if not job.over:
            self._drop(job, error)

    def progress(self, job: Job) -> Progress:
        """How far a job is that is not over. Only informs."""
        attempt, now = self._attempts.get(job.number), self._clock()
        if attempt is None:
            return queued(
                job, self._admission.starts_in_s(job), self._router.lonely_cost_s(job), now
            )
        reading = self._sessions.readings.worker(attempt.session.worker)
        left = {} if reading is None else attempt.session.left(reading.progress)
        return running(attempt, left.get(attempt.number), now)

    async def drain(self, grace_s: float) -> None:
        """Take no new requests; return when all have ended, by force after `grace_s`."""
        self.stopping = True
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            tell_later("shutdown grace is over", cut_off=len(self._jobs))
        for job in list(self._jobs.values()):
            self._drop(job, NotReadyError("the server is shutting down", retry_after_s=2))

    # --- decide, then do -------------------------------------------------------------

    def _pump(self) -> None:
        """Send what can be sent, and come back later for the rest."""
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None
        attempts = self._decide(self._clock_ns())
        self._settle_cores()
        for attempt in attempts:
            self._send(attempt)
        self._mover.settle()
        if self._queue:
            self._give_up_hopeless()
        if self._queue:
            self._poll = asyncio.get_running_loop().call_later(POLL_S, self._pump)
        self._pace.waiting(bool(self._queue), self._clock())

    def _settle_cores(self) -> None:
        """Ask back what is about to be needed, lend what is not; again as long as anything runs."""
        self._lender.settle()
        if self._look is not None:
            self._look.cancel()
            self._look = None
        if self._sessions.in_flight:
            self._look = asyncio.get_running_loop().call_later(LOOK_S, self._look_again)

    def _look_again(self) -> None:
        self._settle_cores()
        self._mover.look()

    def worker_leaves(self) -> None:
        """The supervisor says that a worker's state has just changed so that its requests go."""
        asyncio.get_running_loop().call_later(FRESH_NS / 1e9, self._mover.look)

    def _decide(self, now_ns: int) -> list[Attempt]:
        """Which queued jobs go where, now. Their slots are taken when this returns."""
        if not self._queue:
            return []
        usable = self._sessions.usable(now_ns)
        if usable:
            self._ready_at = self._clock()
        attempts = self._placer.place(usable, now_ns, self._mover.coming_back())
        self._attempts.update((attempt.job.number, attempt) for attempt in attempts)
        return attempts

    def _send(self, attempt: Attempt) -> None:
        job = attempt.job
        attached = self.states.attach(attempt.session.link, attempt.number, job, attempt.own)
        self._deadlines.set(job, job.arrived + self._settings.request_timeout_s)
        attempt.session.link.send(wire.encode(outgoing.message(attempt, attached=attached)))
        self._observer.sent(attempt, self._clock())

    def _enqueue(self, job: Job) -> None:
        job.state = JobState.QUEUED
        job.queued = self._clock()
        self._queue.add(job)
        latest = job.arrived + self._settings.request_timeout_s
        if job.work.rank != order.FLEX and not job.begun:
            latest = min(latest, job.queued + self._settings.queue_timeout_s)
        self._deadlines.set(job, latest)

    def _requeue(self, job: Job, *, in_place: bool = False) -> None:
        """Back with what it has so far: to the front, or to the place that its arrival gave it."""
        del self._attempts[job.number]
        job.to_be_continued()
        if job.begun:
            job.expected_tokens = self._router.expected_tokens(job.work, job.completion_tokens)
        job.order = job.place if in_place else job.arrived + _REQUEUED_FIRST
        self._enqueue(job)

    # --- what workers say ------------------------------------------------------------

    def _on_step(self, link: WorkerLink, step: wire.FromWorker) -> None:
        session = self._sessions.of(link)
        if session is None:
            return
        if isinstance(step, wire.Vectors):
            self._on_vectors(session, step)
            return
        now = self._clock()
        released = False
        if any(delta.finish is not None for delta in step.deltas):
            self.states.read(link)  # what it has saved by now may be wanted at once
        for delta in step.deltas:
            attempt = session.attempts.get(delta.request)
            if attempt is None:
                continue
            job = attempt.job
            if delta.tokens:
                begins = attempt.first_token is None
                if begins:
                    attempt.step_s = delta.step_s
                    self._router.began(attempt, now)
                self._observer.tokens(attempt, len(delta.tokens), now)
                self._queue.charge(job, len(delta.tokens) * job.output_cost_s)
                attempt.last_token = now
                if not job.over and begins:
                    job.begin(now, delta.cached_tokens)
            if not job.over and (delta.tokens or delta.text or delta.prompt_logprobs):
                job.put(TextDelta(delta.text, delta.tokens, delta.logprobs, delta.prompt_logprobs))
                if job.work.stream and job.untaken > MAX_UNTAKEN:
                    self._drop(job, ClientTimeoutError("the client reads too slowly"))
            if delta.finish is not None:
                self._release(attempt, delta.finish)
                released = True
        if released:
            self._pump()

    def _on_vectors(self, session: Session, vectors: wire.Vectors) -> None:
        attempt = session.attempts.get(vectors.request)
        if attempt is None:
            return
        self._router.began(attempt, self._clock())
        attempt.vectors += vectors.values
        if vectors.finish is None:
            return
        if not attempt.job.over:
            attempt.job.vectors = attempt.vectors
        self._release(attempt, vectors.finish)
        self._pump()

    def _release(self, attempt: Attempt, finish: wire.Finish) -> None:
        """An attempt ended by the worker's word."""
        session, job = attempt.session, attempt.job
        if session.release(attempt.number) is None:
            return
        now = self._clock()
        self.states.released(session.link, attempt.number)
        reason, finish = finish.reason, job.as_one(finish, now)
        self._observer.released(attempt, finish)
        if reason is wire.FinishReason.REJECTED:
            session.held_until_ns = self._clock_ns() + int(REJECT_HOLD_S * 1e9)
        elif reason not in (wire.FinishReason.CANCELLED, wire.FinishReason.MOVED):
            session.count_outcome(reason in _FAILURES, now)
        if reason not in _GOES_ON:  # or it is about to take another place
            self._pace.freed(now)
        if job.over:
            return
        if reason is wire.FinishReason.REJECTED:
            job.attempts -= 1
            self._requeue(job)
        elif reason is wire.FinishReason.MOVED:
            if finish.prefill_s:
                job.cached_tokens = finish.cached_tokens
            job.attempts -= 1
            cause = attempt.moving or Reason.STOP
            self._requeue(job, in_place=cause is Reason.PRIORITY)
            self._observer.moved(job, cause)
        elif reason is wire.FinishReason.CANCELLED:
            # Not at our word, or the job were over.
            self._lost(job, None)
        elif reason is wire.FinishReason.FAILED:
            link, alone = session.link, finish.alone
            self._lost(job, Death(link.worker, link.epoch, alone, now, counts=True))
        elif reason is wire.FinishReason.ERROR:
            why = finish.error or "unknown reason"
            self._end(job, error=EngineError(f"the engine gave up on this request: {why}"))
        elif reason is wire.FinishReason.GRAMMAR:
            message = f"the answer's grammar cannot be followed any further: {finish.error}"
            self._end(job, error=UnprocessableError(message))
        else:
            self._router.learn(attempt, finish, now)
            self._end(job, finish=finish)

    def _on_lost(self, link: WorkerLink) -> None:
        attempts = self._sessions.leave(link)
        self._lender.forget(link)
        self.states.leave(link)
        if attempts:
            attempts[0].session.tally.errors += len(attempts)
        now, alone = self._clock(), len(attempts) == 1
        for attempt in attempts:
            if not attempt.job.over:
                self._lost(attempt.job, self._ends.death(link.worker, link.epoch, now, alone=alone))
        self._pump()
        if attempts:
            count = len(attempts)
            tell_later("worker lost", worker=link.worker, epoch=link.epoch, in_flight=count)

    def worker_ended(self, worker: int, epoch: int, by_its_work: bool) -> None:
        """The supervisor says that a process has ended; its link ends about now."""
        self._ends.add(worker, epoch, by_its_work)
        self.states.ended(worker, epoch, by_its_work)
        now = self._clock()
        waiting = [
            job
            for job in self._jobs.values()
            if settle(job.deaths, worker, epoch, now, by_its_work)
        ]
        for job in waiting:
            self._judge(job)
        if waiting:
            self._pump()

    def _judge(self, job: Job) -> None:
        """End a query of death, and all that wait with the same prompt."""
        now = self._clock()
        if job.state is not JobState.QUEUED or trust(job.deaths, now) is not Trust.NOWHERE:
            return
        fingerprint = job.work.fingerprint
        self._condemned.add(fingerprint, now)
        workers = [f"{death.worker}.{death.epoch}" for death in job.deaths if death.counts]
        tell_later("query of death", fingerprint=fingerprint, workers=workers)
        for one in self._queue:
            if one.work.prompt == job.work.prompt:
                self._drop(one, QueryOfDeathError(_DEADLY))

    def _lost(self, job: Job, death: Death | None) -> None:
        """Its worker is gone: it goes on elsewhere, unless it is the reason."""
        if death is not None:
            job.deaths.append(death)
        if job.attempts >= MAX_ATTEMPTS:
            message = f"{job.attempts} workers died while they had this request"
            self._end(job, error=WorkerLostError(message, retry_after_s=1))
        else:
            self._requeue(job)
            self._observer.retried(job)
            self._judge(job)

    # --- ends ------------------------------------------------------------------------

    def _drop(self, job: Job, error: LbhostError | None) -> None:
        """End a job early, wherever it is. Its slot comes back when the worker says so."""
        if job.state is JobState.QUEUED:
            self._queue.remove(job)
            self._pace.waiting(bool(self._queue), self._clock())
        else:
            attempt = self._attempts[job.number]
            attempt.session.link.send(wire.encode(wire.Cancel(attempt.number)))
        self._end(job, error=error)

    def _end(
        self, job: Job, *, finish: wire.Finish | None = None, error: LbhostError | None = None
    ) -> None:
        self._deadlines.clear(job)
        self._attempts.pop(job.number, None)
        del self._jobs[job.number]
        job.end(finish, error)
        if not self._jobs:
            self._idle.set()
        self._observer.ended(job, self._clock())

    def _on_deadline(self, job: Job) -> None:
        waited = self._clock() - job.arrived
        if job.state is JobState.RUNNING:
            assert job.worker is not None
            self._sessions.tally(job.worker).timeouts += 1
            message = f"not done after {waited:.1f} s, which is the limit"
        else:
            message = f"no worker had room within {waited:.1f} s"
        self._drop(job, DeadlineError(message, retry_after_s=self._admission.wait_s()))

    def _give_up_hopeless(self) -> None:
        """Nobody will come for what is queued: say so instead of letting it time out."""
        if self._outlook() is not Outlook.CLOSED or self._just_ready():
            return
        now = self._clock()
        for job in self._queue:
            if now - job.queued >= NOT_READY_GRACE_S and not self._sessions.expected():
                self._drop(job, NotReadyError("no worker is ready", retry_after_s=1))

    # --- estimates -------------------------------------------------------------------

    def _outlook(self) -> Outlook:
        outlook = self._sessions.outlook(self._clock_ns())
        if outlook is Outlook.OPEN:
            self._ready_at = self._clock()
        return outlook

    def _just_ready(self) -> bool:
        return self._clock() - self._ready_at < NOT_READY_GRACE_S
