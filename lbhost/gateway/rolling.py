"""Figures over a rolling window: rates, quantiles, parts. Pure: the time is passed in.

What has left the window counts no more; after a window without anything new there is nothing
to show, rather than an old figure.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

_Value: TypeAlias = tuple[float, tuple[float, ...]]
"""With its parts."""


class Rate:
    """How fast a total grows, per second, over the last `window_s`."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, int]] = deque()

    def update(self, now: float, total: int) -> float:
        seen = self._seen
        seen.append((now, total))
        while len(seen) > 2 and seen[1][0] <= now - self._window_s:
            seen.popleft()
        then, was = seen[0]
        return (total - was) / (now - then) if now > then else 0.0


class Growth:
    """A total over counters that begin anew with each process."""

    def __init__(self) -> None:
        self.total = 0
        self._epoch = -1
        self._last = 0

    def update(self, epoch: int, value: int) -> int:
        """The total, when the counter of that process stands at `value`."""
        if epoch != self._epoch:
            self._epoch, self._last = epoch, 0
        self.total += max(0, value - self._last)
        self._last = value
        return self.total


class Quantiles:
    """p50 and p95 of the values of the last `window_s`, the newest `most` at most.

    Sorted anew once a second, at most. A value may come with the parts that it is the sum of.
    """

    def __init__(self, window_s: float, most: int) -> None:
        self._window_s = window_s
        self._values: deque[tuple[float, float, tuple[float, ...]]] = deque(maxlen=most)
        self._made: tuple[float | None, float | None] = (None, None)
        self._made_at = -1.0
        self.p95_parts: tuple[float, ...] = ()
        """Of the value that is the p95, as of the last `at`; empty: it came without."""

    def add(self, now: float, value: float, parts: tuple[float, ...] = ()) -> None:
        self._values.append((now, value, parts))

    def at(self, now: float) -> tuple[float | None, float | None]:
        """(None, None) without any value in the window."""
        if now - self._made_at >= 1.0:
            self._made_at = now
            while self._values and now - self._values[0][0] > self._window_s:
                self._values.popleft()
            values = sorted((value, parts) for _, value, parts in self._values)
            p50, p95 = _quantile(values, 0.5), _quantile(values, 0.95)
            self._made = (None if p50 is None else p50[0], None if p95 is None else p95[0])
            self.p95_parts = () if p95 is None else p95[1]
        return self._made


class Part:
    """Which part of the events of the last `seconds` was marked; a bucket a second."""

    def __init__(self, seconds: int) -> None:
        self._buckets: deque[tuple[int, int, int]] = deque(maxlen=seconds)
        self._seconds = seconds

    def add(self, now: float, marked: bool) -> None:
        second, total, hits = int(now), 0, 0
        if self._buckets and self._buckets[-1][0] == second:
            _, total, hits = self._buckets.pop()
        self._buckets.append((second, total + 1, hits + marked))

    def at(self, now: float) -> float | None:
        """0 to 1; None without events."""
        while self._buckets and self._buckets[0][0] <= now - self._seconds:
            self._buckets.popleft()
        total = sum(total for _, total, _ in self._buckets)
        return sum(hits for _, _, hits in self._buckets) / total if total else None


def _quantile(values: list[_Value], part: float) -> _Value | None:
    return values[min(len(values) - 1, int(part * len(values)))] if values else None
