"""What the bench asks of the machine: is it quiet, what do processes use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

_BUSY = 0.05
"""Of one core: below that a process is no reason for a warning."""


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    try:
        return [root, *(child.pid for child in psutil.Process(root).children(recursive=True))]
    except psutil.NoSuchProcess:
        return [root]


def cpu_s(pids: list[int]) -> float:
    """CPU seconds that processes have used so far, by the kernel's per-process clocks."""
    total = 0.0
    for pid in pids:
        try:
            total += time.clock_gettime((~pid << 3) | 2)  # a microsecond; psutil's tick is 10 ms
        except OSError:  # it has just ended
            continue
    return total


def pss_bytes(pids: list[int]) -> int:
    """Proportional set size: shared pages count in parts, so that sums are true."""
    total = 0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            total += int(psutil.Process(pid).memory_full_info().pss)
    return total


def cores() -> list[int]:
    """CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0))


def disturbances(seconds: float = 1.0) -> list[str]:
    """Why figures taken now would be noise: processes that use CPU, one line each."""
    before: dict[psutil.Process, Any] = {}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            before[process] = process.cpu_times()
    time.sleep(seconds)
    busy: list[str] = []
    for process, then in before.items():
        with suppress(psutil.NoSuchProcess):
            now = process.cpu_times()
            used = (now.user + now.system - then.user - then.system) / seconds
            if process.pid != os.getpid() and used > _BUSY:
                busy.append(f"{process.name()} ({process.pid}) uses {used:.0%} of a core")
    load = os.getloadavg()[0]
    if load > 0.5:
        busy.append(f"load average {load:.2f}")
    return busy


def describe() -> str:
    """CPU and core count, for the report."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "?")
    return f"{model}, {len(cores())} CPUs, Linux {os.uname().release}"


@contextmanager
def neighbour(cpu: int) -> Iterator[None]:
    """Another program that spins on one core for as long as the block runs."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinner:
        try:
            os.sched_setaffinity(spinner.pid, {cpu})
            yield
        finally:
            spinner.kill()
