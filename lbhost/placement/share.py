"""What the hardware leaves to a worker: one number in (0, 1]. Pure.

    share = max(0.05, cpu x thermal x quota x gpu)

    cpu      1 - others of the worst of its cores (a worker of several threads meets at a
             barrier after every operation: it runs at the speed of the slowest), but at least
             `fair` of what the hypervisor leaves, 0.5 where the others run at lowered priority:
             on an idle worker's core the other program may take all, yet the scheduler gives
             the worker its part once it wants it; times 1 - 0.4 x busy of the busiest SMT
             sibling, where siblings are given. Others are taken smoothed over a second: what
             gateway and clients use for a moment is no neighbour, and moves away from a worker
             that works.
    thermal  the least of three signs of one cause, over its cores:
             temperature  1 up to warm, falling linearly to 0.05 at hot; to 0.5 where the sensor
                          speaks for other workers' cores too: all of them are then equally warm,
                          and the hottest spot may be anybody's. Limits that the chip gives for
                          its sensor stand in for the settings' defaults;
             clock        frequency ratio / 0.7 below 0.7 of the maximum, on a busy core only;
             throttling   1 / (1 + new throttle events per second).
             Clock and events speak before the temperature has reached warm.
    quota    1 - throttled / 2: in a throttled cgroup period the worker stood still for some
             part of it, a half for want of a better number.
    gpu      for a GPU worker: its temperature like a core's; 0.5 while heat, a power brake or
             a hardware slowdown holds its clocks down (a power cap is a loaded card's normal
             state and costs nothing).

An unknown reading is neutral: it counts as 1.

An idle core clocks down by itself, so a low ratio says something about busy cores alone: it
counts fully from 0.7 busy, not at all up to 0.3 busy, and proportionally between. 0.7 because
all-core turbo is commonly 0.75 to 0.85 of the single-core turbo that is called the maximum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from lbhost.board import CoreRow, GpuRow, HostRow
from lbhost.placement.heat import Limits, limits_of, of_chip

FLOOR = 0.05
"""Never 0: a worker that gets nothing would never be seen to have recovered."""
FAIR_NICED = 0.5
"""Its part beside a program of its own nice value; 0.75 beside nice 10, 0.96 beside nice 19."""
CLOCK_OK = 0.7
SMT_COST = 0.4
"""What a fully busy sibling takes of a core: two together do about 1.2 times the work of one."""
GPU_SLOWED = 0.5
SHARED_HOT = 0.5
"""What a sensor that several workers share leaves of each when it is hot."""
_GPU_BRAKES = frozenset({"thermal", "brake", "slowdown"})


def share(
    cores: Sequence[CoreRow | None],
    *,
    host: HostRow | None = None,
    gpu: GpuRow | None = None,
    siblings: Sequence[CoreRow | None] = (),
    nice: int,
    warm_c: float | None,
    hot_c: float | None,
) -> float:
    """What is left to a worker on these cores, from FLOOR to 1.

    Args:
        cores: rows of the CPUs that the worker is pinned to; None for one that is unreadable.
        host: for the cgroup's throttling.
        gpu: the worker's GPU.
        siblings: rows of the other logical CPUs of the worker's physical cores.
        nice: the worker's niceness.
        warm_c: the setting: temperature from which a core gets less; None: not set.
        hot_c: the setting: temperature at which it gets FLOOR; above warm_c; None: not set.
    """
    known = [core for core in cores if core is not None]
    least = fair(nice)
    cpu = min((_left(core, least) for core in known), default=1.0)
    cpu *= 1 - SMT_COST * max((_taken(core) for core in siblings if core is not None), default=0.0)
    limits = limits_of(warm_c, hot_c)
    thermal = min((_thermal(core, limits, len(cores)) for core in known), default=1.0)
    quota = 1 - (host.throttled or 0.0) / 2 if host is not None else 1.0
    return max(FLOOR, min(1.0, cpu * thermal * quota * _gpu(gpu, limits)))


def heat(temp_c: float | None, limits: Limits, floor: float = FLOOR) -> float:
    """1 up to warm, falling linearly to the floor at hot; 1 if unknown."""
    warm_c, hot_c = limits.warm_c, limits.hot_c
    if temp_c is None or temp_c <= warm_c:
        return 1.0
    if temp_c >= hot_c:
        return floor
    return 1 - (1 - floor) * (temp_c - warm_c) / (hot_c - warm_c)


def core_heat(core: CoreRow, limits: Limits, worker_cores: int) -> float:
    """What heat leaves of a worker on so many cores, one of which this is."""
    shared = core.sensor_cores > worker_cores
    return heat(core.temp_c, of_chip(core, limits), SHARED_HOT if shared else FLOOR)


def clock(core: CoreRow) -> float:
    """What a lowered clock leaves of a busy core; 1 for idle ones and where it is unknown."""
    if core.freq_ratio is None or core.idle is None or core.freq_ratio >= CLOCK_OK:
        return 1.0
    weight = min(1.0, max(0.0, (_busy(core) - 0.3) / 0.4))
    return 1 - weight * (1 - core.freq_ratio / CLOCK_OK)


def fair(nice: int) -> float:
    """A worker's part of a core beside a program of nice 0 that wants all of it.

    Linux gives time by weight, and each step of niceness is worth a factor of 1.25: 0.5 of the
    core at nice 0, 0.25 at nice 5. Beside two programs it is a third: how many there are is not
    known, and the worker's predictions correct themselves (gateway/scheduling/accuracy.py).
    """
    weight = math.pow(1.25, -nice)
    return weight / (1 + weight)


def _left(core: CoreRow, least: float) -> float:
    """What others leave of a core, or what the scheduler would take back from them."""
    others = core.usual_others or 0.0
    niced = min(1.0, (core.niced or 0.0) / core.others) if core.others else 0.0
    part = least + max(0.0, FAIR_NICED - least) * niced
    return max(1 - others, part * (1 - (core.steal or 0.0)))


def _taken(core: CoreRow) -> float:
    """How busy a core is that no worker of ours has."""
    return _busy(core) if core.lasting is None else core.lasting


def _thermal(core: CoreRow, limits: Limits, worker_cores: int) -> float:
    throttling = 1 / (1 + (core.throttle_s or 0.0))
    return min(core_heat(core, limits, worker_cores), clock(core), throttling)


def _busy(core: CoreRow) -> float:
    return 0.0 if core.idle is None else 1 - core.idle


def _gpu(gpu: GpuRow | None, limits: Limits) -> float:
    if gpu is None:
        return 1.0
    slowed = not _GPU_BRAKES.isdisjoint(gpu.clock_limit.split(","))
    return min(heat(gpu.temp_c, limits), GPU_SLOWED if slowed else 1.0)
