"""What is refused before it is queued: too many, or too late.

Owns the answer to "when may I come back". Changes nothing; the dispatcher queues what passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lbhost import order
from lbhost.config import Settings
from lbhost.errors import QueueFullError
from lbhost.gateway.scheduling import prospects
from lbhost.gateway.scheduling.fairness import may_wait
from lbhost.gateway.scheduling.job import Job, Work
from lbhost.gateway.scheduling.job_queue import JobQueue
from lbhost.gateway.scheduling.pace import Pace
from lbhost.gateway.scheduling.router import Router

MAX_RETRY_AFTER_S = 120.0
"""Nobody is told to stay away for longer: OpenAI's client does not obey more than this."""

FLEX_QUEUE = 0.5
"""Part of the queue that flex may fill."""


class Admission:
    """Looks at the queue and its pace, and at what the router knows."""

    def __init__(
        self,
        settings: Settings,
        queue: JobQueue,
        pace: Pace,
        router: Router,
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self._queue = queue
        self._pace = pace
        self._router = router
        self._clock = clock

    def check_depth(self, preparing: int = 0) -> None:
        """Raises QueueFullError: it is at its limit, with those that are about to be submitted."""
        depth = len(self._queue)
        if depth + preparing >= self.settings.queue_size:
            raise QueueFullError(
                f"{depth} requests are waiting already", retry_after_s=self.wait_s()
            )

    def check_client(self, client: str, preparing: int, own_preparing: int) -> None:
        """Raises QueueFullError: a named client has its part of the queue, while others may come.

        Args:
            preparing: requests about to be submitted. own_preparing: the client's of them.
        """
        if not client:
            return
        own = self._queue.of_client(client) + own_preparing
        if not may_wait(own, len(self._queue) + preparing, self.settings.queue_size):
            raise QueueFullError(
                f"{own} requests of this API key are waiting already", retry_after_s=self.wait_s()
            )

    def check_class(self, work: Work) -> None:
        """Raises QueueFullError: flex has filled its part of the queue."""
        most = max(1, int(FLEX_QUEUE * self.settings.queue_size))
        if work.rank == order.FLEX and self._queue.flex >= most:
            raise QueueFullError(
                f"{self._queue.flex} flex requests are waiting already",
                retry_after_s=self.wait_s(),
            )

    def check_work(self, job: Job) -> None:
        """Raises QueueFullError: too many tokens are waiting, or too much work.

        A client of which nothing waits is refused only for its own deadline: see check_time.
        """
        client, queue = job.work.client, self._queue
        if not (queue.of_client(client) if client else len(queue)):
            return
        most = self.settings.queue_tokens
        if most is not None:
            if job.work.rank == order.FLEX:
                most = max(1, int(FLEX_QUEUE * most))
            self._check_sum(
                client, queue.tokens(), queue.tokens(client), job.tokens_to_come, most, "tokens"
            )
            return
        rank = job.work.rank
        limit_s = self._router.work_within_s(self.settings.queue_timeout_s)
        if rank == order.FLEX or limit_s is None:
            return
        limit_s *= prospects.MARGIN
        everybodys, own = queue.cost_s(rank), queue.cost_s(rank, client)
        self._check_sum(client, everybodys, own, job.cost_s, limit_s, "seconds of work")

    def _check_sum(
        self, client: str, everybodys: float, own: float, more: float, limit: float, unit: str
    ) -> None:
        fits = everybodys + more <= limit
        if fits and client:
            fits = may_wait(own, everybodys, limit)
        if not fits:
            raise QueueFullError(
                f"{everybodys:.0f} {unit} are waiting already", retry_after_s=self.wait_s()
            )

    def check_time(self, job: Job, alone_s: float) -> None:
        """Refuse what cannot be done in time, by predictions that have proved good here.

        Args:
            alone_s: what the job takes on an idle worker, less what there is of its prompt.

        Raises TooLateError, TooSlowError.
        """
        if not self._router.trusted():
            return
        settings, now = self.settings, self._clock()
        flex = job.work.rank == order.FLEX
        limits = prospects.Limits(
            None if flex else settings.queue_timeout_s,
            job.arrived + settings.request_timeout_s - now,
        )
        wait_s = None
        if self._queue and not flex and self._pace.seen >= prospects.LEAST_FREED:
            wait_s = self._places_s(self._queue.ahead(job) + 1)
        error = prospects.refusal(wait_s, alone_s * self._router.best_factor(), limits)
        if error is not None:
            if error.retry_after_s is not None:
                error.retry_after_s = float(math.ceil(min(error.retry_after_s, MAX_RETRY_AFTER_S)))
            raise error

    def starts_in_s(self, job: Job) -> float:
        """Seconds until a worker has room for a queued job, as places have come free of late."""
        return self._places_s(self._queue.ahead(job) + 1)

    def next_start_s(self) -> float | None:
        """The same for one that would be queued now, as the last; None while none is queued."""
        return self._places_s(len(self._queue) + 1) if self._queue else None

    def wait_s(self) -> float:
        """Whole seconds until those who wait now have found a worker, or were given up."""
        wait = self._places_s(len(self._queue))
        wait = min(wait, self.settings.queue_timeout_s, MAX_RETRY_AFTER_S)
        return float(max(1, math.ceil(wait)))

    def _places_s(self, places: int) -> float:
        return self._pace.wait_s(places, self._router.place_every_s(), self._clock())
