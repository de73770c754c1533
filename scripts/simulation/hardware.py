"""What a virtual worker's core leaves to it, and what sensors make of that.

Owns the disturbances of one core. Readings go through lbhost/placement/share.py, as real ones do.
"""

from __future__ import annotations

import enum
import random

import msgspec

from lbhost.board import CoreRow
from lbhost.config import DEFAULT_HOT_C, DEFAULT_WARM_C, Settings
from lbhost.placement import share

SAMPLE_S = 0.25
"""Between two samples, as lbhost's sampler takes them."""

QUIET_C = 55.0

SPIKE = 0.02
"""Part of the samples in which a noisy sensor is far off: something ran for a moment."""


class Kind(enum.StrEnum):
    """What happens to a core."""

    NEIGHBOUR = "neighbour"
    """Another program uses a part of it."""
    HEAT = "heat"
    """It is hot, and clocked down to what is left."""


class Disturbance(msgspec.Struct, frozen=True):
    """Something that happens to a core for some time."""

    kind: Kind
    left: float
    """What is left to the worker, over 0 and at most 1."""
    start_s: float = 0.0
    """Of simulated time."""
    end_s: float = float("inf")
    wants: float | None = None
    """What a neighbour uses of a core that nobody else wants; None: half as much more as beside
    a busy worker."""


class Core:
    """One core with one sensor.

    Args:
        noise: standard deviation of what is read of others' use; temperatures are off by 20
            degrees times that.
    """

    def __init__(
        self, settings: Settings, rng: random.Random, noise: float, happens: list[Disturbance]
    ) -> None:
        self._settings = settings
        self._rng = rng
        self._noise = noise
        self._happens = happens
        self._sampled_s = -1.0
        self._share = 1.0
        self.row = CoreRow(lead=True)

    def left(self, now: float) -> float:
        """The true part of the core that a worker with work has now."""
        left = 1.0
        for one in self._happens:
            if one.start_s <= now < one.end_s:
                left *= one.left
        return left

    def share(self, now: float, busy: bool) -> float:
        """The same as lbhost believes it, from the last sample."""
        if now - self._sampled_s >= SAMPLE_S:
            if self._noise or self._happens or self._sampled_s < 0:
                self.row = self._sample(now, busy)
                self._share = share.share(
                    [self.row],
                    warm_c=self._settings.warm_c,
                    hot_c=self._settings.hot_c,
                    nice=0,  # a session of its own, where it counts for nothing
                )
            self._sampled_s = now
        return self._share

    def _sample(self, now: float, busy: bool) -> CoreRow:
        others = 0.0
        clock = 1.0
        for one in self._happens:
            if not one.start_s <= now < one.end_s:
                continue
            if one.kind is Kind.HEAT:
                clock *= one.left
            else:
                # On an idle worker's core the neighbour may take more than it leaves a busy one.
                alone = one.left / 2 if one.wants is None else 1 - one.wants
                others = 1 - (1 - others) * (one.left if busy else alone)
        heat = (1 - clock) / (1 - share.FLOOR)
        span_c = DEFAULT_HOT_C - DEFAULT_WARM_C
        temp_c = DEFAULT_WARM_C + heat * span_c if clock < 1 else QUIET_C
        if self._noise:
            noise = abs(self._rng.gauss(0, self._noise))
            if self._rng.random() < SPIKE:
                noise = self._rng.random()
            others = min(1.0, others + noise)
            temp_c += self._rng.gauss(0, 20 * self._noise)
        idle = max(0.0, 1 - others) if not busy else 0.0
        return CoreRow(
            sampled_ns=int(now * 1e9),
            idle=idle,
            others=others,
            freq_ratio=clock if busy or others > 0.5 else 0.5,
            temp_c=temp_c,
            sensor=0,
            sensor_cores=1,
            lead=True,
        )
