"""A simulated box and its load, as the simulator's tests have them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from benchmarks.stats import Arrival
from simulation import arrivals as load
from simulation.costs import Costs
from simulation.scenario import Scenario

QUIET = Costs(noise=0.0)


def box(workers: int = 2, costs: Costs = QUIET, **more: Any) -> Scenario:
    return Scenario(workers=workers, costs=costs, **more)


def mix(count: int = 200, rate: float = 1.0, seed: int = 1) -> list[Arrival]:
    return load.mixed(rate, count, random.Random(seed))


def trace_file(folder: Path) -> Path:
    path = folder / "trace.csv"
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    rows += [f"2023-11-16 18:15:{i:02}.0000000,{100 + i},{10 + i}" for i in range(20)]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path
