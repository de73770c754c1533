"""Who computes on which cores now: those that no request needs are lent to whoever has one. Pure.

Every worker owns its home. Workers of several models may be at home on one core, which is idle when
all of them are. Homes whose workers have nothing to do, and cores that are nobody's home, are lent
to those that compute: evenly, one core each in turn, the nearest first (the same last-level cache,
then the same NUMA node). Within a node only: over the link between nodes a second core is worth
little, and its threads would hold up the others at every barrier.

What is never lent: a core that others use, a hot one, more than the cgroup's quota, an SMT sibling
(a core has one CPU here), a slow core to a worker on fast ones or the other way round. How many of
its cores a worker then uses for a step is its own matter, by what it has measured
(worker/widths.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

Lent = tuple[int, ...]
"""CPU numbers, the nearest first; one thread each."""


class Core(msgspec.Struct, frozen=True):
    """One physical core that this server may use."""

    cpu: int
    """The one of its CPUs that threads are put on."""
    llc: int = 0
    node: int = 0
    efficiency: bool = False
    open: bool = True
    """Whether it may be lent: nobody else uses it, and it is not hot."""


class Home(msgspec.Struct, frozen=True):
    """A worker and the cores that are its own."""

    worker: int
    cpus: tuple[int, ...]
    computing: bool
    """Whether it has requests."""
    idle: bool
    """Whether its cores may be lent: it has no request and takes some, or will not take any."""


def lend(
    homes: Sequence[Home],
    cores: Iterable[Core],
    *,
    limit: int | None = None,
    before: Mapping[int, Lent] | None = None,
) -> dict[int, Lent]:
    """The cores that each computing worker gets beside its own; all computing workers are named.

    Args:
        homes: of all CPU workers that have a process.
        limit: cores that may be busy at once (the quota); None: all.
        before: what was lent last; who may keep a core keeps it.
    """
    borrowers = [home for home in homes if home.computing]
    lent: dict[int, list[int]] = {home.worker: [] for home in borrowers}
    by_cpu = {core.cpu: core for core in cores}
    kept = {cpu for home in homes if not home.idle for cpu in home.cpus}
    free = {cpu: core for cpu, core in by_cpu.items() if core.open and cpu not in kept}
    left = len(free)
    if limit is not None:
        left = min(left, limit - len({cpu for home in borrowers for cpu in home.cpus}))
    wants = {
        home.worker: _nearest(home, by_cpu, free, (before or {}).get(home.worker, ()))
        for home in borrowers
    }
    while left > 0 and wants:
        for worker in list(wants):
            cpu = next((cpu for cpu in wants[worker] if cpu in free), None)
            if cpu is None:
                del wants[worker]
                continue
            del free[cpu]
            lent[worker].append(cpu)
            left -= 1
            if left == 0:
                break
    return {worker: tuple(cpus) for worker, cpus in lent.items()}


def _nearest(
    home: Home, by_cpu: Mapping[int, Core], free: Mapping[int, Core], before: Lent
) -> list[int]:
    """Free cores that suit a worker, in the order in which it should get them."""
    own = by_cpu.get(home.cpus[0]) if home.cpus else None
    if own is None:
        return []
    near = [
        core
        for core in free.values()
        if core.node == own.node and core.efficiency == own.efficiency
    ]
    had = {cpu: at for at, cpu in enumerate(before)}
    near.sort(key=lambda c: (c.llc != own.llc, had.get(c.cpu, len(had)), c.cpu))
    return [core.cpu for core in near]
