"""The jobs of one HTTP request: so many answers to each of its prompts, and one consumer.

They succeed together: when one fails, its error is the request's, and whoever holds the group
cancels the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from lbhost.errors import LbhostError
from lbhost.gateway.scheduling.dispatcher import Dispatcher
from lbhost.gateway.scheduling.job import Bell, Job, Work

_SEEDS = 1 << 32


def spread(works: Sequence[Work], times: int) -> list[Work]:
    """Each prompt's work so many times, one after the other, with seeds that count up."""
    return [
        msgspec.structs.replace(
            work,
            sampling=msgspec.structs.replace(work.sampling, seed=(work.sampling.seed + i) % _SEEDS),
        )
        for work in works
        for i in range(times)
    ]


class Group:
    """Some jobs with one bell."""

    def __init__(
        self, jobs: Sequence[Job], cancel: Callable[[Job], None] = lambda job: None
    ) -> None:
        """`cancel`: ends a job that nobody wants any more; nothing where nobody else has it."""
        self.jobs = jobs
        self._cancel = cancel
        self.bell = Bell()
        self.told: set[int] = set()
        """Those whose end the consumer of a stream has passed on, by their places."""
        for job in jobs:
            job.bell = self.bell

    async def wait(self) -> None:
        """Return when all are over, one has failed, the bell was rung, or a stream has news."""
        await self.bell.wait(self._ready)

    def _ready(self) -> bool:
        """Asked twice for every token."""
        over = True
        for place, job in enumerate(self.jobs):
            if job.error is not None:
                return True
            if not job.over:
                if job.has_news:
                    return True
                over = False
            elif job.work.stream and place not in self.told:
                return True
        return over

    def cancel(self) -> None:
        """Nobody wants the answer any more. Harmless when it is over."""
        for job in self.jobs:
            self._cancel(job)

    @property
    def over(self) -> bool:
        return all(job.over for job in self.jobs)

    @property
    def cancelled(self) -> bool:
        """Nobody wants the answer any more."""
        return any(job.cancelled for job in self.jobs)

    @property
    def error(self) -> LbhostError | None:
        """Why it failed: the first job's that has."""
        for job in self.jobs:
            if job.error is not None:
                return job.error
        return None


def submit(
    dispatcher: Dispatcher, works: Sequence[Work], arrived: float, complete: float | None = None
) -> Group:
    """Queue all of them, or none. Arguments and errors are those of Dispatcher.submit."""
    client, more = works[0].client, len(works) - 1
    dispatcher.check_open(more, client, more)
    jobs: list[Job] = []
    try:
        for work in works:
            again = bool(jobs) and work.prompt == jobs[-1].work.prompt
            jobs.append(dispatcher.submit(work, arrived, complete, again=again))
    except LbhostError:
        for job in jobs:
            dispatcher.cancel(job)
        raise
    return Group(jobs, dispatcher.cancel)
