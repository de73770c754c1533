"""A simulated day from traces: which loads, which ways to share the cores, what came of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.figures import number
from benchmarks.stats import Arrival, quantile
from lbhost.supervisor.autoscale import Bounds
from simulation import arrivals as load
from simulation.costs import Costs
from simulation.day import Day, Model, daily, through_the_day

DAY_S = 24 * 3600.0
QUIET = 0.03
"""The load of the quietest hour over that of the busiest."""
SLEEP_S = 300.0
"""Models but for the first sleep after so long."""
AUTO = "autoscaled"


def loads(
    traces: Sequence[Path], cores: int, costs: Costs, part: float, most_tokens: int, *, seed: int
) -> list[list[Arrival]]:
    """A day's requests for each trace; each model's busiest hour is some hours from the others'.

    Args:
        part: of the box that all of them together take in the mean, each in its busiest hour.
    """
    made = []
    for i, path in enumerate(traces):
        once = load.recorded(path, 1.0, 100_000, most_tokens)[: _rows(path)]
        most = part * load.capacity(once, costs, cores) / len(traces)
        curve = daily(most, QUIET * most, 14 + 3 * i)
        made.append(through_the_day(once, curve, DAY_S, random.Random(f"{seed} {i}")))
    return made


def ways(
    arrivals: Sequence[Sequence[Arrival]], cores: int, costs: Costs
) -> Iterator[tuple[str, dict[str, Model]]]:
    """The autoscaler, and what there is without it."""
    names = [f"model {i}" for i in range(len(arrivals))]

    def models(bounds: Sequence[Bounds]) -> dict[str, Model]:
        return {
            name: Model(one, coming, costs, workers=one.awake)
            for name, one, coming in zip(names, bounds, arrivals, strict=True)
        }

    yield AUTO, models([Bounds(int(i == 0), cores, SLEEP_S) for i in range(len(names))])
    each = max(1, cores // len(names))
    yield "the cores split", models([Bounds(each, each)] * len(names))


def table(title: str, day: Day) -> str:
    """What the day was like, some lines."""
    slept = sum(change.workers == 0 for change in day.changes)
    lines = [
        f"{title}: {len(day.changes)} changes, {slept} of them to sleep; given and taken back "
        f"within 2, 5, 10 minutes: {', '.join(str(day.back_and_forth(s)) for s in (120, 300, 600))}"
    ]
    for name, outcome in day.outcomes.items():
        waits = ", ".join(number(quantile(outcome.waits, part)) for part in (0.5, 0.95, 0.99))
        lines.append(
            f"  {name}: {len(outcome.waits)} requests, wait p50, p95, p99: {waits} s; "
            f"{outcome.worker_s / DAY_S:.2f} workers, busy for "
            f"{outcome.busy_s / max(1.0, outcome.worker_s):.0%}; "
            f"asleep for {outcome.asleep_s / 3600:.1f} h"
        )
    return "\n".join(lines)


def _rows(path: Path) -> int:
    with path.open(encoding="utf-8") as file:
        return sum(1 for _ in file) - 1
