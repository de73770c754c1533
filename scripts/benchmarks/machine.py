"""What the bench asks of the machine: is it quiet, what do processes use. Reads /proc only."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_BUSY = 0.05
"""Of one core: below that a process is no reason for a warning."""


def _stat(pid: int) -> list[str]:
    """/proc/PID/stat from the state on; [] when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        fields = _stat(pid)
        if fields:
            children.setdefault(int(fields[1]), []).append(pid)
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_s(pids: list[int]) -> float:
    """CPU seconds that processes have used so far, by the kernel's per-process clocks."""
    total = 0.0
    for pid in pids:
        try:
            total += time.clock_gettime((~pid << 3) | 2)
        except OSError:  # it has just ended
            continue
    return total


def pss_bytes(pids: list[int]) -> int:
    """Proportional set size: shared pages count in parts, so that sums are true."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def cores() -> list[int]:
    """CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0))


def disturbances(seconds: float = 1.0) -> list[str]:
    """Why figures taken now would be noise: processes that use CPU, one line each."""
    before = {pid: fields for pid in _pids() if (fields := _stat(pid))}
    time.sleep(seconds)
    busy: list[str] = []
    for pid, fields in before.items():
        after = _stat(pid)
        if not after or pid == os.getpid():
            continue
        used = sum(int(after[i]) - int(fields[i]) for i in (11, 12)) / _TICKS / seconds
        if used > _BUSY:
            command = Path(f"/proc/{pid}/comm")
            name = command.read_text(encoding="utf-8").strip() if command.exists() else "?"
            busy.append(f"{name} ({pid}) uses {used:.0%} of a core")
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
