"""Which job is where: every change of a job's state between its submit and its end.

Owns the jobs, the attempts of those that run, and their deadlines. Decides nothing; the dispatcher
and those that hear of workers say what becomes of whom.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from lbhost import order, wire
from lbhost.errors import DeadlineError, LbhostError
from lbhost.gateway.scheduling.admission import Admission
from lbhost.gateway.scheduling.deadlines import Deadlines
from lbhost.gateway.scheduling.job import Job, JobState
from lbhost.gateway.scheduling.job_queue import JobQueue
from lbhost.gateway.scheduling.observer import GuardedObserver
from lbhost.gateway.scheduling.pace import Pace
from lbhost.gateway.scheduling.router import Router
from lbhost.gateway.scheduling.sessions import Attempt, Sessions

_REQUEUED_FIRST = -1e9


class Register:
    """See the module."""

    def __init__(
        self,
        sessions: Sessions,
        queue: JobQueue,
        pace: Pace,
        router: Router,
        admission: Admission,
        observer: GuardedObserver,
        clock: Callable[[], float],
    ) -> None:
        """`admission` has the settings in force."""
        self._sessions = sessions
        self._queue = queue
        self._pace = pace
        self._router = router
        self._admission = admission
        self._observer = observer
        self._clock = clock
        self._deadlines = Deadlines(self._on_deadline, clock)
        self.jobs: dict[int, Job] = {}
        """All that have not ended, by number."""
        self.attempts: dict[int, Attempt] = {}
        """Of those that a worker has, by the job's number."""
        self.work_s = 0.0
        """What all that has come takes, in seconds of a worker that has all its slots taken: as
        predicted when it came, put right when it ends."""
        self.idle = asyncio.Event()
        """Whether there are none."""
        self.idle.set()

    def add(self, job: Job) -> None:
        """A new one, which waits."""
        self.jobs[job.number] = job
        job.booked_s = job.cost_s
        self.work_s += job.booked_s
        self.idle.clear()
        self._enqueue(job)

    def placed(self, attempts: Iterable[Attempt]) -> None:
        """These have left the queue for a worker's slots."""
        for attempt in attempts:
            job = attempt.job
            self.attempts[job.number] = attempt
            self._deadlines.set(job, job.arrived + self._admission.settings.request_timeout_s)

    def requeue(self, job: Job, *, in_place: bool = False) -> None:
        """Back with what it has so far: to the front, or to the place that its arrival gave it."""
        del self.attempts[job.number]
        job.bell.served = self._clock()
        job.to_be_continued()
        if job.begun:
            job.expected_tokens = self._router.expected_tokens(job.work, job.completion_tokens)
        job.order = job.place if in_place else job.arrived + _REQUEUED_FIRST
        self._enqueue(job)

    def drop(self, job: Job, error: LbhostError | None) -> None:
        """End a job early, wherever it is. Its slot comes back when the worker says so."""
        if job.state is JobState.QUEUED:
            self._queue.remove(job)
            self._pace.waiting(bool(self._queue), self._clock())
        else:
            attempt = self.attempts[job.number]
            attempt.session.link.send(wire.encode(wire.Cancel(attempt.number)))
        self.end(job, error=error)

    def end(
        self, job: Job, *, finish: wire.Finish | None = None, error: LbhostError | None = None
    ) -> None:
        """With an answer, an error, or neither: nobody wants it any more."""
        self._deadlines.clear(job)
        if self.attempts.pop(job.number, None) is not None:
            job.bell.served = self._clock()
        del self.jobs[job.number]
        self.work_s += self._router.spent_s(job) - job.booked_s
        job.end(finish, error)
        if not self.jobs:
            self.idle.set()
        self._observer.ended(job, self._clock())

    def close(self) -> None:
        """No deadline comes any more."""
        self._deadlines.close()

    def _enqueue(self, job: Job) -> None:
        settings = self._admission.settings
        job.state = JobState.QUEUED
        job.queued = self._clock()
        self._queue.add(job)
        latest = job.arrived + settings.request_timeout_s
        if _within_queue_timeout(job):
            latest = min(latest, job.queued + settings.queue_timeout_s)
        self._deadlines.set(job, latest)

    def _put_off(self, job: Job) -> bool:
        """Whether a job that waits has a later deadline: its model has slept meanwhile, or workers
        had others of its request, which has begun by that."""
        if job.state is not JobState.QUEUED or not _within_queue_timeout(job):
            return False
        now, settings = self._clock(), self._admission.settings
        awake_since = self._sessions.sleep.awake_since(job.queued, now)
        since = max(awake_since, self._had_others(job, now))
        if since <= job.queued:
            return False
        latest = since + settings.queue_timeout_s
        latest = min(latest, job.arrived + settings.request_timeout_s)
        if latest <= now:
            return False
        self._deadlines.set(job, latest)
        return True

    def _had_others(self, job: Job, now: float) -> float:
        """When a worker last had a job of the same request: now, if one has."""
        if any(one.job.bell is job.bell for one in self.attempts.values()):
            return now
        return job.bell.served

    def _on_deadline(self, job: Job) -> None:
        if self._put_off(job):
            return
        waited = self._clock() - job.arrived
        if job.state is JobState.RUNNING:
            assert job.worker is not None
            self._sessions.tally(job.worker).timeouts += 1
            message = f"not done after {waited:.1f} s, which is the limit"
        else:
            message = f"no worker had room within {waited:.1f} s"
        self.drop(job, DeadlineError(message, retry_after_s=self._admission.wait_s()))


def _within_queue_timeout(job: Job) -> bool:
    """Whether the queue timeout holds for it: flex waits as long as it may take, and what has begun
    was with a worker already."""
    return job.work.rank != order.FLEX and not job.begun
