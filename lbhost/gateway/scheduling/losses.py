"""What becomes of jobs whose workers are lost or fail: they go on elsewhere, or are to blame.

Owns what is known of ended processes and of condemned prompts; suspicion.py has the rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lbhost.errors import LbhostError, QueryOfDeathError, WorkerLostError
from lbhost.gateway.scheduling.job import Job, JobState, Work
from lbhost.gateway.scheduling.job_queue import JobQueue
from lbhost.gateway.scheduling.observer import GuardedObserver, tell_later
from lbhost.gateway.scheduling.register import Register
from lbhost.gateway.scheduling.sessions import Attempt
from lbhost.gateway.scheduling.suspicion import Condemned, Death, Ends, Trust, settle, trust

MAX_ATTEMPTS = 100
"""Workers that may be lost under a request before it is given up, however they ended."""


class Losses:
    """See the module."""

    def __init__(
        self,
        register: Register,
        queue: JobQueue,
        observer: GuardedObserver,
        clock: Callable[[], float],
    ) -> None:
        self._register = register
        self._queue = queue
        self._observer = observer
        self._clock = clock
        self._ends = Ends()
        self._condemned = Condemned()

    def check(self, work: Work) -> None:
        """Raises QueryOfDeathError: this prompt has ended workers a while ago."""
        if self._condemned and self._condemned.holds(work.fingerprint, self._clock()):
            raise _deadly()

    def of_link(self, worker: int, epoch: int, attempts: Sequence[Attempt]) -> None:
        """A worker's link has ended, with these attempts in it."""
        now, alone = self._clock(), len(attempts) == 1
        for attempt in attempts:
            if not attempt.job.over:
                self.lost(attempt.job, self._ends.death(worker, epoch, now, alone=alone))

    def process_ended(self, worker: int, epoch: int, by_its_work: bool) -> bool:
        """The supervisor says how a process ended. Whether jobs have waited for that."""
        self._ends.add(worker, epoch, by_its_work)
        now = self._clock()
        waiting = [
            job
            for job in self._register.jobs.values()
            if settle(job.deaths, worker, epoch, now, by_its_work)
        ]
        for job in waiting:
            self._judge(job)
        return bool(waiting)

    def lost(self, job: Job, death: Death | None) -> None:
        """Its worker is gone: it goes on elsewhere, unless it is the reason."""
        if death is not None:
            job.deaths.append(death)
        if job.attempts >= MAX_ATTEMPTS:
            message = f"{job.attempts} workers died while they had this request"
            self._register.end(job, error=WorkerLostError(message, retry_after_s=1))
        else:
            self._register.requeue(job)
            self._observer.retried(job)
            self._judge(job)

    def _judge(self, job: Job) -> None:
        """End a query of death, and all that wait with the same prompt."""
        now = self._clock()
        if job.state is not JobState.QUEUED or trust(job.deaths, now) is not Trust.NOWHERE:
            return
        work, fingerprint = job.work, job.work.fingerprint
        self._condemned.add(fingerprint, now)
        workers = [f"{death.worker}.{death.epoch}" for death in job.deaths if death.counts]
        tell_later("query of death", fingerprint=fingerprint, workers=workers)
        for one in self._queue:
            if one.work.prompt == work.prompt and one.work.adapter == work.adapter:
                self._register.drop(one, _deadly())


def _deadly() -> LbhostError:
    return QueryOfDeathError(
        "workers end or fail when they compute this request; it is not tried again"
    )
