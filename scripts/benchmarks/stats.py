"""The arithmetic of the benchmark: quantiles, paired ratios, throughput, arrival times.

Pure: no clock, no I/O, randomness only from a generator that is passed in.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple


def quantile(values: Sequence[float], q: float) -> float:
    """Linear interpolation between the two nearest ranks.

    Args:
        values: at least one, in any order.
        q: 0 to 1.
    """
    if not values:
        raise ValueError("no values to take a quantile of")
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


class Spread(NamedTuple):
    """The median of repeated measurements, and their whole range."""

    median: float
    low: float
    high: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    """See Spread. At least one value."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """ours/theirs, run by run: a box that drifts by 20% within minutes cancels out of each pair."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


class Request(NamedTuple):
    """What one request saw. Times are seconds on one clock."""

    sent: float
    texts: tuple[float, ...]
    """When each piece of text arrived; at least one."""
    prompt_tokens: int
    completion_tokens: int
    job: int = 0
    """Which of the plan's jobs it was."""

    @property
    def ttft(self) -> float:
        """Time to first token, from sending the request."""
        return self.texts[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Times between pieces of text: the inter-token latencies."""
        return [after - before for before, after in zip(self.texts, self.texts[1:], strict=False)]


def throughput(requests: Sequence[Request], until: float | None = None) -> float:
    """Output tokens per second, from the first send to `until` (default: the last text).

    With `until` at the moment when the first client found no more work, the whole window had
    every client busy, so that neither server pays for the run's end. A request's tokens are
    spread evenly over its pieces of text: a server may send two tokens in one.
    """
    start = min(request.sent for request in requests)
    end = max(request.texts[-1] for request in requests) if until is None else until
    tokens = sum(
        request.completion_tokens * sum(at <= end for at in request.texts) / len(request.texts)
        for request in requests
    )
    return tokens / (end - start)


class Arrival(NamedTuple):
    """One request of an open-loop load."""

    at: float
    """Seconds after the start."""
    prompt_tokens: int
    completion_tokens: int


def poisson(
    rate: float, count: int, prompt_tokens: int, completion_tokens: int, rng: random.Random
) -> list[Arrival]:
    """`count` arrivals at `rate` a second, independent of each other and of the answers."""
    arrivals: list[Arrival] = []
    at = 0.0
    for _ in range(count):
        at += rng.expovariate(rate)
        arrivals.append(Arrival(at, prompt_tokens, completion_tokens))
    return arrivals


def trace(
    rows: Sequence[dict[str, str]], *, count: int, rate: float, most_tokens: int
) -> list[Arrival]:
    """Arrivals from rows with TIMESTAMP, ContextTokens and GeneratedTokens (Azure's LLM traces).

    Args:
        count: the first so many rows.
        rate: requests per second on average; the trace is stretched to it, bursts and all.
        most_tokens: prompt and output are cut, in proportion, to this many together.

    Raises:
        ValueError: under two rows, a column is missing, or a value is not what it should be.
    """
    rows = rows[:count]
    if len(rows) < 2:
        raise ValueError("the trace has under two rows")
    try:
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
        sizes = [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in rows]
    except KeyError as error:
        raise ValueError(f"the trace has no column {error}") from error
    recorded_s = times[-1] - times[0]
    if recorded_s <= 0:
        raise ValueError("the trace's times do not rise")
    stretch = (len(rows) - 1) / rate / recorded_s
    arrivals: list[Arrival] = []
    for time, (prompt, output) in zip(times, sizes, strict=True):
        shrink = min(1.0, most_tokens / max(1, prompt + output))
        at = (time - times[0]) * stretch
        arrivals.append(Arrival(at, max(8, int(prompt * shrink)), max(1, int(output * shrink))))
    return arrivals
