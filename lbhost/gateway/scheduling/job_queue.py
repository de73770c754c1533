"""The jobs that wait for a worker, in their order: by class, by client, short ones and long ones.

Owns the order and nothing else: no clock, no timer; see dispatcher.py for who is waiting why.
Of the classes that may go first the one with the foremost job does, by (order, number); within
it, the client that has had the least (fairness.py); of that client's jobs the foremost. With one
client that is the order of the jobs alone.
Long jobs have a line of their own, so that any number of them that cannot be placed is skipped
in one step. Flex is apart, because it gets what nobody else wants. Whatever has output already
is in a class of its own, counts as short, and has no client: somebody may be reading.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

from lbhost import order
from lbhost.gateway.scheduling.fairness import VirtualTokens
from lbhost.gateway.scheduling.job import Job

LOOKAHEAD = 16
"""Short jobs, long ones and flex ones that are looked at in vain before the rest has to wait."""

_Turn: TypeAlias = tuple[float, tuple[float, int], str, Job]
"""What a client has had, and its foremost job with its place."""

_BEGUN = order.PRIORITY - 1
_FIRST = (_BEGUN, order.PRIORITY, order.DEFAULT)


class _Lines:
    """One client's jobs of one class, each line by (order, number)."""

    def __init__(self) -> None:
        self.short: list[Job] = []
        self.long: list[Job] = []
        self.weight = 1.0
        self.tokens = 0
        self.cost_s = 0.0

    def __len__(self) -> int:
        return len(self.short) + len(self.long)

    def of(self, job: Job) -> list[Job]:
        return self.long if job.long and not job.begun else self.short

    def add(self, job: Job) -> None:
        bisect.insort(self.of(job), job, key=_place)
        self.weight = job.work.weight
        self.tokens += job.tokens_to_come
        self.cost_s += job.cost_s

    def remove(self, job: Job) -> bool:
        """False: it is not in."""
        line = self.of(job)
        at = bisect.bisect_left(line, _place(job), key=_place)
        if at == len(line) or line[at] is not job:
            return False
        del line[at]
        self.tokens -= job.tokens_to_come
        self.cost_s -= job.cost_s
        return True

    def before(self, place: tuple[float, int]) -> int:
        """How many are before a place."""
        lines = (self.short, self.long)
        return sum(bisect.bisect_left(line, place, key=_place) for line in lines)


class _Class:
    """The jobs of one class, by client."""

    def __init__(self) -> None:
        self.lines: dict[str, _Lines] = {}
        self.fair = VirtualTokens()
        self.count = 0

    def __iter__(self) -> Iterator[Job]:
        for lines in self.lines.values():
            yield from lines.short
            yield from lines.long

    def add(self, job: Job) -> None:
        client = _client(job)
        self.lines.setdefault(client, _Lines()).add(job)
        self.fair.joins(client)
        self.count += 1

    def remove(self, job: Job) -> None:
        client = _client(job)
        lines = self.lines.get(client)
        if lines is None or not lines.remove(job):
            raise ValueError(f"job {job.number} is not queued")
        if not lines:
            del self.lines[client]
        self.fair.leaves(client)
        self.count -= 1

    def before(self, place: tuple[float, int]) -> int:
        return sum(lines.before(place) for lines in self.lines.values())

    def ahead(self, job: Job) -> int:
        """How many would go before this one: its client's by their places, and as many of each
        other client, by their weights, as if all had had as much."""
        client = _client(job)
        lines = self.lines.get(client)
        own = 0 if lines is None else lines.before(_place(job))
        turns = (own + 1) / job.work.weight
        return own + sum(
            min(len(other), math.ceil(turns * other.weight))
            for name, other in self.lines.items()
            if name != client
        )


class JobQueue:
    """All that waits."""

    def __init__(self) -> None:
        self._classes = {rank: _Class() for rank in (*_FIRST, order.FLEX)}
        self._count = 0
        self.priority = 0
        """How many are of the priority class."""

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Job]:
        """All of them; a copy, so that they may be removed meanwhile. In no promised order."""
        return iter(list(itertools.chain.from_iterable(self._classes.values())))

    @property
    def flex(self) -> int:
        """How many of them are flex without output."""
        return self._classes[order.FLEX].count

    def of_client(self, client: str) -> int:
        """How many of them are one client's, but for those with output."""
        return sum(one.fair.waiting(client) for one in self._classes.values())

    def tokens(self, client: str | None = None) -> int:
        """Prompt tokens and expected output of what waits: one client's without output, or all."""
        return sum(lines.tokens for lines in self._lines(order.FLEX, client))

    def cost_s(self, rank: int, client: str | None = None) -> float:
        """Seconds of a worker that the same is believed to take, of classes up to this one."""
        return sum(lines.cost_s for lines in self._lines(rank, client))

    def _lines(self, last: int, client: str | None) -> Iterator[_Lines]:
        for rank, one in self._classes.items():
            if rank > last or (rank == _BEGUN and client is not None):
                continue
            if client is None:
                yield from one.lines.values()
            elif client in one.lines:
                yield one.lines[client]

    def add(self, job: Job) -> None:
        self._class(job).add(job)
        self._count += 1
        self.priority += job.work.rank == order.PRIORITY

    def remove(self, job: Job) -> None:
        """Raises ValueError if it is not in."""
        self._class(job).remove(job)
        self._count -= 1
        self.priority -= job.work.rank == order.PRIORITY

    def charge(self, job: Job, cost: float) -> None:
        """The job's client has got something of its class, whether it waits or not."""
        fair = self._classes[job.work.rank].fair
        fair.charge(job.work.client, cost / job.work.weight)

    def ahead(self, job: Job) -> int:
        """How many would go before this one, which need not be in."""
        own = self._class(job)
        firsts = [self._classes[rank] for rank in _FIRST]
        if own is self._classes[order.FLEX]:
            return sum(one.count for one in firsts) + own.ahead(job)
        place = _place(job)
        return own.ahead(job) + sum(one.before(place) for one in firsts if one is not own)

    def oldest(self) -> float | None:
        """When the one that has waited longest was queued; None when nothing waits."""
        return min((job.queued for job in self), default=None)

    def walk(self, long_may: Callable[[], bool], flex_may: Callable[[], bool]) -> Iterator[Job]:
        """The jobs to place, first come first. The caller may remove the one it was given, and
        charge its client.

        Args:
            long_may: whether a long job has a chance now; while not, no long one is given.
            flex_may: whether a flex job has one. None is given while any other waits.

        Gives at most LOOKAHEAD short jobs, long ones and flex ones that are not removed, whatever
        is queued.
        """
        firsts = [self._classes[rank] for rank in _FIRST]
        yield from _Walk(firsts).jobs(long_may)
        flex = _Walk([self._classes[order.FLEX]]).jobs(long_may)
        while not any(one.count for one in firsts) and flex_may():
            job = next(flex, None)
            if job is None:
                return
            yield job

    def _class(self, job: Job) -> _Class:
        return self._classes[_BEGUN if job.begun else job.work.rank]


class _Heads:
    """Each client's foremost job of one class, in order of turns and of places.

    A pass over 1,000 clients that looked at all of them for every job took a second.
    """

    def __init__(self) -> None:
        self._now: dict[str, _Turn] = {}
        self._by_turn: list[_Turn] = []
        self._by_place: list[tuple[tuple[float, int], _Turn]] = []

    def put(self, client: str, had: float, head: Job | None) -> None:
        """This one is the client's from now on."""
        if head is None:
            self._now.pop(client, None)
            return
        turn = self._now[client] = (had, _place(head), client, head)
        heapq.heappush(self._by_turn, turn)
        heapq.heappush(self._by_place, (turn[1], turn))

    def foremost(self) -> tuple[float, int] | None:
        """The first place of all."""
        while self._by_place and self._is_old(self._by_place[0][1]):
            heapq.heappop(self._by_place)
        return self._by_place[0][0] if self._by_place else None

    def next(self) -> Job:
        """Of the client that has had the least. There is one: `foremost` has said so."""
        while self._is_old(self._by_turn[0]):
            heapq.heappop(self._by_turn)
        return self._by_turn[0][3]

    def _is_old(self, turn: _Turn) -> bool:
        return self._now.get(turn[2]) is not turn


class _Walk:
    """One pass over some classes, which remembers what it has given in vain."""

    def __init__(self, classes: list[_Class]) -> None:
        self._classes = classes
        self._passed: dict[tuple[int, str], list[int]] = {}
        """Short and long ones, by the class's index and the client."""
        self._vain = [0, 0]
        self._may = (False, False)
        """Whether short ones are given, and long ones."""
        self._heads = [_Heads() for _ in classes]

    def jobs(self, long_may: Callable[[], bool]) -> Iterator[Job]:
        while (found := self._next(long_may())) is not None:
            index, job = found
            yield job
            client = _client(job)
            lines = self._classes[index].lines.get(client)
            if lines is not None:
                line = lines.of(job)
                passed = self._passed.setdefault((index, client), [0, 0])
                kind = line is lines.long
                if passed[kind] < len(line) and line[passed[kind]] is job:
                    passed[kind] += 1
                    self._vain[kind] += 1
            self._look(index, client)

    def _next(self, long_may: bool) -> tuple[int, Job] | None:
        """The index of the class whose turn it is, and its job that goes next."""
        may = (self._vain[0] < LOOKAHEAD, long_may and self._vain[1] < LOOKAHEAD)
        if may != self._may:
            self._may = may
            self._heads = [_Heads() for _ in self._classes]
            for index, one in enumerate(self._classes):
                for client in one.lines:
                    self._look(index, client)
        best: tuple[tuple[float, int], int] | None = None
        for index, heads in enumerate(self._heads):
            place = heads.foremost()
            if place is not None and (best is None or place < best[0]):
                best = place, index
        return None if best is None else (best[1], self._heads[best[1]].next())

    def _look(self, index: int, client: str) -> None:
        """See which job a client's foremost is now."""
        one = self._classes[index]
        lines = one.lines.get(client)
        head = None if lines is None else self._head(index, client, lines)
        self._heads[index].put(client, one.fair.had(client), head)

    def _head(self, index: int, client: str, lines: _Lines) -> Job | None:
        """A client's first job of a class that was not given yet."""
        passed = self._passed.get((index, client), (0, 0))
        short = long = None
        if self._may[0] and passed[0] < len(lines.short):
            short = lines.short[passed[0]]
        if self._may[1] and passed[1] < len(lines.long):
            long = lines.long[passed[1]]
        if long is None or (short is not None and _place(short) < _place(long)):
            return short
        return long


def _client(job: Job) -> str:
    return "" if job.begun else job.work.client


def _place(job: Job) -> tuple[float, int]:
    return job.order, job.number
