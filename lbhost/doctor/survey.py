"""Everything about the box that the doctor judges, read once.

Does the reading and the half second of sampling; judges nothing.
"""

from __future__ import annotations

import resource
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import psutil

from lbhost.board import Board, CoreRow, GpuRow, HostRow
from lbhost.machine import cgroup, coresensors, topology, tree
from lbhost.machine.gpu import GpuInfo, Gpus, visible
from lbhost.machine.sampler import INTERVAL_S, Sampler, Watched
from lbhost.machine.topology import Topology
from lbhost.machine.tree import Roots
from lbhost.sandbox import profiles
from lbhost.sandbox.profiles import Protection

_SAMPLES = 3
"""The second of two intervals fills the usage window."""


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """The readings. None or empty: the machine does not say."""

    topology: Topology
    cores: tuple[CoreRow | None, ...]
    """By CPU number."""
    host: HostRow
    gpus: tuple[GpuInfo, ...] = ()
    """Those that CUDA_VISIBLE_DEVICES leaves to us."""
    gpu_rows: tuple[GpuRow | None, ...] = ()
    """By GpuInfo.index."""
    driver_answered: bool = True
    """Whether NVIDIA's driver, where there is one, said in time which cards there are."""
    cpu_model: str | None = None
    vendor: str | None = None
    flags: frozenset[str] = frozenset()
    """CPU features as the kernel names them."""
    governors: Mapping[str, int] = {}
    """CPUs by cpufreq governor."""
    clock_driver: str | None = None
    energy_preference: str | None = None
    """What intel_pstate and amd-pstate are told about power against speed."""
    throttle_counters: bool = False
    huge_pages: str | None = None
    """Transparent huge pages: always, madvise or never."""
    huge_pages_reserved: int | None = None
    numa_balancing: bool | None = None
    swap_total: int | None = None
    swap_free: int | None = None
    oom_ends_whole: bool = False
    """Whether one process too large ends all of the cgroup's."""
    protection: Protection | None = None
    """What the kernel offers to confine children with."""
    open_files: int = 0
    """Descriptors that a process may have (-1: no limit), as this one was started."""
    open_files_most: int = 0
    """What it may raise that to, as serve does."""


def take(
    roots: Roots,
    gpus: Gpus,
    environ: Mapping[str, str],
    *,
    own: Callable[[], Sequence[Watched]] = tuple,
    affinity: Iterable[int] | None = None,
    wait: Callable[[float], None] = time.sleep,
    clock_ns: Callable[[], int] = time.monotonic_ns,
) -> Survey:
    """Read everything.

    Args:
        gpus: an open reader, which stays the caller's.
        environ: for CUDA_VISIBLE_DEVICES.
        own: the processes of a running lbhost now: what they use is not another program's.
        affinity: CPUs that this process may run on; default: ask the kernel.
        wait, clock_ns: time.sleep and CLOCK_MONOTONIC, or what stands in for them.
    """
    box = topology.discover(roots, affinity)
    board = Board.create(workers=0, cores=box.rows, gpus=len(gpus.gpus))
    sampler = Sampler(board, box, roots, gpus, clock_ns=clock_ns)
    try:
        sampler.sample(own())
        for _ in range(_SAMPLES - 1):
            wait(INTERVAL_S)
            sampler.sample(own())
    finally:
        sampler.close()
    info = _cpuinfo(roots)
    meminfo = _meminfo(roots)
    cpufreq = roots.cpus / f"cpu{box.cpus[0]}" / "cpufreq"
    balancing = tree.integer(roots.procfs / "sys/kernel/numa_balancing")
    swap_total, swap_free = _swap(roots, meminfo)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Survey(
        topology=box,
        cores=tuple(board.cores.read(cpu) for cpu in range(box.rows)),
        host=board.host.read(0) or HostRow(),
        gpus=visible(gpus.gpus, environ),
        gpu_rows=tuple(board.gpus.read(gpu.index) for gpu in gpus.gpus),
        cpu_model=info.get("model name") or info.get("Model"),
        vendor=info.get("vendor_id"),
        flags=frozenset((info.get("flags") or info.get("Features") or "").split()),
        governors=_governors(roots, box),
        clock_driver=tree.text(cpufreq / "scaling_driver"),
        energy_preference=tree.text(cpufreq / "energy_performance_preference"),
        throttle_counters=bool(coresensors.throttle_files(roots, box)),
        huge_pages=_chosen(tree.text(roots.sysfs / "kernel/mm/transparent_hugepage/enabled")),
        huge_pages_reserved=meminfo.get("HugePages_Total"),
        numa_balancing=None if balancing is None else bool(balancing),
        swap_total=swap_total,
        swap_free=swap_free,
        oom_ends_whole=cgroup.locate(roots).ends_whole(),
        protection=profiles.offered(),
        open_files=soft,
        open_files_most=hard,
    )


def _cpuinfo(roots: Roots) -> dict[str, str]:
    """The first CPU's lines, and the board's name at the end on ARM."""
    found: dict[str, str] = {}
    for line in (tree.text(roots.procfs / "cpuinfo") or "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def _meminfo(roots: Roots) -> dict[str, int]:
    """Bytes, or a count where the kernel gives no unit."""
    found: dict[str, int] = {}
    for line in (tree.text(roots.procfs / "meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal():
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def _swap(roots: Roots, meminfo: Mapping[str, int]) -> tuple[int | None, int | None]:
    """Swap in all, and free, bytes; None where the tree does not say: psutil would then ask the
    kernel it runs on, whatever tree it was shown."""
    if not {"SwapTotal", "SwapFree"} <= meminfo.keys():
        return None, None
    usual, psutil.PROCFS_PATH = psutil.PROCFS_PATH, str(roots.procfs)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of counters that we do not ask for
            swap = psutil.swap_memory()
    except (OSError, ValueError, IndexError):
        return None, None
    finally:
        psutil.PROCFS_PATH = usual
    return int(swap.total), int(swap.free)


def _governors(roots: Roots, box: Topology) -> dict[str, int]:
    names = (tree.text(roots.cpus / f"cpu{cpu}/cpufreq/scaling_governor") for cpu in box.cpus)
    return dict(Counter(name for name in names if name))


def _chosen(text: str | None) -> str | None:
    """The word in brackets: "always [madvise] never"."""
    start, end = (text or "").find("["), (text or "").find("]")
    return (text or "")[start + 1 : end] if 0 <= start < end else None
