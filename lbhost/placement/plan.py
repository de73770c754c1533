"""Where workers go: which CPUs and NUMA node, how many threads, which GPU. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from lbhost.errors import UsageError
from lbhost.machine import cpulist
from lbhost.machine.gpu import GpuInfo
from lbhost.machine.topology import CoreKind, PhysicalCore, Topology
from lbhost.placement.placement import Placement


def plan(
    topology: Topology,
    workers: int | str,
    threads_per_worker: int = 1,
    gpus: Sequence[GpuInfo] = (),
    gpu_capable: bool = False,
) -> list[Placement]:
    """Where each worker runs; the index in the list is the worker's id.

    With a GPU-capable build and GPUs, one worker per GPU. Else one per physical core (or per
    `threads_per_worker` cores of one node and kind), on each core's first allowed CPU.

    Args:
        workers: how many, or "auto".
        gpus: those that workers may use.
        gpu_capable: whether llama.cpp was built with GPU offload.

    Raises:
        UsageError: more was asked for than there is; one line with the limit and its reason.
    """
    if gpu_capable and gpus:
        return _plan_gpus(topology, workers, threads_per_worker, gpus)
    limit = topology.effective_cores
    if threads_per_worker > limit:
        raise UsageError(
            f"--threads-per-worker {threads_per_worker} is more than this process can run at "
            f"once: {_reason(topology)}"
        )
    groups = list(_groups(topology, threads_per_worker))
    most = min(len(groups), limit // threads_per_worker)
    if workers == "auto":
        wanted = most
    else:
        wanted = int(workers)
        if wanted > most:
            threads = f" of {threads_per_worker} threads" if threads_per_worker > 1 else ""
            raise UsageError(
                f"--workers {wanted} is too many, at most {most}{threads} fit here: "
                f"{_reason(topology)}"
            )
    return [
        Placement(cpus=cpus, threads=threads_per_worker, node=_node(topology, cpus))
        for cpus in groups[:wanted]
    ]


def spread(groups: Sequence[Placement], others: Iterable[Placement]) -> list[Placement]:
    """The same places, those first where the fewest workers of other models are at home; among
    equals the best first, as before. Cores are shared, but not while there are others.

    Args:
        groups: what there is, best first. others: other models' homes.
    """
    taken = Counter(cpu for home in others if home.gpu is None for cpu in home.cpus)
    return sorted(groups, key=lambda one: max(taken[c] for c in one.cpus) if one.gpu is None else 0)


def _plan_gpus(
    topology: Topology, workers: int | str, threads: int, gpus: Sequence[GpuInfo]
) -> list[Placement]:
    wanted = len(gpus) if workers == "auto" else int(workers)
    if wanted > len(gpus):
        raise UsageError(
            f"--workers {wanted} is too many, at most {len(gpus)} fit here: one worker per GPU "
            "(set CUDA_VISIBLE_DEVICES= to run on the CPU)"
        )
    if threads > topology.effective_cores:
        raise UsageError(
            f"--threads-per-worker {threads} is more than this process can run at once: "
            f"{_reason(topology)}"
        )
    free = [(core.node, _lead(topology, core)) for core in _ordered(topology)]
    placements = []
    for gpu in gpus[:wanted]:
        near = [entry for entry in free if entry[0] == gpu.node]
        picked = (near + [entry for entry in free if entry[0] != gpu.node])[:threads]
        if len(picked) < threads:  # fewer cores than GPU workers: they share
            cpus = tuple(sorted(topology.allowed))
        else:
            free = [entry for entry in free if entry not in picked]
            cpus = tuple(sorted(cpu for _, cpu in picked))
        placements.append(
            Placement(
                cpus=cpus,
                threads=threads,
                gpu=gpu.index,
                gpu_uuid=gpu.uuid,
                node=_node(topology, cpus),
            )
        )
    return placements


def _groups(topology: Topology, size: int) -> Iterator[tuple[int, ...]]:
    """CPUs of one worker each, best first, never across NUMA nodes or kinds of core.

    A worker of several threads runs at the speed of its slowest one. If no node has enough
    cores of one kind for even one worker, one worker gets the best cores there are.
    """
    cores = _ordered(topology)
    found = False
    pools: dict[tuple[int, CoreKind], list[PhysicalCore]] = {}
    for core in cores:
        pools.setdefault((core.node, core.kind), []).append(core)
    for pool in pools.values():
        for start in range(0, len(pool) - size + 1, size):
            found = True
            yield tuple(sorted(_lead(topology, core) for core in pool[start : start + size]))
    if not found and len(cores) >= size:
        yield tuple(sorted(_lead(topology, core) for core in cores[:size]))


def _ordered(topology: Topology) -> list[PhysicalCore]:
    """Usable cores, best first.

    Fast kinds first; then node by node, the one with most usable cores first, because the
    weights lie on the node where they were loaded; then the faster core.
    """
    usable = topology.usable
    per_node: dict[int, int] = {}
    for core in usable:
        per_node[core.node] = per_node.get(core.node, 0) + 1

    def rank(core: PhysicalCore) -> tuple[bool, int, int, int, int, int]:
        return (
            core.kind is CoreKind.EFFICIENCY,
            -per_node[core.node],
            core.node,
            -(core.capacity or 0),
            -(core.max_khz or 0),
            core.cpus[0],
        )

    return sorted(usable, key=rank)


def _node(topology: Topology, cpus: Sequence[int]) -> int | None:
    """The NUMA node that holds all of these CPUs; None on a box of one node, or across nodes."""
    if len({core.node for core in topology.cores}) == 1:
        return None
    nodes = {core.node for core in topology.cores if not set(cpus).isdisjoint(core.cpus)}
    return nodes.pop() if len(nodes) == 1 else None


def _lead(topology: Topology, core: PhysicalCore) -> int:
    cpu = topology.lead(core)
    assert cpu is not None, "only usable cores are asked for"
    return cpu


def _reason(topology: Topology) -> str:
    """Which of the limits binds, in words."""
    usable, cores, cpus = len(topology.usable), len(topology.cores), len(topology.cpus)
    if topology.quota_cpus is not None and topology.effective_cores < usable:
        return f"the cgroup's CPU quota is {topology.quota_cpus:g} CPUs (of {usable} cores)"
    if usable < cores:
        return (
            f"the CPU affinity mask or cpuset allows CPUs {cpulist.render(topology.allowed)}, "
            f"{_count(usable, 'core')} of {cores}"
        )
    smt = f" ({cpus} logical CPUs: SMT siblings share a core)" if cpus > cores else ""
    return f"the machine has {_count(cores, 'physical core')}{smt}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
