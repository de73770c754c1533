"""Gives queued jobs their slots: synchronous, so that nothing changes between look and choice.

Late binding and the rule for suspects (suspicion.py) are kept here. Sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from lbhost.gateway.scheduling import policy
from lbhost.gateway.scheduling.job import Job, JobState
from lbhost.gateway.scheduling.job_queue import JobQueue
from lbhost.gateway.scheduling.readings import WorkerReading
from lbhost.gateway.scheduling.router import Router
from lbhost.gateway.scheduling.sessions import Attempt, Session, Sessions
from lbhost.gateway.scheduling.suspicion import Trust, trust
from lbhost.gateway.scheduling.worker_view import WorkerView


class Placer:
    """Takes jobs out of the queue."""

    def __init__(
        self,
        sessions: Sessions,
        queue: JobQueue,
        router: Router,
        clock: Callable[[], float],
        look: Callable[[Job], None],
    ) -> None:
        """`look` finds the KV state that holds most of a job; the router counts on it."""
        self._look = look
        self._sessions = sessions
        self._queue = queue
        self._router = router
        self._clock = clock
        self._numbers = 0

    def place(
        self, usable: Sequence[tuple[Session, WorkerReading]], now_ns: int, reserved: int
    ) -> list[Attempt]:
        """Which queued jobs go where, now. Their slots are taken when this returns.

        However many are queued, it looks at one job for each free slot and at
        2 * job_queue.LOOKAHEAD others at most, and asks for each of them every usable worker.

        Args:
            reserved: slots that only jobs with output may have: some are on their way back.
        """
        room = sum(session.room for session, _ in usable)
        if not room:
            return []
        attempts: list[Attempt] = []
        wide = self._sessions.wide
        views = [s.view(reading, now_ns, wide=wide) for s, reading in usable]
        for job in self._queue.walk(
            lambda: policy.room_for_long(views), lambda: policy.room_for_flex(views)
        ):
            if room <= (0 if job.begun else reserved):
                break
            self._look(job)
            trusted = trust(job.deaths, self._clock())
            if trusted is Trust.LATER:
                continue
            alone = trusted is Trust.ALONE
            index = self._choose(job, usable, views, alone=alone)
            if index is None:
                continue
            session, reading = usable[index]
            if alone:
                # Until the last one there has ended, nobody else comes.
                room -= session.room
                views[index] = msgspec.structs.replace(views[index], slots=views[index].in_flight)
                if session.attempts:
                    continue
            else:
                room -= 1
            forecast = self._router.forecast(job, session, views[index], wide=wide)
            self._numbers += 1
            attempt = Attempt(self._numbers, job, session, now_ns, forecast, alone=alone)
            self._assign(job, attempt)
            attempts.append(attempt)
            views[index] = session.view(reading, now_ns, wide=wide)
        return attempts

    def _choose(
        self,
        job: Job,
        usable: Sequence[tuple[Session, WorkerReading]],
        views: Sequence[WorkerView],
        *,
        alone: bool,
    ) -> int | None:
        """Index of the usable session that gets the job now; None: it waits."""
        if not job.deaths:
            return self._router.choose(job, usable, views)
        places = _elsewhere(job, views)
        there = [views[i] for i in places]
        if alone:
            chosen = _emptiest(there)
        else:
            chosen = self._router.choose(job, [usable[i] for i in places], there)
        return None if chosen is None else places[chosen]

    def _assign(self, job: Job, attempt: Attempt) -> None:
        self._queue.remove(job)
        attempt.session.assign(attempt)
        job.state = JobState.RUNNING
        job.attempts += 1
        job.given += 1
        if job.given == 1:
            prompt_s, job.output_cost_s = self._router.token_costs_s()
            self._queue.charge(job, attempt.prefill * prompt_s)
        job.worker = attempt.session.worker
        job.started = self._clock()


def _elsewhere(job: Job, views: Sequence[WorkerView]) -> list[int]:
    """Indices of those that have not failed to compute the job; of all where there is none."""
    failed = {(death.worker, death.epoch) for death in job.deaths}
    places = range(len(views))
    return [i for i in places if (views[i].worker, views[i].epoch) not in failed] or [*places]


def _emptiest(views: Sequence[WorkerView]) -> int | None:
    """Index of the worker with the fewest requests of those that have room."""
    with_room = [i for i, view in enumerate(views) if view.in_flight < view.slots]
    return min(with_room, key=lambda i: views[i].in_flight, default=None)
