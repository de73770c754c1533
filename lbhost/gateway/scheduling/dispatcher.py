"""All requests of one model: takes them in, has them sent where they are done soonest.

Owns the parts: the register of jobs and their states, what workers report, what becomes of jobs
when workers are lost, and the pump that brings them forward. *Decide, then do, then tell*:
`_decide` is synchronous and takes the slots, the writing to links comes after it, and whoever
counts or logs is told last and cannot disturb it.

Late binding: a job stays here until a worker has a free slot for it. The queue is ordered by
arrival plus predicted cost (arrivals.py); between clients with keys, who has had less comes
first (fairness.py). Priority gets a head start; flex gets what nobody else wants, some
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
    DeadlineError,
    LbhostError,
    NotReadyError,
)
from lbhost.gateway.scheduling import outgoing
from lbhost.gateway.scheduling.admission import Admission
from lbhost.gateway.scheduling.arrivals import Arrivals
from lbhost.gateway.scheduling.job import Job, Work
from lbhost.gateway.scheduling.job_queue import JobQueue
from lbhost.gateway.scheduling.lender import Lender
from lbhost.gateway.scheduling.losses import Losses
from lbhost.gateway.scheduling.mover import Mover
from lbhost.gateway.scheduling.observer import GuardedObserver, Observer, tell_later
from lbhost.gateway.scheduling.pace import Pace
from lbhost.gateway.scheduling.placer import Placer
from lbhost.gateway.scheduling.progress import Progress, queued, running
from lbhost.gateway.scheduling.readiness import Outlook, Readiness
from lbhost.gateway.scheduling.register import Register
from lbhost.gateway.scheduling.reports import Reports
from lbhost.gateway.scheduling.router import Router
from lbhost.gateway.scheduling.sessions import Attempt, Sessions
from lbhost.gateway.scheduling.upkeep import Upkeep
from lbhost.gateway.scheduling.worker_link import OpenLink, WorkerLink
from lbhost.gateway.states.plane import Plane
from lbhost.gateway.states.purse import Purse

POLL_S = 0.02
"""While something is queued, the board is looked at so often: a worker may have become READY."""


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
        self._sessions = sessions
        self._observer = GuardedObserver(observer)
        self._router = router or Router(settings, sessions, rng or Random())
        self._clock = clock
        self._clock_ns = clock_ns
        self._open_link = open_link
        self._queue = JobQueue()
        self._pace = Pace()
        self._readiness = Readiness(sessions, clock, clock_ns)
        self._admission = Admission(settings, self._queue, self._pace, self._router, clock)
        self._register = Register(
            sessions,
            self._queue,
            self._pace,
            self._router,
            self._admission,
            self._observer,
            clock,
        )
        self._losses = Losses(self._register, self._queue, self._observer, clock)
        self.states = states or Plane(Purse(0), sessions, clock)
        self._arrivals = Arrivals(self._router, self.states.look)
        self._reports = Reports(
            sessions,
            self._queue,
            self._register,
            self._losses,
            self._router,
            self._pace,
            self.states,
            self._observer,
            clock,
            clock_ns,
        )
        self._placer = Placer(sessions, self._queue, self._router, clock, self.states.look)
        self._mover = Mover(
            sessions, self._queue, self._router, clock, clock_ns, for_speed=move_for_speed
        )
        self._lender = lender or Lender(
            sessions.readings, sessions, enabled=settings.lend, clock=clock
        )
        self._upkeep = Upkeep(sessions, self._lender, self._mover)
        self._poll: asyncio.TimerHandle | None = None
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
    def work_s(self) -> float:
        """See Register.work_s."""
        return self._register.work_s

    @property
    def backlog_s(self) -> float:
        """The part of it that waits."""
        return self._queue.cost_s(order.FLEX)

    @property
    def in_flight(self) -> int:
        return self._sessions.in_flight

    @property
    def asleep(self) -> bool:
        """Whether its model has no workers until a request comes."""
        return self._sessions.sleep.asleep()

    @property
    def workers(self) -> int:
        """Workers with a link."""
        return self._sessions.workers

    @property
    def active(self) -> int:
        """Requests that have not ended."""
        return len(self._register.jobs)

    def adopt(self, settings: Settings) -> None:
        """Other settings from now on. What is queued or runs keeps the deadlines that it has."""
        self._admission.settings = settings
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
        self._register.close()
        self._upkeep.close()
        if self._poll is not None:
            self._poll.cancel()

    # --- the HTTP side ---------------------------------------------------------------

    def ready(self) -> bool:
        """Whether a request that comes now would find a worker, or wake one."""
        return not self.stopping and (self._readiness.outlook() is Outlook.OPEN or self.asleep)

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
        if self._readiness.closed:
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
        self._losses.check(work)
        self._admission.check_class(work)
        waited = self._clock() - arrived
        if waited >= self._admission.settings.request_timeout_s:
            raise DeadlineError(
                f"{waited:.1f} s went before it could be queued, which is over the limit",
                retry_after_s=self._admission.wait_s(),
            )
        job, alone_s = self._arrivals.job(work, arrived, complete, again=again)
        self._admission.check_work(job)
        self._admission.check_time(job, alone_s)
        self._register.add(job)
        self._pump()
        return job

    def cancel(self, job: Job, error: LbhostError | None = None) -> None:
        """Nobody wants the answer any more, or it is an error. Harmless when it is over."""
        if not job.over:
            self._register.drop(job, error)

    def progress(self, job: Job) -> Progress:
        """How far a job is that is not over. Only informs."""
        attempt, now = self._register.attempts.get(job.number), self._clock()
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
                await self._register.idle.wait()
        except TimeoutError:
            tell_later("shutdown grace is over", cut_off=len(self._register.jobs))
        for job in list(self._register.jobs.values()):
            self._register.drop(job, NotReadyError("the server is shutting down", retry_after_s=2))

    # --- decide, then do -------------------------------------------------------------

    def _pump(self) -> None:
        """Send what can be sent, and come back later for the rest."""
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None
        attempts = self._decide(self._clock_ns())
        self._upkeep.settle_cores()
        for attempt in attempts:
            self._send(attempt)
        self._mover.settle()
        if self._queue:
            self._sessions.sleep.look(self._clock())
            self._give_up_hopeless()
        if self._queue:
            self._poll = asyncio.get_running_loop().call_later(POLL_S, self._pump)
        self._pace.waiting(bool(self._queue), self._clock())

    def worker_leaves(self) -> None:
        """The supervisor says that a worker's state has just changed so that its requests go."""
        self._upkeep.worker_leaves()

    def _decide(self, now_ns: int) -> list[Attempt]:
        """Which queued jobs go where, now. Their slots are taken when this returns."""
        if not self._queue:
            return []
        usable = self._sessions.usable(now_ns)
        if usable:
            self._readiness.seen()
        attempts = self._placer.place(usable, now_ns, self._mover.coming_back())
        self._register.placed(attempts)
        return attempts

    def _send(self, attempt: Attempt) -> None:
        job = attempt.job
        attached = self.states.attach(attempt.session.link, attempt.number, job, attempt.own)
        attempt.session.link.send(wire.encode(outgoing.message(attempt, attached=attached)))
        self._observer.sent(attempt, self._clock())

    # --- what workers say ------------------------------------------------------------

    def _on_step(self, link: WorkerLink, step: wire.FromWorker) -> None:
        if self._reports.take(link, step):
            self._pump()

    def _on_lost(self, link: WorkerLink) -> None:
        attempts = self._sessions.leave(link)
        self._lender.forget(link)
        self.states.leave(link)
        if attempts:
            attempts[0].session.tally.errors += len(attempts)
        self._losses.of_link(link.worker, link.epoch, attempts)
        self._pump()
        if attempts:
            count = len(attempts)
            tell_later("worker lost", worker=link.worker, epoch=link.epoch, in_flight=count)

    def worker_ended(self, worker: int, epoch: int, by_its_work: bool) -> None:
        """The supervisor says that a process has ended; its link ends about now."""
        self.states.ended(worker, epoch, by_its_work)
        if self._losses.process_ended(worker, epoch, by_its_work):
            self._pump()

    def _give_up_hopeless(self) -> None:
        """Nobody will come for what is queued: say so instead of letting it time out."""
        if not self._readiness.closed:
            return
        for job in self._queue:
            if self._readiness.hopeless(job.queued):
                self._register.drop(job, NotReadyError("no worker is ready", retry_after_s=1))
