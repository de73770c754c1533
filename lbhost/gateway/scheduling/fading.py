"""Figures of the recent past that fade when nothing new comes. Pure: the time is passed in."""

from __future__ import annotations

import math

KEPT_S = 60.0
"""How long after its newest reading a mean still says something."""

MEAN_WEIGHT = 0.1
"""Weight of the newest reading."""

ERROR_WEIGHT = 0.2
"""Weight of the newest request in an error rate."""

HALF_LIFE_S = 10.0
"""An error rate halves in so long: a worker that failed gets work again, and may show it."""


class FadingMean:
    """EWMA of readings; nothing KEPT_S after the newest."""

    def __init__(self) -> None:
        self._mean: float | None = None
        self._newest = 0.0

    def add(self, value: float, now: float) -> None:
        old = self.at(now)
        self._mean = value if old is None else old + MEAN_WEIGHT * (value - old)
        self._newest = now

    def at(self, now: float) -> float | None:
        """The mean as of `now`; None without a reading in the last KEPT_S."""
        return self._mean if now - self._newest <= KEPT_S else None


class ErrorRate:
    """Part of the requests that failed of late, 0 to 1; the newer one is, the more it counts."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._newest = 0.0

    def add(self, failed: bool, now: float) -> None:
        old = self.at(now)
        self._rate = old + ERROR_WEIGHT * (float(failed) - old)
        self._newest = now

    def at(self, now: float) -> float:
        return self._rate * math.pow(0.5, max(0.0, now - self._newest) / HALF_LIFE_S)
