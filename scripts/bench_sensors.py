#!/usr/bin/env python3
"""What the sampler costs on a big box: CPU time a sample, on a generated 64-core tree.

    .venv/bin/python scripts/bench_sensors.py [--cores N] [--samples N] [--json]

Generates /sys and /proc of a machine with a temperature, a clock and throttle counters on
every core, a quota, and one worker per core (this process's own CPU clock stands in for each
worker's). The figure that counts is the part of one core at 4 samples a second: under 1%.
Files in a temporary folder are quicker than real sensors, whose drivers take their own time;
run with --sysfs /sys --procfs /proc to measure the machine at hand. `use_psutil_mean_ms` is what
psutil needs for the use of the CPUs alone, `use_mean_ms` what the sampler needs for it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

import psutil  # noqa: E402

import trees  # noqa: E402
from lbhost.board import Board  # noqa: E402
from lbhost.machine import cpustat, topology  # noqa: E402
from lbhost.machine.probe import Probe  # noqa: E402
from lbhost.machine.sampler import INTERVAL_S, Sampler, Watched  # noqa: E402
from lbhost.machine.tree import Roots  # noqa: E402

GOAL = 0.01


def measure(roots: Roots, samples: int) -> dict[str, float | int | bool]:
    """Time `samples` samples of the box under `roots`, a worker on every core."""
    everything = range(4096)
    box = topology.discover(roots, everything)
    board = Board.create(workers=len(box.cores), cores=box.rows, gpus=0)
    workers = [Watched(n, os.getpid(), core.cpus[:1]) for n, core in enumerate(box.cores)]
    now_ns = time.monotonic_ns()
    sampler = Sampler(board, box, roots, clock_ns=lambda: now_ns)
    cpu_s: list[float] = []
    try:
        for _ in range(samples):
            now_ns += int(INTERVAL_S * 1e9)
            before = time.process_time_ns()
            sampler.sample(workers)
            cpu_s.append((time.process_time_ns() - before) / 1e9)
    finally:
        sampler.close()
    mean = statistics.fmean(cpu_s)
    return {
        "cpus": len(box.cpus),
        "workers": len(workers),
        "samples": samples,
        "sample_mean_ms": round(mean * 1e3, 3),
        "sample_p50_ms": round(statistics.median(cpu_s) * 1e3, 3),
        "sample_max_ms": round(max(cpu_s) * 1e3, 3),
        "core_fraction_at_4_hz": round(mean / INTERVAL_S, 5),
        "goal": GOAL,
        "met": mean / INTERVAL_S < GOAL,
    }


def use_ms(procfs: Path, samples: int) -> dict[str, float]:
    """Mean CPU milliseconds of one reading of every CPU's use, here and by psutil."""
    stat = Probe(procfs / "stat", 1 << 16)
    psutil.PROCFS_PATH = str(procfs)
    readings = {
        "use_mean_ms": lambda: cpustat.parse(stat.read() or b""),
        "use_psutil_mean_ms": lambda: psutil.cpu_times(percpu=True),
    }
    found = {}
    for name, read in readings.items():
        before = time.process_time_ns()
        for _ in range(samples):
            read()
        found[name] = round((time.process_time_ns() - before) / 1e6 / samples, 3)
    stat.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--samples", type=int, default=240, help="default: a minute's worth")
    parser.add_argument("--sysfs", type=Path, help="a real tree instead of a generated one")
    parser.add_argument("--procfs", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.sysfs and given.procfs:
        result = measure(Roots(given.sysfs, given.procfs), given.samples)
        result |= use_ms(given.procfs, given.samples)
    else:
        with tempfile.TemporaryDirectory() as folder:
            tree = trees.big_server(Path(folder) / "box", given.cores)
            result = measure(tree.roots, given.samples)
            result |= use_ms(tree.roots.procfs, given.samples)
    if given.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{name:<24}{value}")
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
