"""How much of each CPU was idle, stolen, and used by others than its worker. Pure.

From /proc/stat (per CPU, in ticks of 10 ms) and the CPU clocks of our processes (exact). Shares
are taken of the wall clock, not of the sum of the ticks: idle ticks come from an exact clock,
while user and system ticks are sampled and can be off by several in a quarter second.

One tick is 4% of a 250 ms interval, so the figures are taken over WINDOW_S: 2% at worst, and
a change shows by half at the first sample and in full at the second.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import msgspec

WINDOW_S = 0.45
"""At 4 samples a second this is two intervals, with room for a timer that fires early."""
LASTING_S = 1.0
"""Time constant of `lasting`. A use of a quarter second shows as 0.2 at most; of a program that
spins 0.25 is believed after 0.5 s, a half after 0.9 s, 0.9 after 2.6 s."""
_STEP_BACK = 2
"""Ticks by which a counter may go backwards and still be the same one (iowait does)."""
_LEAST_S = 0.1
"""Over less than this the ticks say nothing."""


class Ticks(msgspec.Struct, frozen=True, gc=False):
    """One CPU's line of /proc/stat."""

    idle: int
    """Idle and waiting for I/O: either way the CPU is free."""
    steal: int
    total: int
    nice: int = 0
    """User time at lowered priority."""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Fractions of the last window; None if unknown."""

    idle: float | None = None
    others: float | None = None
    steal: float | None = None
    niced: float | None = None
    """The part of `others` that runs at lowered priority."""
    lasting: float | None = None
    """`others`, smoothed over LASTING_S: what comes and goes by the moment hardly shows."""
    foreign: float | None = None
    """`lasting` without what this server's processes that are no workers use."""


_UNKNOWN = Usage()


class _Interval(msgspec.Struct, gc=False):
    seconds: float
    idle_s: float
    steal_s: float
    total_s: float
    nice_s: float
    own_s: float | None
    served_s: float


def parse(data: bytes) -> dict[int, Ticks]:
    """The CPUs of /proc/stat; those that are offline have no line. Bad lines are left out."""
    found: dict[int, Ticks] = {}
    for line in data.split(b"\n"):
        if not line.startswith(b"cpu"):
            if found:
                break  # the long `intr` line follows
            continue
        words = line.split()
        try:
            cpu = int(words[0][3:])
            ticks = [int(word) for word in words[1:9]]  # guest time is part of user time
        except ValueError:
            continue  # the first line, "cpu ", is the sum of all; or the line is garbled
        if len(ticks) >= 4:
            steal = ticks[7] if len(ticks) > 7 else 0
            idle = ticks[3] + (ticks[4] if len(ticks) > 4 else 0)
            found[cpu] = Ticks(idle, steal, sum(ticks), ticks[1])
    return found


class UsageMeter:
    """Turns successive readings into usage. One per box; keeps the last window only."""

    def __init__(self, ticks_per_s: int) -> None:
        self._tick_s = 1 / ticks_per_s
        self._before: dict[int, Ticks] = {}
        self._at_s: float | None = None
        self._intervals: dict[int, deque[_Interval]] = {}
        self._lasting: dict[int, tuple[float, float]] = {}
        """What others use, and foreigners; the latter may be under 0 for a moment."""

    def forget(self) -> None:
        """What was used up to now was our own, as far as anybody knows: no foreigner is believed
        in until the next intervals show one."""
        self._intervals.clear()
        self._lasting = {cpu: (lasting, 0.0) for cpu, (lasting, _) in self._lasting.items()}

    def add(
        self,
        at_s: float,
        ticks: Mapping[int, Ticks],
        own_s: Mapping[int, float | None],
        served_s: Mapping[int, float] | None = None,
    ) -> dict[int, Usage]:
        """Usage of every CPU in `ticks` as of this reading.

        Args:
            at_s: monotonic time of the reading.
            ticks: what `parse` gave.
            own_s: per CPU, seconds that its own worker ran since the last reading. None:
                there is a worker but its clock says nothing. Absent: there is no worker.
            served_s: per CPU, about so many seconds that this server's other processes ran.
        """
        if self._at_s is None:
            self._before, self._at_s = dict(ticks), at_s
            return dict.fromkeys(ticks, _UNKNOWN)
        seconds = at_s - self._at_s
        usage: dict[int, Usage] = {}
        intervals: dict[int, deque[_Interval]] = {}
        believed = self._lasting
        self._lasting = {}
        for cpu, now in ticks.items():
            served = (served_s or {}).get(cpu, 0.0)
            interval = self._interval(cpu, now, seconds, own_s.get(cpu, 0.0), served)
            # A CPU that was offline meanwhile, or whose counters jumped, starts afresh.
            history = self._intervals.get(cpu) if interval is not None else None
            history = deque() if history is None else history
            if interval is not None:
                history.append(interval)
                while len(history) > 1 and _span(history) - history[0].seconds >= WINDOW_S:
                    history.popleft()
            intervals[cpu] = history
            usage[cpu] = now_used = _over(history)
            if now_used.others is not None and now_used.foreign is not None:
                lasting, foreign = now_used.others, now_used.foreign
                if cpu in believed:
                    weight = 1 - math.exp(-seconds / LASTING_S)
                    before, alien = believed[cpu]
                    lasting = before + weight * (lasting - before)
                    foreign = alien + weight * (foreign - alien)
                self._lasting[cpu] = lasting, foreign
                usage[cpu] = msgspec.structs.replace(
                    now_used, lasting=lasting, foreign=_fraction(foreign)
                )
        self._before, self._at_s, self._intervals = dict(ticks), at_s, intervals
        return usage

    def _interval(
        self, cpu: int, now: Ticks, seconds: float, own_s: float | None, served_s: float
    ) -> _Interval | None:
        before = self._before.get(cpu)
        if before is None or seconds <= 0:
            return None
        idle, steal = now.idle - before.idle, now.steal - before.steal
        if idle < -_STEP_BACK or steal < -_STEP_BACK:
            return None
        tick_s = self._tick_s
        return _Interval(
            seconds=seconds,
            idle_s=max(0, idle) * tick_s,
            steal_s=max(0, steal) * tick_s,
            total_s=(now.total - before.total) * tick_s,
            nice_s=max(0, now.nice - before.nice) * tick_s,
            own_s=own_s,
            served_s=min(served_s, seconds),
        )


def _span(history: deque[_Interval]) -> float:
    return sum(interval.seconds for interval in history)


def _over(history: deque[_Interval]) -> Usage:
    seconds = idle = steal = total = own = own_seconds = own_idle = own_nice = served = 0.0
    for interval in history:
        seconds += interval.seconds
        idle += interval.idle_s
        steal += interval.steal_s
        total += interval.total_s
        if interval.own_s is not None:
            own += interval.own_s
            own_seconds += interval.seconds
            own_idle += interval.idle_s
            own_nice += interval.nice_s
            served += interval.served_s
    # Sandboxed kernels show zeros for ever: that is not a CPU which is always busy.
    if seconds < _LEAST_S or total < seconds / 2:
        return _UNKNOWN
    others = niced = foreign = None
    if own_seconds:
        others = _fraction(1 - (own_idle + own) / own_seconds)
        # Workers are niced themselves.
        niced = min(others, _fraction((own_nice - own) / own_seconds))
        # Not cut off at 0: where a process ran is known by and large only, and evens out.
        foreign = others - served / own_seconds
    return Usage(
        _fraction(idle / seconds), others, _fraction(steal / seconds), niced, foreign=foreign
    )


def _fraction(value: float) -> float:
    return min(1.0, max(0.0, value))
