"""What load is played: mixes, traces, bursts. Pure; randomness comes from a generator passed in."""

from __future__ import annotations

import csv
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

from benchmarks.stats import Arrival, trace
from simulation.costs import Costs

MIX: tuple[tuple[float, int, int], ...] = ((0.8, 32, 16), (0.2, 1200, 128))
"""Part of the requests, prompt tokens, output tokens: short questions and long documents."""


def mixed(
    rate: float,
    count: int,
    rng: random.Random,
    mix: Sequence[tuple[float, int, int]] = MIX,
) -> list[Arrival]:
    """`count` arrivals at `rate` a second, each of a kind drawn from the mix."""
    weights = [part for part, _, _ in mix]
    kinds = [(prompt, output) for _, prompt, output in mix]
    at = 0.0
    arrivals: list[Arrival] = []
    for prompt, output in rng.choices(kinds, weights, k=count):
        at += rng.expovariate(rate)
        arrivals.append(Arrival(at, prompt, output))
    return arrivals


def recorded(path: Path, rate: float, count: int, most_tokens: int) -> list[Arrival]:
    """A trace, stretched to `rate` requests a second and played again until there are `count`.

    Raises:
        OSError, ValueError: it cannot be read, or is no trace.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    once = trace(rows, count=min(count, len(rows)), rate=rate, most_tokens=most_tokens)
    length = once[-1].at + 1 / rate
    rounds = itertools.count()
    again = (
        Arrival(arrival.at + number * length, arrival.prompt_tokens, arrival.completion_tokens)
        for number in rounds
        for arrival in once
    )
    return list(itertools.islice(again, count))


def with_burst(
    arrivals: Sequence[Arrival], at_s: float, for_s: float, times: float
) -> list[Arrival]:
    """So many times the requests per second between at_s and at_s + for_s.

    The time of those that arrive from at_s on is squeezed; what comes after it comes earlier.
    """
    squeezed = for_s * times
    saved = squeezed - for_s

    def moved(at: float) -> float:
        if at <= at_s:
            return at
        return at_s + (at - at_s) / times if at <= at_s + squeezed else at - saved

    return [arrival._replace(at=moved(arrival.at)) for arrival in arrivals]


def capacity(arrivals: Sequence[Arrival], costs: Costs, workers: int) -> float:
    """Requests a second that keep all workers with all their slots busy: 100% load."""
    mean = sum(costs.full_s(a.prompt_tokens, a.completion_tokens) for a in arrivals) / len(arrivals)
    return workers / mean
