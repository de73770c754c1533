"""A run of scripts/compare beside its simulation: the same loads on as many virtual workers.

Owns how a scenario of scripts/compare is played. The workers' speeds are those that the server had
measured of itself by then. Times are in seconds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks.comparison import loads, measures
from benchmarks.comparison.contenders import SLOTS
from benchmarks.comparison.loads import Ask
from benchmarks.comparison.measures import SPEEDS
from benchmarks.comparison.scenarios import (
    PROMPT_TOKENS,
    SCENARIOS,
    Arrivals,
    Disturbance,
    Weights,
)
from benchmarks.comparison.scenarios import Scenario as ComparedScenario
from benchmarks.load import Job, Outcome
from benchmarks.stats import Arrival, Request, quantile
from simulation import hardware
from simulation.costs import Costs
from simulation.measured import Compared, MeasureError
from simulation.play import Played, play
from simulation.scenario import Scenario

OURS = "lbhost"

ROUNDS = 5
"""A measured run has the luck of its arrivals; a simulation is the median of so many."""

WARM_UP_TOKENS = 16

FIGURES = ("tok_s", "ttft_p50", "ttft_p99", "e2e_p50", "e2e_p99")
OF_KINDS = ("short.ttft_p50", "short.ttft_p99", "long.ttft_p50", "long.e2e_p50", "long.e2e_p99")

_DISTURBED = {
    # A program in a session of its own gets as much of a core as the worker there.
    Disturbance.SPIN: hardware.Disturbance(hardware.Kind.NEIGHBOUR, 0.5, wants=1.0),
    # For half of the time nobody is there, for the other half such a program.
    Disturbance.HALF: hardware.Disturbance(hardware.Kind.NEIGHBOUR, 0.75, wants=0.5),
}
_PLAYED = {Arrivals.CLOSED, Arrivals.MIX, Arrivals.BURST}


class _Measured(msgspec.Struct):
    """What is read of one scenario."""

    scenario: str
    runs: dict[str, list[dict[str, float]]]
    rate: float | None = None


class Comparison(msgspec.Struct):
    """What is read of such a file."""

    machine: str
    scenarios: list[_Measured]


def read(path: Path) -> Comparison | None:
    """A file that `scripts/compare --json` has written; None if it is something else.

    Raises:
        MeasureError: it cannot be read.
    """
    try:
        data = path.read_bytes()
        if "scenarios" not in msgspec.json.decode(data, type=dict[str, msgspec.Raw]):
            return None
        return msgspec.json.decode(data, type=Comparison)
    except (OSError, msgspec.DecodeError) as error:
        raise MeasureError(f"{path}: {error}") from error


def speeds(runs: Sequence[dict[str, float]], slots: int, noise: float) -> Costs | None:
    """The model of costs by what the server had measured of itself; None if no run says so."""
    told = [run for run in runs if all(name in run for name in SPEEDS)]
    if not told:
        return None
    everywhere = set[str].intersection(*[set(run) for run in told])
    means = {name: sum(run[name] for run in told) / len(told) for name in everywhere}
    known = {name: means[name] for name in SPEEDS}
    return Costs(**known, steps_s=measures.steps_s(means), slots=slots, noise=noise)


def validate(
    told: Comparison, fallback: Costs, *, workers: int, lend: bool, seed: int
) -> Iterator[tuple[str, list[Compared]]]:
    """Each scenario that can be played, with its figures, both ways.

    Args:
        fallback: costs where the file tells no speeds.
    """
    for one in told.scenarios:
        ours = one.runs.get(OURS)
        known = SCENARIOS.get(one.scenario)
        if not ours or known is None or not can_play(known):
            continue
        costs = speeds(ours, fallback.slots, fallback.noise)
        if costs is None:
            if known.weights is not Weights.Q4_0:
                continue  # the fallback is another model's
            costs = fallback
        box = Scenario(workers=workers, costs=costs, seed=seed, lend=lend)
        seconds = length_s(ours, one.rate, known.arrivals)
        rounds = [
            simulate(one.scenario, box, "cost", one.rate or 0.0, seconds, seed + i)
            for i in range(ROUNDS)
        ]
        yield one.scenario, list(_compare(ours, rounds))


def can_play(scenario: ComparedScenario) -> bool:
    """Whether virtual workers can: they have no caches, and neither stop nor refuse anybody."""
    disturbances = {Disturbance.NONE, *_DISTURBED}
    known = scenario.arrivals in _PLAYED and scenario.disturbance in disturbances
    return known and not scenario.repeated


def simulate(
    name: str, box: Scenario, policy: str, rate: float, seconds: float, seed: int
) -> dict[str, float]:
    """What measures.measure says of one round of a scenario, played on virtual workers.

    Args:
        rate: requests per second of an open loop; seconds: how long it lasts.
    """
    scenario = SCENARIOS[name]
    rng = random.Random(f"{seed} {name}")
    asks = _asks(name, rate, seconds, rng)
    disturbed = _DISTURBED.get(scenario.disturbance)
    box = msgspec.structs.replace(
        box, seed=seed, on_cores=() if disturbed is None else [(0, disturbed)]
    )
    arrivals = [Arrival(ask.at or 0.0, ask.prompt_tokens, ask.output_tokens) for ask in asks]
    # As Comparison._start does: its workers have measured themselves before anything counts.
    warm_up = [Arrival(0.0, PROMPT_TOKENS, WARM_UP_TOKENS)] * SLOTS
    played = play(policy, arrivals, box, clients=scenario.clients, warm_up=warm_up)
    jobs = [Job("", ask.prompt_tokens, ask.output_tokens, ask.at, ask.kind) for ask in asks]
    return measures.measure(jobs, _outcome(played, scenario.clients), sum(played.busy_s))


def _asks(name: str, rate: float, seconds: float, rng: random.Random) -> list[Ask]:
    """As Comparison._asks makes them."""
    scenario = SCENARIOS[name]
    if scenario.arrivals is Arrivals.CLOSED:
        count = scenario.clients * scenario.each
        return loads.steady(PROMPT_TOKENS, scenario.output_tokens, count)
    timed = loads.burst_times if scenario.arrivals is Arrivals.BURST else loads.poisson_times
    times = timed(rng, rate, seconds)
    return loads.at_times(loads.mixed(rng, len(times)), times)


def _outcome(played: Played, clients: int) -> Outcome:
    """As the load generator would tell it; a request's tokens are spread evenly over its time."""
    requests = [
        Request(
            one.arrived,
            _texts(one.arrived + one.ttft, one.arrived + one.completion, one.output_tokens),
            one.prompt_tokens,
            one.output_tokens,
            job,
        )
        for job, one in enumerate(played.requests)
        if one.error is None
    ]
    dry_s = None
    if clients:
        last_sent = max(request.sent for request in requests)
        dry_s = min(r.texts[-1] for r in requests if r.texts[-1] > last_sent)
    return Outcome(requests, [], dry_s, len(played.requests) - len(requests))


def _texts(first: float, last: float, count: int) -> tuple[float, ...]:
    step = (last - first) / max(1, count - 1)
    return (*(first + i * step for i in range(count - 1)), last)


def length_s(runs: Sequence[dict[str, float]], rate: float | None, arrivals: Arrivals) -> float:
    """How long an open loop lasted: by how many requests came at that rate, and in a burst."""
    if not rate:
        return 0.0
    counts = [run.get("requests", 0.0) + run.get("failed", 0.0) for run in runs]
    seconds = sum(counts) / len(counts) / rate
    if arrivals is Arrivals.BURST:  # which is whole, unless the load was that short
        return max(loads.BURST_S, seconds - (loads.BURST_FACTOR - 1) * loads.BURST_S)
    return seconds


def _compare(
    real: Sequence[dict[str, float]], simulated: Sequence[dict[str, float]]
) -> Iterator[Compared]:
    kinds = "short.ttft_p50" in real[0]
    for name in (FIGURES[0], *OF_KINDS) if kinds else FIGURES:
        ours = [run[name] for run in real if name in run]
        theirs = [run[name] for run in simulated if name in run]
        if ours and theirs:
            yield Compared(name, quantile(ours, 0.5), quantile(theirs, 0.5))
