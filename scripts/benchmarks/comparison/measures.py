"""What one load on one server came to: speed, latencies, goodput, failures, CPU.

Pure: no clock, no I/O.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import stats
from benchmarks.load import Job, Outcome
from benchmarks.stats import Request

GOOD_TTFT_S = 1.0
GOOD_GAP_S = 0.1
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

SPEEDS = ("prefill_tok_s", "step_base_s", "step_seq_s")
"""What lbhost's workers had measured of themselves by then; scripts/simulate plays by it, and by
the `steps_s`, each of which has a name of its own: `step_1_s`, `step_2_s`, …"""

_MOST_STEPS = 64

Measures = Mapping[str, float]
"""By name: `tok_s` (output tokens per second), `ttft_p50`, `gap_p99`, `e2e_p95` (seconds from
sending to the first token, between tokens, to the last), `goodput` (good requests per second),
`requests`, `failed` (counts), `cpu_s` (CPU seconds per 1,000 output tokens), `late_s`, and lbhost's
`speeds`. Latencies of one kind of request have its name before a dot: `short.ttft_p99`. What had no
value is missing."""


def speeds(workers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of what the workers of a status say of themselves, without what none does."""
    told: dict[str, list[float]] = {}
    for worker in workers:
        said = {name: worker[name] for name in SPEEDS}
        said |= {_step(n): step_s for n, step_s in enumerate(worker.get("steps_s", ()), 1)}
        for name, value in said.items():
            if value is not None:
                told.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in told.items()}


def steps_s(told: Mapping[str, float]) -> tuple[float, ...]:
    """Of 1, 2, … sequences, as far as `speeds` has them."""
    names = itertools.takewhile(told.__contains__, map(_step, range(1, _MOST_STEPS + 1)))
    return tuple([told[name] for name in names])


def _step(sequences: int) -> str:
    return f"step_{sequences}_s"


def is_good(request: Request) -> bool:
    """First token within GOOD_TTFT_S, and then one within GOOD_GAP_S on average."""
    return request.ttft < GOOD_TTFT_S and _mean_gap_s(request) < GOOD_GAP_S


def _mean_gap_s(request: Request) -> float:
    """By tokens: a server that sends two of them in one text is not slower for it."""
    return (request.texts[-1] - request.texts[0]) / max(1, request.completion_tokens - 1)


def window_s(jobs: Sequence[Job], outcome: Outcome) -> float:
    """What goodput is counted over.

    Open loop: the time in which requests arrived, which is the same for all servers. Closed loop:
    until the first client found no more work, while all of them had some.
    """
    times = [job.at for job in jobs if job.at is not None]
    if times:
        return max(times)
    start = min((request.sent for request in outcome.requests), default=0.0)
    end = max((request.texts[-1] for request in outcome.requests), default=0.0)
    return (end if outcome.dry_s is None else outcome.dry_s) - start


def measure(jobs: Sequence[Job], outcome: Outcome, cpu_s: float) -> dict[str, float]:
    """See Measures.

    Args:
        cpu_s: CPU seconds of the server's processes meanwhile.
    """
    found = {"requests": float(len(outcome.requests)), "failed": float(outcome.failed)}
    found["late_s"] = outcome.late_s
    if not outcome.requests:
        return found | {"goodput": 0.0}
    tokens = sum(request.completion_tokens for request in outcome.requests)
    found["tok_s"] = stats.throughput(outcome.requests, outcome.dry_s)
    found["cpu_s"] = cpu_s / tokens * 1000
    window = window_s(jobs, outcome)
    if window > 0:
        found["goodput"] = sum(map(is_good, outcome.requests)) / window
    found |= _latencies("", outcome.requests)
    kinds = {job.kind for job in jobs}
    for kind in kinds if len(kinds) > 1 else ():
        of_kind = [request for request in outcome.requests if jobs[request.job].kind == kind]
        found |= _latencies(f"{kind}.", of_kind)
    return found


def _latencies(prefix: str, requests: Sequence[Request]) -> dict[str, float]:
    series = {
        "ttft": [request.ttft for request in requests],
        "gap": [gap for request in requests for gap in request.gaps],
        "e2e": [request.texts[-1] - request.sent for request in requests],
    }
    return {
        f"{prefix}{name}_{at}": stats.quantile(values, q)
        for name, values in series.items()
        if values
        for at, q in QUANTILES.items()
    }


def ratios(ours: Sequence[Measures], theirs: Sequence[Measures], name: str) -> stats.Spread | None:
    """Ours over theirs, pair by pair; None if no pair has both, or theirs is nothing."""
    found = [a[name] / b[name] for a, b in _both(ours, theirs, name) if b[name]]
    return stats.spread(found) if found else None


def own(runs: Sequence[Measures], name: str) -> stats.Spread | None:
    """One server's values alone; None if it has none."""
    found = [run[name] for run in runs if name in run]
    return stats.spread(found) if found else None


def _both(
    ours: Sequence[Measures], theirs: Sequence[Measures], name: str
) -> list[tuple[Measures, Measures]]:
    pairs = zip(ours, theirs, strict=False)  # a peer that ended on the way has fewer
    return [(a, b) for a, b in pairs if name in a and name in b]


def capacity(jobs: Sequence[Job], outcome: Outcome) -> float:
    """Requests per second that a server can take of such a load, at most.

    What a closed loop with every client busy puts out in tokens per second, over the tokens that
    a request of this load has on average: whether the last requests were whole plays no part.

    Raises:
        ValueError: nothing was answered.
    """
    if not outcome.requests:
        raise ValueError("nothing was answered")
    tokens = sum(job.completion_tokens for job in jobs) / len(jobs)
    found = stats.throughput(outcome.requests, outcome.dry_s) / tokens
    if found <= 0:
        raise ValueError("nothing was answered while all clients had work")
    return found
