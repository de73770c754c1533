"""The loads: which requests come when, and how long they are. No text yet.

Pure: randomness only from a generator that is passed in, so that all servers of a pair meet the
same arrivals and lengths.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.stats import Arrival

MOST_REQUESTS = 2000
"""In one load, whatever the machine could take."""

SHORT = (32, 16)
LONG = (1200, 128)
SHORTS_A_LONG = 4

BURST_FACTOR = 10.0
BURST_S = 5.0


class Ask(NamedTuple):
    """One request to be."""

    kind: str
    prompt_tokens: int
    output_tokens: int
    at: float | None = None
    """Seconds after the start; None: when a client is free."""
    shared: int = 0
    """Of the prompt's tokens, so many from the first on are those of all requests."""
    after: int | None = None
    """The turn of the same conversation that comes before it: what it said, and the answer."""


def steady(prompt_tokens: int, output_tokens: int, count: int) -> list[Ask]:
    """`count` requests that are all alike."""
    return [Ask("", prompt_tokens, output_tokens)] * count


def with_shared_prefix(asks: list[Ask], tokens: int) -> list[Ask]:
    """The same requests, with so many more tokens that all begin with."""
    return [ask._replace(prompt_tokens=tokens + ask.prompt_tokens, shared=tokens) for ask in asks]


def conversations(count: int, turns: int, prompt_tokens: int, output_tokens: int) -> list[Ask]:
    """Everybody's first turn, everybody's second: whoever says something waited for all others.

    Args:
        prompt_tokens: that a turn adds.
    """
    asks = [Ask("first", prompt_tokens, output_tokens)] * count
    later = Ask("later", prompt_tokens, output_tokens)
    return asks + [later._replace(after=turn) for turn in range(count * (turns - 1))]


def mixed(rng: random.Random, count: int) -> list[Ask]:
    """Four short requests and a long one, shuffled, and again: the mix itself has no luck in it."""
    asks: list[Ask] = []
    while len(asks) < count:
        block = [Ask("short", *SHORT)] * SHORTS_A_LONG + [Ask("long", *LONG)]
        rng.shuffle(block)
        asks += block
    return asks[:count]


def at_times(asks: list[Ask], times: list[float]) -> list[Ask]:
    """Requests with times; the shorter of the two ends it."""
    return [ask._replace(at=at) for ask, at in zip(asks, times, strict=False)]


def poisson_times(rng: random.Random, rate: float, seconds: float) -> list[float]:
    """Arrivals at `rate` a second, independent of each other and of the answers; at least one."""
    return list(_arrivals(rng, rate, 0.0, seconds)) or [0.0]


def burst_times(rng: random.Random, rate: float, seconds: float) -> list[float]:
    """Poisson arrivals at `rate`, after a quarter of the time BURST_FACTOR of it for BURST_S."""
    start = seconds / 4
    end = min(start + BURST_S, seconds)
    before = list(_arrivals(rng, rate, 0.0, start))
    burst = list(_arrivals(rng, rate * BURST_FACTOR, start, end))
    after = list(_arrivals(rng, rate, end, seconds))
    return [*before, *burst, *after] or [start]


def _arrivals(rng: random.Random, rate: float, start: float, end: float) -> Iterator[float]:
    at = start
    for _ in range(MOST_REQUESTS):
        at += rng.expovariate(rate)
        if at >= end:
            return
        yield at


def traced(arrivals: list[Arrival]) -> list[Ask]:
    """The requests of a trace, as it timed them."""
    return [Ask("", prompt, output, at) for at, prompt, output in arrivals]


def untimed(asks: list[Ask]) -> list[Ask]:
    """The same requests for clients that send the next one when the last one is answered."""
    return [ask._replace(at=None) for ask in asks]
