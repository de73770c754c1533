"""From a request to a job: what it is believed to cost, and the place in the queue that it gets.

The queue is ordered by arrival plus predicted cost, so that short requests pass long ones and
nothing waits for ever. Owns the jobs' numbers and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

from lbhost import order
from lbhost.gateway.scheduling.job import Job, Work
from lbhost.gateway.scheduling.router import Router

MAX_OVERTAKEN_S = 20.0
"""A request is passed only by those that arrive less than this after it."""

PRIORITY_AHEAD_S = 30.0
"""A priority request goes before all that arrived less than this earlier: it passes nearly
everybody, and the oldest still come to their turn however many of its kind there are."""


class Arrivals:
    """See the module."""

    def __init__(self, router: Router, look: Callable[[Job], None]) -> None:
        """`look` finds out what the store of KV states has of a job's prompt."""
        self._router = router
        self._look = look
        self._numbers = 0

    def job(
        self, work: Work, arrived: float, complete: float | None, *, again: bool
    ) -> tuple[Job, float]:
        """A job that has not been queued yet, and the seconds that it takes at the least: on an
        idle worker, with what there is of its prompt.

        Args: see Dispatcher.submit.
        """
        self._numbers += 1
        job = Job(self._numbers, work, arrived)
        job.expected_tokens = self._router.expected_tokens(work)
        self._look(job)
        job.cost_s = self._router.busy_cost_s(job, again=again)
        since = arrived if complete is None else complete
        job.order = since + min(self._router.lonely_cost_s(job), MAX_OVERTAKEN_S)
        if work.rank == order.PRIORITY:
            job.order -= PRIORITY_AHEAD_S
        job.place = job.order
        return job, self._router.lonely_cost_s(job, self._router.cached(job))
