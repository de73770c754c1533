"""What the board says about workers, re-read no more often than it can change.

Decoding a row costs some 3 us; a burst of requests asks for the same rows again and again.
Reads only; owns nothing but the copies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeAlias

import msgspec

from lbhost import board
from lbhost.config import Settings
from lbhost.placement.heat import limits_of
from lbhost.placement.share import core_heat, share

FRESH_NS = 5_000_000
"""How long a copy of a worker's row is good."""

HARDWARE_FRESH_NS = 100_000_000
"""How long what the sampler wrote is good; it writes every 250 ms."""

HOT = 0.75
"""What heat leaves of a core from which on it is not lent."""

LEAST_TOK_S, MOST_TOK_S, MOST_STEP_S = 1e-3, 1e9, 3600.0
"""What a worker's speeds and steps can be."""

Siblings: TypeAlias = Callable[[Iterable[int]], tuple[int, ...]]
"""The other logical CPUs of some CPUs' physical cores."""


class WorkerReading(msgspec.Struct, frozen=True):
    """A worker's rows, and what they mean together."""

    identity: board.IdentityRow
    progress: board.ProgressRow
    share: float
    idle: float | None
    others: float | None
    temp_c: float | None


class WorkerReadings(Protocol):
    """Whoever tells how workers are: the board, or a simulation of one."""

    def worker(self, index: int) -> WorkerReading | None: ...
    def present(self) -> list[tuple[int, WorkerReading]]: ...
    def cores(self) -> Iterable[tuple[int, board.CoreRow]]: ...
    def hot(self, core: board.CoreRow) -> bool: ...
    def quota_cpus(self) -> float | None: ...


def believable(progress: board.ProgressRow) -> board.ProgressRow:
    """The row, without its speeds where no measurement gives such: what a worker that somebody has
    taken over writes must not stop the router, which divides by them."""
    speed, steps = progress.prefill_tok_s, [*progress.steps_s]
    steps += [s for s in (progress.step_base_s, progress.step_seq_s) if s is not None]
    if (speed is None or LEAST_TOK_S <= speed <= MOST_TOK_S) and all(
        0 <= step <= MOST_STEP_S for step in steps
    ):
        return progress
    return msgspec.structs.replace(
        progress, prefill_tok_s=None, step_base_s=None, step_seq_s=None, steps_s=()
    )


class Readings:
    """Cached rows of all workers."""

    def __init__(
        self,
        page: board.Board,
        settings: Settings,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        siblings: Siblings = lambda cpus: (),
        nice_counts: bool = True,
    ) -> None:
        """`nice_counts`: whether the workers' niceness counts beside other programs."""
        self._board = page
        self.settings = settings
        self._clock_ns = clock_ns
        self._siblings = siblings
        self._nice_counts = nice_counts
        self._workers: dict[int, tuple[int, WorkerReading]] = {}
        self._hardware: dict[tuple[int, ...] | int, tuple[int, _Hardware]] = {}
        self.rows = len(page.identity)

    def worker(self, index: int) -> WorkerReading | None:
        """A worker's readings, at most FRESH_NS old; None if there is no such worker."""
        now = self._clock_ns()
        kept = self._workers.get(index)
        if kept is not None and now - kept[0] < FRESH_NS:
            return kept[1]
        identity = self._board.identity.read(index)
        if identity is None or not identity.present:
            return None
        progress = self._board.progress.read(index)
        if progress is None:
            return None
        hardware = self._hardware_of(identity, now)
        progress = believable(progress)
        made = WorkerReading(
            identity, progress, hardware.share, hardware.idle, hardware.others, hardware.temp_c
        )
        self._workers[index] = (now, made)
        return made

    def present(self) -> list[tuple[int, WorkerReading]]:
        """All workers that exist, by id."""
        found = ((i, self.worker(i)) for i in range(self.rows))
        return [(i, worker) for i, worker in found if worker is not None]

    def cores(self) -> Iterator[tuple[int, board.CoreRow]]:
        """All logical CPUs of which anything is known, freshly read."""
        for number in range(len(self._board.cores)):
            row = self._core(number)
            if row is not None:
                yield number, row

    def hot(self, core: board.CoreRow) -> bool:
        """Whether heat takes a quarter or more of what the core could do alone."""
        limits = limits_of(self.settings.warm_c, self.settings.hot_c)
        return core_heat(core, limits, 1) <= HOT

    def quota_cpus(self) -> float | None:
        """CPUs' worth of time that the cgroup allows; None without a quota."""
        host = self._board.host.read(0)
        return None if host is None else host.quota_cpus

    def asleep(self, model: int = 0) -> bool:
        """Whether a model has no workers until a request comes for it."""
        row = self._board.scale.read(model)
        return row is not None and row.asleep

    def _hardware_of(self, identity: board.IdentityRow, now: int) -> _Hardware:
        key = identity.cpus if identity.gpu < 0 else identity.gpu
        kept = self._hardware.get(key)
        if kept is not None and now - kept[0] < HARDWARE_FRESH_NS:
            return kept[1]
        made = self._read_hardware(identity)
        self._hardware[key] = (now, made)
        return made

    def _read_hardware(self, identity: board.IdentityRow) -> _Hardware:
        cpus = identity.cpus
        cores = [self._core(n) for n in cpus]
        known = [core for core in cores if core is not None]
        gpu = None
        if 0 <= identity.gpu < len(self._board.gpus):
            gpu = self._board.gpus.read(identity.gpu)
        temperatures = [core.temp_c for core in known] if gpu is None else [gpu.temp_c]
        idle = [core.idle for core in known]
        if gpu is not None:
            idle = [None if gpu.utilisation is None else 1.0 - gpu.utilisation]
        return _Hardware(
            share=share(
                cores,
                host=self._board.host.read(0),
                gpu=gpu,
                siblings=[self._core(n) for n in self._siblings(cpus)],
                nice=self.settings.nice if self._nice_counts else 0,
                warm_c=self.settings.warm_c,
                hot_c=self.settings.hot_c,
            ),
            idle=_mean(idle),
            others=_mean([core.others for core in known]),
            temp_c=max((t for t in temperatures if t is not None), default=None),
        )

    def _core(self, number: int) -> board.CoreRow | None:
        return self._board.cores.read(number) if number < len(self._board.cores) else None


class ModelReadings:
    """Those of one model's workers; cores and quota are everybody's."""

    def __init__(self, readings: WorkerReadings, model: int) -> None:
        """`model`: its number."""
        self._readings = readings
        self._model = model
        self.cores = readings.cores
        self.hot = readings.hot
        self.quota_cpus = readings.quota_cpus

    def worker(self, index: int) -> WorkerReading | None:
        """None too if that worker is another model's, now."""
        found = self._readings.worker(index)
        return None if found is None or found.identity.model != self._model else found

    def present(self) -> list[tuple[int, WorkerReading]]:
        """Its workers, by id."""
        return [one for one in self._readings.present() if one[1].identity.model == self._model]


class _Hardware(msgspec.Struct, frozen=True):
    """What a worker runs on, at this moment."""

    share: float
    idle: float | None = None
    others: float | None = None
    temp_c: float | None = None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
