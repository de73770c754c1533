"""A sampler on a simulated machine, for the tests of what it reads."""

from __future__ import annotations

from collections.abc import Mapping

from lbhost.board import Board, CoreRow, HostRow
from lbhost.linux import ThreadUse
from lbhost.machine.sampler import Sampler, Watched
from trees import Tree

TICKS = 25
"""Ticks in a quarter second."""


class Box:
    """A sampler on a simulated machine, with a clock that only `step` moves."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.topology = tree.topology()
        self.board = Board.create(workers=0, cores=self.topology.rows, gpus=0)
        self.now_ns = 10_000_000_000
        self.cpu_s: dict[int, float | None] = {}
        self.threads: dict[int, dict[int, ThreadUse]] = {}
        self.workers: list[Watched] = []
        self.services: dict[int, list[int]] = {}
        """Processes that are no workers, and what they have started."""
        self.ran_on: dict[int, int] = {}
        self.sampler = Sampler(
            self.board,
            self.topology,
            tree.roots,
            clock_ns=lambda: self.now_ns,
            cpu_clock_s=lambda pid: self.cpu_s.get(pid),
            threads=lambda pid: self.threads.get(pid, {}),
            ran_on=self.ran_on.get,
            children=lambda pid: self.services[pid],
        )
        self.sampler.sample()

    def watch(self, worker: int, *cpus: int) -> None:
        """A worker whose pid is 100 + its id, and which has run for 5 s."""
        self.workers.append(Watched(worker, 100 + worker, cpus))
        self.cpu_s[100 + worker] = 5.0

    def runs(self, pid: int, cpu: int, used_s: float, *, under: int | None = None) -> None:
        """A process that is no worker has used so much by now, lately on this CPU.

        Args:
            under: the one that has started it.
        """
        started = self.services.setdefault(pid if under is None else under, [])
        if under is not None and pid not in started:
            started.append(pid)
        self.cpu_s[pid] = used_s
        self.ran_on[pid] = cpu

    def step(
        self,
        busy: Mapping[int, tuple[int, int, int]] | None = None,
        own_s: Mapping[int, float] | None = None,
        times: int = 1,
    ) -> None:
        """Quarter seconds pass: (user, iowait, steal) ticks by CPU, CPU seconds by worker."""
        for _ in range(times):
            self.now_ns += 250_000_000
            self.tree.run(busy or {}, TICKS)
            for worker, seconds in (own_s or {}).items():
                used = self.cpu_s[100 + worker]
                assert used is not None
                self.cpu_s[100 + worker] = used + seconds
            self.sampler.sample(self.workers, list(self.services))

    def core(self, cpu: int) -> CoreRow:
        row = self.board.cores.read(cpu)
        assert row is not None
        return row

    @property
    def host(self) -> HostRow:
        row = self.board.host.read(0)
        assert row is not None
        return row
