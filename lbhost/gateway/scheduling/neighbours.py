"""Workers of several models that are at home on the same cores: who computes there now.

The counts are exact, since they are the gateway's own; homes are read from the board and may be a
moment old. Two that compute on one core get half of it each: the kernel sees to that, and the
router has to know. Cores that are lent do not count: they are asked back before their owner gets
work (lender.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Protocol

from lbhost.gateway.scheduling.readings import WorkerReading

LOOK_S = 0.25
"""Homes are looked at so often, beside when a worker comes or goes."""


class Occupant(Protocol):
    """A worker's process; its attempts are what it computes."""

    @property
    def worker(self) -> int: ...
    @property
    def attempts(self) -> Sized: ...


class Readings(Protocol):
    """See readings.WorkerReadings."""

    def worker(self, index: int) -> WorkerReading | None: ...


class Occupants(Protocol):
    """One model's: sessions.Sessions."""

    @property
    def changes(self) -> int: ...
    @property
    def readings(self) -> Readings: ...
    def all(self) -> Sequence[Occupant]: ...


def most_beside(
    one: Occupant, cpus: Iterable[int], at_home: Mapping[int, Sequence[Occupant]]
) -> int:
    """Others that compute on the core of `one` where most do: its threads wait for each other, and
    the slowest one's core decides. Pure.

    Args:
        cpus: the home of `one`. at_home: who is at home on each CPU.
    """
    return max(
        (
            sum(
                1 for other in at_home.get(cpu, ()) if other.worker != one.worker and other.attempts
            )
            for cpu in cpus
        ),
        default=0,
    )


class Neighbours:
    """See the module. One for all models; `add` each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._models: list[Occupants] = []
        self._homes: dict[int, tuple[int, ...]] = {}
        self._at_home: dict[int, list[Occupant]] = {}
        self._seen: object = None
        self._looked = -1e9

    def add(self, model: Occupants) -> None:
        """One more model, whose workers may be anywhere."""
        self._models.append(model)

    def computing(self, one: Occupant) -> int:
        """Workers that compute now on the core of `one`, beside it; where most do."""
        if len(self._models) < 2:
            return 0  # within one model every core is one worker's home
        self._look()
        return most_beside(one, self._homes.get(one.worker, ()), self._at_home)

    def _look(self) -> None:
        seen, now = [model.changes for model in self._models], self._clock()
        if seen == self._seen and now - self._looked < LOOK_S:
            return
        self._seen, self._looked = seen, now
        self._homes.clear()
        self._at_home.clear()
        for model in self._models:
            for occupant in model.all():
                reading = model.readings.worker(occupant.worker)
                if reading is None or reading.identity.gpu >= 0:
                    continue
                self._homes[occupant.worker] = reading.identity.cpus
                for cpu in reading.identity.cpus:
                    self._at_home.setdefault(cpu, []).append(occupant)
