"""The cores of this box, and what this process may use of them.

`discover` reads /sys, /proc and the cgroup once, `Reread` again and again. Where /sys does not
describe the cores (some VMs and containers), every CPU counts as a core.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from lbhost.machine import cgroup, cpulist, tree
from lbhost.machine.tree import Roots

_SLOWER = 0.8
"""A core of less than this part of the fastest core's capacity is an efficiency core."""


class CoreKind(enum.StrEnum):
    """`standard` where all cores are alike."""

    STANDARD = "standard"
    PERFORMANCE = "performance"
    EFFICIENCY = "efficiency"


class PhysicalCore(msgspec.Struct, frozen=True):
    """One physical core."""

    cpus: tuple[int, ...]
    """Its online logical CPUs (SMT siblings), ascending."""
    core_id: int = 0
    """The kernel's number for it, unique inside its package only."""
    package: int = 0
    node: int = 0
    llc: int = 0
    """Cores with the same number share their last-level cache: its lowest CPU; the package's, where
    /sys does not describe caches."""
    max_khz: int | None = None
    capacity: int | None = None
    """Relative speed, 1024 for the fastest, where the kernel knows it."""
    kind: CoreKind = CoreKind.STANDARD


class Topology(msgspec.Struct, frozen=True):
    """The box as this process may use it."""

    cores: tuple[PhysicalCore, ...]
    """All online physical cores, by first CPU."""
    allowed: frozenset[int]
    """Logical CPUs in the affinity mask and the cgroup's CPU set."""
    quota_cpus: float | None = None
    """CPUs' worth of time that the cgroup allows; None without a quota."""
    memory_limit: int | None = None
    """Bytes that the cgroup allows; None without a limit."""
    last_present: int = -1
    """The highest CPU that the box has, online or not; -1 where /sys does not say."""
    described: bool = True
    """Whether /sys describes the cores; else each CPU was taken for a core."""

    @property
    def cpus(self) -> tuple[int, ...]:
        """All online logical CPUs, ascending."""
        return tuple(sorted(cpu for core in self.cores for cpu in core.cpus))

    @property
    def rows(self) -> int:
        """Rows that the board needs for cores: the row index is the CPU number.

        CPUs that are offline now have one too: the board cannot grow when they come.
        """
        return max(*self.cpus, self.last_present) + 1

    @property
    def smt(self) -> bool:
        """Whether some core runs more than one logical CPU."""
        return any(len(core.cpus) > 1 for core in self.cores)

    @property
    def usable(self) -> tuple[PhysicalCore, ...]:
        """Cores of which at least one CPU is allowed."""
        return tuple(core for core in self.cores if not self.allowed.isdisjoint(core.cpus))

    def lead(self, core: PhysicalCore) -> int | None:
        """The CPU that a worker uses of this core; None if none is allowed."""
        return min(self.allowed.intersection(core.cpus), default=None)

    @property
    def effective_cores(self) -> int:
        """Worker threads that can really run at once: min(affinity, quota, physical cores)."""
        usable = len(self.usable)
        return usable if self.quota_cpus is None else max(1, min(usable, int(self.quota_cpus)))

    def siblings(self, cpus: Iterable[int]) -> tuple[int, ...]:
        """The other logical CPUs of the physical cores that these CPUs are on."""
        mine = set(cpus)
        return tuple(
            cpu
            for core in self.cores
            if not mine.isdisjoint(core.cpus)
            for cpu in core.cpus
            if cpu not in mine
        )


# --- reading ----------------------------------------------------------------------------


def discover(roots: Roots, affinity: Iterable[int] | None = None) -> Topology:
    """Read what there is. Missing files are no error.

    Args:
        roots: the trees to read.
        affinity: CPUs that this process may run on; default: ask the kernel.
    """
    return _describe(roots, _bounds(roots, affinity))


class Reread:
    """The topology as of now, as cheaply as it can change: what is allowed is read at every call
    (five files; 128 described cores are 640), the cores only when that has changed."""

    def __init__(
        self,
        roots: Roots,
        affinity: Callable[[], Iterable[int]] = lambda: os.sched_getaffinity(0),
    ) -> None:
        """
        Args:
            affinity: CPUs that this process may run on.
        """
        self._roots = roots
        self._affinity = affinity
        self._last: tuple[_Bounds, Topology] | None = None

    def __call__(self) -> Topology:
        """The same object as before where nothing has changed."""
        bounds = _bounds(self._roots, self._affinity())
        if self._last is None or self._last[0] != bounds:
            self._last = bounds, _describe(self._roots, bounds)
        return self._last[1]


class _Bounds(msgspec.Struct, frozen=True):
    """What can change under a running process."""

    online: frozenset[int]
    allowed: frozenset[int]
    quota_cpus: float | None
    memory_limit: int | None


def _bounds(roots: Roots, affinity: Iterable[int] | None) -> _Bounds:
    mask = frozenset(os.sched_getaffinity(0) if affinity is None else affinity)
    online = cpulist.parse(tree.text(roots.cpus / "online")) or _stat_cpus(roots) or mask
    group = cgroup.locate(roots)
    allowed = mask & online
    allowed = (allowed & (group.cpus() or allowed)) or allowed
    if not allowed:  # a tree of another machine: its CPUs and ours have none in common
        allowed = frozenset({min(online)})
    return _Bounds(online, allowed, group.quota_cpus(), group.memory_limit())


def _describe(roots: Roots, bounds: _Bounds) -> Topology:
    cores, described = _cores(roots, sorted(bounds.online))
    return Topology(
        cores=_with_kinds(roots, cores),
        allowed=bounds.allowed,
        quota_cpus=bounds.quota_cpus,
        memory_limit=bounds.memory_limit,
        last_present=max(cpulist.parse(tree.text(roots.cpus / "present")) or (), default=-1),
        described=described,
    )


def _stat_cpus(roots: Roots) -> frozenset[int]:
    lines = (tree.text(roots.procfs / "stat") or "").splitlines()
    words = [line.split(" ", 1)[0] for line in lines]
    return frozenset(int(w[3:]) for w in words if w.startswith("cpu") and w[3:].isdecimal())


def _cores(roots: Roots, online: Sequence[int]) -> tuple[list[PhysicalCore], bool]:
    nodes = {
        cpu: number
        for number, folder in tree.numbered(roots.sysfs / "devices/system/node", "node")
        for cpu in cpulist.parse(tree.text(folder / "cpulist")) or ()
    }
    cores: list[PhysicalCore] = []
    taken: set[int] = set()
    described = False
    for cpu in online:
        if cpu in taken:
            continue
        folder = roots.cpus / f"cpu{cpu}"
        # core_cpus_list is the newer name (kernel 5.0) for thread_siblings_list.
        siblings = cpulist.parse(tree.text(folder / "topology/core_cpus_list"))
        siblings = siblings or cpulist.parse(tree.text(folder / "topology/thread_siblings_list"))
        described = described or bool(siblings)
        cpus = tuple(sorted(({cpu} | (siblings or set())) & set(online) - taken))
        taken.update(cpus)
        core_id = tree.integer(folder / "topology/core_id")
        package = tree.integer(folder / "topology/physical_package_id")
        cores.append(
            PhysicalCore(
                cpus=cpus,
                core_id=cpu if core_id is None else core_id,
                package=max(0, package or 0),  # ARM without firmware tables says -1
                node=nodes.get(cpu, 0),
                llc=_last_cache(folder),
                max_khz=tree.integer(folder / "cpufreq/cpuinfo_max_freq"),
                capacity=tree.integer(folder / "cpu_capacity"),
            )
        )
    return cores, described


def _last_cache(folder: Path) -> int:
    """The lowest CPU of those that share a CPU's last-level cache."""
    caches = tree.numbered(folder / "cache", "index")
    levels = [
        (tree.integer(cache / "level") or 0, cache / "shared_cpu_list") for _, cache in caches
    ]
    shared = cpulist.parse(tree.text(max(levels)[1])) if levels else None
    shared = shared or cpulist.parse(tree.text(folder / "topology/package_cpus_list"))
    shared = shared or cpulist.parse(tree.text(folder / "topology/core_siblings_list"))
    return min(shared, default=0) if shared else 0


def _with_kinds(roots: Roots, cores: Sequence[PhysicalCore]) -> tuple[PhysicalCore, ...]:
    """Tell performance from efficiency cores: by Intel's PMUs, by capacity, else by clock."""
    atoms = cpulist.parse(tree.text(roots.sysfs / "devices/cpu_atom/cpus")) or frozenset()
    fast_capacity = max((core.capacity or 0 for core in cores), default=0)
    fast_khz = max((core.max_khz or 0 for core in cores), default=0)

    def slow(core: PhysicalCore) -> bool:
        if atoms:
            return not atoms.isdisjoint(core.cpus)
        if all(c.capacity for c in cores) and len({c.capacity for c in cores}) > 1:
            return (core.capacity or 0) < _SLOWER * fast_capacity
        return core.max_khz is not None and core.max_khz < _SLOWER * fast_khz

    marks = [slow(core) for core in cores]
    if not any(marks) or all(marks):
        return tuple(cores)
    return tuple(
        msgspec.structs.replace(core, kind=CoreKind.EFFICIENCY if mark else CoreKind.PERFORMANCE)
        for core, mark in zip(cores, marks, strict=True)
    )
