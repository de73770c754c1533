"""The sampler: reads the box and publishes the board's hardware rows.

The one writer of the board's core, GPU and host tables; runs in the supervisor, four times a
second. Decides nothing: what a reading means is share.py's matter. What the machine does not
offer stays unknown (None).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from lbhost.board import Board, CoreRow
from lbhost.linux import ThreadUse, children, cpu_s, helpers, ran_on
from lbhost.machine import cpustat
from lbhost.machine.coresensors import CoreSensors
from lbhost.machine.gpu import Gpus
from lbhost.machine.hostload import HostMeter
from lbhost.machine.probe import Probe
from lbhost.machine.topology import CoreKind, Topology
from lbhost.machine.tree import Roots

INTERVAL_S = 0.25
"""How often `sample` is meant to be called."""
GPU_EVERY = 4
"""Rounds between two readings of a GPU: NVML calls cost up to a millisecond."""
REFRESH_S = 30.0
"""Sensors are looked for again after this time…"""
REFRESH_LOST_S = 10.0
"""…and after this time when one of them has vanished."""
LITTLE_S = 0.0025
"""A process that used no more since the last sample is not asked where: a hundredth of a core."""


class Watched(msgspec.Struct, frozen=True):
    """A process of ours, whose CPU use is not to count as others'."""

    worker: int
    pid: int
    cpus: tuple[int, ...]
    """CPUs it runs on; its use is taken to be spread evenly over them."""
    wide: bool = False
    """Whether it has used lent CPUs since the last sample."""


class Sampler:
    """Samples one box. Not thread-safe."""

    def __init__(
        self,
        board: Board,
        topology: Topology,
        roots: Roots,
        gpus: Gpus | None = None,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        cpu_clock_s: Callable[[int], float | None] = cpu_s,
        threads: Callable[[int], Mapping[int, ThreadUse]] = helpers,
        ran_on: Callable[[int], int | None] = ran_on,
        children: Callable[[int], Sequence[int]] = children,
    ) -> None:
        """Open the sensors.

        Args:
            board: with at least `topology.rows` core rows and a GPU row per GPU.
            clock_ns: CLOCK_MONOTONIC, for tests to replace.
            cpu_clock_s: CPU seconds used by a pid, None if it is gone.
            threads: of a pid, but for the main one.
            ran_on: the CPU that a pid ran on last. children: of a pid.
        """
        self._board = board
        self._know(topology)
        self._gpus = gpus
        self._clock_ns = clock_ns
        self._cpu_clock_s = cpu_clock_s
        # The lines of 64 CPUs take 4 KB; what follows them is not needed.
        self._stat = Probe(roots.procfs / "stat", 4096 + 160 * topology.rows)
        self._roots = roots
        self._meter = cpustat.UsageMeter(os.sysconf("SC_CLK_TCK"))
        self._sensors = CoreSensors(roots, topology)
        self._host = HostMeter(roots)
        self._threads = threads
        self._ran_on = ran_on
        self._children = children
        self._served_used_s: dict[int, float] = {}
        self._cpu_used_s: dict[int, float] = {}
        self._thread_used_s: dict[int, dict[int, float]] = {}
        self._refreshed_ns = clock_ns()
        self._round = 0

    def sample(self, workers: Sequence[Watched] = (), services: Sequence[int] = ()) -> None:
        """Take one sample and publish it.

        Args:
            workers: all workers with a process now.
            services: pids of other processes of this server, whose use is no neighbour's; that of
                their children is not, either.
        """
        now_ns = self._clock_ns()
        stat = self._stat.read()
        ticks = {} if stat is None else cpustat.parse(stat)
        served = self._served_use(services, {worker.pid for worker in workers})
        usage = self._meter.add(now_ns / 1e9, ticks, self._own_use(workers), served)
        complete = self._sensors.read(now_ns / 1e9)
        unknown = cpustat.Usage()
        write = self._board.cores.write
        for cpu, core in self._cores.items():
            used = usage.get(cpu, unknown)
            sensed = self._sensors.reading(cpu)
            write(
                cpu,
                CoreRow(
                    sampled_ns=now_ns,
                    idle=used.idle,
                    others=used.others,
                    freq_ratio=sensed.freq_ratio,
                    temp_c=sensed.temp_c,
                    throttle_s=sensed.throttle_s,
                    steal=used.steal,
                    niced=used.niced,
                    warm_c=sensed.warm_c,
                    hot_c=sensed.hot_c,
                    sensor=sensed.sensor,
                    sensor_cores=sensed.sensor_cores,
                    lasting=used.lasting,
                    lead=cpu in self._leads,
                    llc=core.llc,
                    node=core.node,
                    efficiency=core.kind is CoreKind.EFFICIENCY,
                    foreign=used.foreign,
                ),
            )
        self._board.host.write(0, self._host.read(now_ns))
        self._sample_gpus()
        self._round += 1
        if now_ns - self._refreshed_ns > 1e9 * (REFRESH_S if complete else REFRESH_LOST_S):
            self._refreshed_ns = now_ns
            self._sensors.refresh()

    def forget_foreigners(self) -> None:
        """What strangers have used of the CPUs by now may have been processes of ours that have
        ended since: only what comes from now on is theirs."""
        self._meter.forget()
        for cpu in self._cores:
            row = self._board.cores.read(cpu)
            if row is not None and row.foreign is not None:
                self._board.cores.write(cpu, msgspec.structs.replace(row, foreign=0.0))

    def adopt(self, topology: Topology) -> None:
        """Read another set of CPUs from now on: some came online, or went.

        CPUs beyond the board's rows are left out; rows of those that went become unknown.
        """
        gone = set(self._topology.cpus) - set(topology.cpus)
        rows = len(self._board.cores)
        cores = tuple(core for core in topology.cores if max(core.cpus) < rows)
        self._know(msgspec.structs.replace(topology, cores=cores))
        self._sensors.close()
        self._sensors = CoreSensors(self._roots, self._topology)
        for cpu in gone:
            self._board.cores.write(cpu, CoreRow(sampled_ns=self._clock_ns()))

    def _know(self, topology: Topology) -> None:
        self._topology = topology
        self._cores = {cpu: core for core in topology.cores for cpu in core.cpus}
        self._leads = {topology.lead(core) for core in topology.usable}

    def close(self) -> None:
        """Let go of all files. The GPU reader stays the caller's."""
        self._stat.close()
        self._sensors.close()
        self._host.close()

    def _own_use(self, workers: Sequence[Watched]) -> dict[int, float | None]:
        """Per CPU, seconds that workers pinned there ran since the last sample."""
        own: dict[int, float | None] = {}
        used: dict[int, float] = {}
        for worker in workers:
            now = self._cpu_clock_s(worker.pid)
            before = self._cpu_used_s.get(worker.pid)
            delta = None
            if now is not None:
                used[worker.pid] = now
                if before is not None and now >= before:  # else the pid is another process now
                    lent = self._lent_use(worker)
                    for cpu, seconds in lent.items():
                        so_far = own.get(cpu, 0.0)
                        own[cpu] = None if so_far is None else so_far + seconds
                    delta = max(0.0, now - before - sum(lent.values()))
                    delta /= max(1, len(worker.cpus))
            for cpu in worker.cpus:
                so_far = own.get(cpu, 0.0)
                own[cpu] = None if delta is None or so_far is None else so_far + delta
        self._cpu_used_s = used
        for pid in self._thread_used_s.keys() - used.keys():
            del self._thread_used_s[pid]
        return own

    def _served_use(self, services: Sequence[int], workers: set[int]) -> dict[int, float]:
        """Per CPU, seconds that the services and their children ran since the last sample, each
        where it ran last. One that was not seen before was started since."""
        found: dict[int, float] = {}
        used: dict[int, float] = {}
        below = [child for service in services for child in self._children(service)]
        for pid in {*services, *below}:
            now = None if pid in workers else self._cpu_clock_s(pid)
            if now is None:
                continue
            used[pid] = now
            ran_s = now - self._served_used_s.get(pid, 0.0)
            if ran_s > LITTLE_S and (cpu := self._ran_on(pid)) is not None:
                found[cpu] = found.get(cpu, 0.0) + ran_s
        self._served_used_s = used
        return found

    def _lent_use(self, worker: Watched) -> dict[int, float]:
        """Seconds that a worker ran on CPUs that it is not pinned to, since the last sample.

        A thread is taken to have run where it ran last. One that was not seen before is as old as
        the first step on lent CPUs: none was computed before that sample.
        """
        if not worker.wide:
            return {}
        before = self._thread_used_s.get(worker.pid, {})
        now = self._threads(worker.pid)
        self._thread_used_s[worker.pid] = {thread: use.used_s for thread, use in now.items()}
        found: dict[int, float] = {}
        for thread, use in now.items():
            if use.cpu not in worker.cpus:
                ran_s = max(0.0, use.used_s - before.get(thread, 0.0))
                found[use.cpu] = found.get(use.cpu, 0.0) + ran_s
        return found

    def _sample_gpus(self) -> None:
        if self._gpus is None:
            return
        for gpu in self._gpus.gpus[: len(self._board.gpus)]:
            if self._round == 0 or (self._round + gpu.index) % GPU_EVERY == 0:
                self._board.gpus.write(gpu.index, self._gpus.read(gpu.index))
