"""The jobs that wait for a worker, in their order: short ones, long ones, and flex apart.

Owns the order and nothing else: no clock, no timer; see dispatcher.py for who is waiting why.
Long jobs have a line of their own, so that any number of them that cannot be placed is skipped
in one step. Flex has one, because it gets what nobody else wants. Whatever has output already
counts as short: somebody may be reading.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator

from lbhost import order
from lbhost.gateway.scheduling.job import Job

LOOKAHEAD = 16
"""Jobs of each line that are looked at in vain before the rest of it has to wait."""


class JobQueue:
    """Three lines, each by (order, number)."""

    def __init__(self) -> None:
        self._short: list[Job] = []
        self._long: list[Job] = []
        self._flex: list[Job] = []
        self.priority = 0
        """How many are of the priority class."""

    def __len__(self) -> int:
        return len(self._short) + len(self._long) + len(self._flex)

    def __iter__(self) -> Iterator[Job]:
        """All of them; a copy, so that they may be removed meanwhile. In no promised order."""
        return iter(self._short + self._long + self._flex)

    @property
    def flex(self) -> int:
        """How many of them are flex without output."""
        return len(self._flex)

    def add(self, job: Job) -> None:
        bisect.insort(self._line(job), job, key=_place)
        self.priority += job.work.rank == order.PRIORITY

    def remove(self, job: Job) -> None:
        """Raises ValueError if it is not in."""
        line = self._line(job)
        at = bisect.bisect_left(line, _place(job), key=_place)
        if at == len(line) or line[at] is not job:
            raise ValueError(f"job {job.number} is not queued")
        del line[at]
        self.priority -= job.work.rank == order.PRIORITY

    def ahead(self, job: Job) -> int:
        """How many would go before this one, which need not be in."""
        place = _place(job)
        if self._line(job) is self._flex:
            others = len(self._short) + len(self._long)
            return others + bisect.bisect_left(self._flex, place, key=_place)
        lines = (self._short, self._long)
        return sum(bisect.bisect_left(line, place, key=_place) for line in lines)

    def oldest(self) -> float | None:
        """When the one that has waited longest was queued; None when nothing waits."""
        return min((job.queued for job in self), default=None)

    def walk(self, long_may: Callable[[], bool], flex_may: Callable[[], bool]) -> Iterator[Job]:
        """The jobs to place, first come first. The caller may remove the one it was given.

        Args:
            long_may: whether a long job has a chance now; while not, no long one is given.
            flex_may: whether a flex job has one. None is given while any other waits.

        Gives at most LOOKAHEAD jobs of each line that are not removed, whatever is queued.
        """
        passed_short = passed_long = passed_flex = 0
        while True:
            short = _at(self._short, passed_short)
            long = _at(self._long, passed_long) if long_may() else None
            if long is not None and (short is None or _place(long) < _place(short)):
                yield long
                passed_long += _at(self._long, passed_long) is long
            elif short is not None:
                yield short
                passed_short += _at(self._short, passed_short) is short
            else:
                break
        while not (self._short or self._long) and flex_may():
            flex = _at(self._flex, passed_flex)
            if flex is None:
                return
            yield flex
            passed_flex += _at(self._flex, passed_flex) is flex

    def _line(self, job: Job) -> list[Job]:
        if job.begun:
            return self._short
        if job.work.rank == order.FLEX:
            return self._flex
        return self._long if job.long else self._short


def _place(job: Job) -> tuple[float, int]:
    return job.order, job.number


def _at(line: list[Job], passed: int) -> Job | None:
    return line[passed] if passed < min(len(line), LOOKAHEAD) else None
