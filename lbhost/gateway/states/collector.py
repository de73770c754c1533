"""The metrics of the store. Owns nothing: reads the plane's counts when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lbhost.gateway.states.plane import Plane


class StatesCollector(Collector):
    """Gauges and totals, all named lbhost_state_*."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def collect(self) -> Iterator[Metric]:
        plane, counts = self._plane, self._plane.counts
        for name, text, value in (
            ("entries", "KV states in the store", plane.entries),
            ("bytes", "Memory that they take", plane.bytes),
            ("limit_bytes", "Memory that they may take now", plane.limit),
        ):
            yield GaugeMetricFamily(f"lbhost_state_{name}", text, value)
        for name, text, total in (
            ("hits", "States that workers went on from", counts.hits),
            ("misses", "Requests sent for which the store had nothing", counts.misses),
            ("tokens", "Prompt tokens taken from states instead of computed", counts.tokens),
            ("saves", "States that workers saved", counts.saved),
            ("restores", "States read from disk", counts.restored),
            ("evictions", "States given up for want of room", counts.evicted),
            ("failures", "States that were of no use where they arrived", counts.failed),
            ("save_seconds", "Workers' time for saving", counts.save_s),
            ("load_seconds", "Workers' time for taking states over", counts.load_s),
        ):
            yield CounterMetricFamily(f"lbhost_state_{name}", text, total)
