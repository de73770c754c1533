"""What a simulated box is and what happens to it. Pure: drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from simulation.clock import START_S
from simulation.costs import Costs
from simulation.hardware import Disturbance, Kind

RESTART_S = 0.35
"""From a worker's death to the link to its successor, as measured."""

HANG_S = 1.5
"""How long a worker that makes no progress lives."""


class End(msgspec.Struct, frozen=True):
    """A worker's process ends and is replaced."""

    worker: int
    at_s: float
    """After the start."""
    hangs_s: float = 0.0
    """For so long it stands still before."""
    restart_s: float = RESTART_S


class Scenario(msgspec.Struct, frozen=True):
    """One box."""

    workers: int
    costs: Costs
    seed: int = 1
    noise: float = 0.0
    """Of the sensors; see hardware.Core."""
    most_output: int | None = None
    """max_tokens of all requests; None: each asks for what it gets."""
    lend: bool = True
    """Whether cores that no request needs are lent."""
    queue_timeout_s: float | None = None
    """A server that refuses what it cannot begin in time; None: nobody is ever refused."""
    on_cores: Sequence[tuple[int, Disturbance]] = ()
    ends: Sequence[End] = ()

    def disturbances(self, worker: int) -> list[Disturbance]:
        return [what for which, what in self.on_cores if which == worker]


def trouble(
    workers: int, length_s: float, rng: random.Random, *, slow: float, hot: float, dying: int
) -> tuple[list[tuple[int, Disturbance]], list[End]]:
    """Draw what happens to a box.

    Args:
        slow: part of the workers beside a program that leaves a quarter to a half of the core,
            for a fifth of the time each. hot: the same of those clocked down to 0.3 to 0.8.
        dying: ends of workers, half of them after standing still.
    """
    happens: list[tuple[int, Disturbance]] = []
    for kind, part, low, high in ((Kind.NEIGHBOUR, slow, 0.25, 0.5), (Kind.HEAT, hot, 0.3, 0.8)):
        for worker in rng.sample(range(workers), round(part * workers)):
            for span in range(2):
                start = START_S + length_s * (span + rng.random() * 0.8) / 2
                left = rng.uniform(low, high)
                happens.append((worker, Disturbance(kind, left, start, start + length_s / 10)))
    ends: list[End] = []
    for number in range(dying):
        at_s = rng.random() * length_s
        hangs_s = HANG_S if number % 2 else 0.0
        ends.append(End(rng.randrange(workers), at_s, hangs_s))
    return happens, ends
