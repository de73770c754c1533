"""The box as a whole: pressure, memory, and what the cgroup's quota does to us."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from lbhost.board import HostRow
from lbhost.machine import cgroup
from lbhost.machine.probe import Probe
from lbhost.machine.tree import Roots

_WINDOW = 5
"""Readings that the throttling ratio spans: a second, so ten of the usual 100 ms periods."""
_RECHECK = 8
"""Readings between two looks at limits, which operators change rarely."""


class HostMeter:
    """Reads the host's row of the board. Call `read` at a steady pace, `close` at the end."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._group = cgroup.locate(roots)
        self._meminfo = Probe(roots.procfs / "meminfo", 256)
        pressure = roots.procfs / "pressure"
        self._pressure = [Probe(pressure / name, 128) for name in ("cpu", "memory", "io")]
        self._round = 0
        self._quota: float | None = None
        self._limit: int | None = None
        self._oom_kills: int | None = None
        """As the group counts them."""
        self._oom_kills_seen = 0
        self._stats: dict[Path, tuple[Probe, deque[tuple[int, int]]]] = {}

    def read(self, sampled_ns: int) -> HostRow:
        """The row as of now."""
        if self._round % _RECHECK == 0:
            self._recheck()
        self._round += 1
        psi_cpu, psi_memory, psi_io = (some_avg10(probe.read()) for probe in self._pressure)
        total, available = memory(self._meminfo.read())
        if self._limit is not None:
            left = self._group.memory_available()
            total = self._limit if total is None else min(total, self._limit)
            if left is not None:
                available = left if available is None else min(available, left)
        return HostRow(
            sampled_ns=sampled_ns,
            psi_cpu=psi_cpu,
            psi_memory=psi_memory,
            psi_io=psi_io,
            memory_total=None if total is None else float(total),
            memory_available=None if available is None else float(available),
            quota_cpus=self._quota,
            throttled=self._throttled(),
            oom_kills=self._count_oom_kills(),
        )

    def close(self) -> None:
        """Let go of all files."""
        for probe in [self._meminfo, *self._pressure, *(p for p, _ in self._stats.values())]:
            probe.close()

    def _recheck(self) -> None:
        group = cgroup.locate(self._roots)
        if group != self._group:  # somebody has moved us: what it counts began without us
            self._group, self._oom_kills = group, None
        self._quota = self._group.quota_cpus()
        self._limit = self._group.memory_limit()
        folders = set(self._group.quota_folders())
        for gone in self._stats.keys() - folders:
            self._stats.pop(gone)[0].close()
        for folder in folders - self._stats.keys():
            self._stats[folder] = (Probe(folder / "cpu.stat", 512), deque(maxlen=_WINDOW))

    def _count_oom_kills(self) -> int:
        """Those since the first reading."""
        before, self._oom_kills = self._oom_kills, self._group.oom_kills()
        if before is not None and self._oom_kills is not None:
            self._oom_kills_seen += max(0, self._oom_kills - before)
        return self._oom_kills_seen

    def _throttled(self) -> float | None:
        """Fraction of the last second's periods that ran out, in the worst of our groups."""
        worst: float | None = None
        for probe, history in self._stats.values():
            counts = throttling(probe.read())
            if counts is None or (history and counts < history[-1]):
                history.clear()  # counters that went backwards are another group's
            if counts is None:
                continue
            history.append(counts)
            if len(history) < 2:
                continue
            periods = history[-1][0] - history[0][0]
            # A group with nothing to run counts no periods: nothing held it up.
            ratio = (history[-1][1] - history[0][1]) / periods if periods > 0 else 0.0
            worst = max(worst or 0.0, min(1.0, max(0.0, ratio)))
        return worst


def available_bytes(roots: Roots) -> int | None:
    """Memory that this process can take now, on the box and in its cgroup; None if unknown."""
    meter = HostMeter(roots)
    try:
        available = meter.read(0).memory_available
    finally:
        meter.close()
    return None if available is None else int(available)


def some_avg10(data: bytes | None) -> float | None:
    """PSI's `some avg10`, 0 to 1."""
    start = -1 if data is None else data.find(b"some avg10=")
    if data is None or start < 0:
        return None
    try:
        return float(data[start + 11 :].split(None, 1)[0]) / 100
    except (ValueError, IndexError):
        return None


def memory(data: bytes | None) -> tuple[int | None, int | None]:
    """MemTotal and MemAvailable of /proc/meminfo, bytes."""
    found: dict[bytes, int] = {}
    for line in (data or b"").split(b"\n"):
        name, _, rest = line.partition(b":")
        if name in (b"MemTotal", b"MemAvailable"):
            words = rest.split()
            if words and words[0].isdigit():
                found[name] = int(words[0]) * 1024
    return found.get(b"MemTotal"), found.get(b"MemAvailable")


def throttling(data: bytes | None) -> tuple[int, int] | None:
    """(nr_periods, nr_throttled) of a cpu.stat, v1 or v2; None if it has none."""
    found: dict[bytes, int] = {}
    for line in (data or b"").split(b"\n"):
        words = line.split()
        if len(words) == 2 and words[0] in (b"nr_periods", b"nr_throttled") and words[1].isdigit():
            found[words[0]] = int(words[1])
    if len(found) < 2:
        return None
    return found[b"nr_periods"], found[b"nr_throttled"]
