"""A day of several models on one box, with the autoscaler deciding how many workers each has.

Simulated time in ticks of a quarter of a second, the supervisor's own. Workers are fluid: their
prompts are computed one after the other, their streams share each step (costs.py). Queues are
first in, first out: what is judged here is the number of workers, not who gets what.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from benchmarks.stats import Arrival
from lbhost.supervisor.autoscale import Autoscaler, Bounds, Decision, Look
from simulation.costs import Costs

TICK_S = 0.25
WAKE_S = 0.3
"""From the decision to a worker that takes requests."""


class Change(msgspec.Struct, frozen=True):
    """A decision, and when it was taken."""

    at_s: float
    model: str
    before: int
    workers: int
    reason: str


class Asked(msgspec.Struct):
    """One request."""

    arrived: float
    prompt_s: float
    """Of a worker, to compute what is left of its prompt."""
    tokens: float
    """That are left."""
    wait_s: float | None = None
    """Until a worker had a slot for it."""


class Model(msgspec.Struct, frozen=True):
    """One model of the box and what comes for it."""

    bounds: Bounds
    arrivals: Sequence[Arrival]
    costs: Costs = Costs()
    workers: int = 1
    """At the start."""


class Outcome(msgspec.Struct):
    """What one model's day was like."""

    waits: list[float] = []
    """Seconds until a worker had a slot, of each request."""
    worker_s: float = 0.0
    """Seconds of workers that were there."""
    busy_s: float = 0.0
    """And of those that computed."""
    asleep_s: float = 0.0


class Day(msgspec.Struct):
    """What came of it."""

    outcomes: dict[str, Outcome]
    changes: list[Change]
    most_cores: int = 0
    """Needed at any time by all workers that were wanted."""

    def back_and_forth(self, within_s: float) -> int:
        """How often a model had to get back what it had given less than so long before."""
        gave: dict[str, float] = {}
        found = 0
        for change in self.changes:
            if 0 in (change.before, change.workers):
                continue
            if change.workers < change.before:
                gave[change.model] = change.at_s
            else:
                found += change.at_s - gave.pop(change.model, -math.inf) < within_s
        return found


class _Worker:
    """One that takes requests from a time on; one that leaves takes none and runs out."""

    def __init__(self, from_s: float) -> None:
        self.from_s = from_s
        self.leaving = False
        self.running: list[Asked] = []

    def run(self, costs: Costs, seconds: float) -> float:
        """Compute for so long; returns for how long there was something to compute."""
        left = seconds
        while left > 1e-9 and self.running:
            first = next((asked for asked in self.running if asked.prompt_s > 0), None)
            if first is not None:
                spent = min(left, first.prompt_s)
                first.prompt_s = first.prompt_s - spent if spent < first.prompt_s else 0.0
            else:
                step_s = costs.step_s(len(self.running))
                steps = min(left / step_s, min(asked.tokens for asked in self.running))
                spent = steps * step_s
                for asked in self.running:
                    asked.tokens -= steps
                self.running = [asked for asked in self.running if asked.tokens > 1e-6]
            left -= spent
        return seconds - left


class _Pool:
    """One model's workers and its queue."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.workers = [_Worker(0.0) for _ in range(model.workers)]
        self.queue: deque[Asked] = deque()
        self.coming: Iterator[Arrival] = iter(model.arrivals)
        self.next = next(self.coming, None)
        self.requests = 0
        self.work_s = 0.0
        self.outcome = Outcome()

    @property
    def wanted(self) -> int:
        return sum(not worker.leaving for worker in self.workers)

    def look(self) -> Look:
        costs = self.model.costs
        each = costs.step_base_s / costs.slots + costs.step_seq_s
        return Look(
            bounds=self.model.bounds,
            workers=self.wanted,
            requests=self.requests,
            work_s=self.work_s,
            backlog_s=sum(asked.prompt_s + asked.tokens * each for asked in self.queue),
            queued=len(self.queue),
            in_flight=sum(len(worker.running) for worker in self.workers),
            slots=costs.slots,
        )

    def scale(self, count: int, now_s: float) -> None:
        here = [worker for worker in self.workers if not worker.leaving]
        for worker in here[count:]:
            worker.leaving = True
        self.workers += [_Worker(now_s + WAKE_S) for _ in range(count - len(here))]

    def tick(self, now_s: float, speed: float) -> None:
        """What arrives and is computed in one tick that ends now."""
        while self.next is not None and self.next.at <= now_s:
            self._arrive(self.next)
            self.next = next(self.coming, None)
        while self.queue:
            room = [
                worker
                for worker in self.workers
                if not worker.leaving
                and worker.from_s <= now_s
                and len(worker.running) < self.model.costs.slots
            ]
            if not room:
                break
            asked = self.queue.popleft()
            self.outcome.waits.append(now_s - asked.arrived)
            min(room, key=lambda worker: len(worker.running)).running.append(asked)
        for worker in self.workers:
            self.outcome.busy_s += worker.run(self.model.costs, TICK_S * speed)
        self.outcome.worker_s += TICK_S * len(self.workers)
        self.outcome.asleep_s += TICK_S * (not self.workers)
        self.workers = [w for w in self.workers if w.running or not w.leaving]

    def _arrive(self, arrival: Arrival) -> None:
        costs = self.model.costs
        self.requests += 1
        self.work_s += costs.full_s(arrival.prompt_tokens, arrival.completion_tokens)
        prompt_s = costs.prefill_s(arrival.prompt_tokens)
        self.queue.append(Asked(arrival.at, prompt_s, float(arrival.completion_tokens)))


def play(
    models: Mapping[str, Model],
    cores: int,
    length_s: float,
    decide: Callable[[Mapping[str, Look], int, float], Mapping[str, Decision]] | None = None,
) -> Day:
    """Play a day.

    Args:
        decide: instead of the autoscaler.
    """
    decide = decide or Autoscaler().decide
    pools = {name: _Pool(model) for name, model in models.items()}
    day = Day({name: pool.outcome for name, pool in pools.items()}, [])
    for number in range(1, math.ceil(length_s / TICK_S) + 1):
        now_s = number * TICK_S
        computing = sum(1 for pool in pools.values() for w in pool.workers if w.running)
        speed = min(1.0, cores / computing) if computing else 1.0  # who leaves shares a core
        for pool in pools.values():
            pool.tick(now_s, speed)
        looks = {name: pool.look() for name, pool in pools.items()}
        for name, decision in decide(looks, cores, now_s).items():
            before = pools[name].wanted
            pools[name].scale(decision.workers, now_s)
            day.changes.append(Change(now_s, name, before, decision.workers, decision.reason))
        day.most_cores = max(day.most_cores, sum(pool.wanted for pool in pools.values()))
    return day


def through_the_day(
    arrivals: Sequence[Arrival],
    per_s: Callable[[float], float],
    length_s: float,
    rng: random.Random,
) -> list[Arrival]:
    """A trace again and again, with its bursts, at so many requests a second as the hour asks.

    Args:
        per_s: requests a second at a time of the day.
        rng: where in the trace the day begins.
    """
    rate = len(arrivals) / arrivals[-1].at
    at = rng.randrange(len(arrivals))
    now_s = 0.0
    made: list[Arrival] = []
    while True:
        before, arrival = arrivals[at - 1] if at else None, arrivals[at]
        gap_s = arrival.at - before.at if before is not None else 1 / rate
        now_s += gap_s * rate / per_s(now_s)
        if now_s >= length_s:
            return made
        made.append(arrival._replace(at=now_s))
        at = (at + 1) % len(arrivals)


def daily(most: float, least: float, peak_h: float) -> Callable[[float], float]:
    """A rate that swings between two values once a day."""

    def per_s(now_s: float) -> float:
        swing = (1 + math.cos(2 * math.pi * (now_s / 3600 - peak_h) / 24)) / 2
        return least + (most - least) * swing**2

    return per_s
