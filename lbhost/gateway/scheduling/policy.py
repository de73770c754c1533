"""Which worker answers a request soonest. Pure: a snapshot goes in, a choice comes out.

Owns the routing policies. Imports no clock, no asyncio and no randomness of its own, so that
the gateway, the tests and a simulator drive the same lines. The caller filters: only workers
that are READY with a fresh heartbeat come in.

The prediction, for worker w with A requests in flight and a request of n prompt tokens (h of
them cached in w) and m expected output tokens (design, section 5):

    step(k) = step_base + k * step_seq                          seconds of a decode step
    todo    = n - h + the shorter prompts that w prefills first
    ttft    = (todo / prefill_speed + (todo // CHUNK + 1) * step(A)) / share
    e2e     = ttft + m * step(A + 1) / share

The second term of ttft is the decoding that rides along with every chunk of prefill.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import TypeAlias

import msgspec

from lbhost.config import Policy

CHUNK = 64
"""Prompt tokens in a step with running streams, about; see worker/batch.py."""

LONG_PROMPT = 512
"""Prompt tokens from which a request counts as long: some slots are never given to those."""

Speeds: TypeAlias = tuple[float, float, float]
"""Prefill tokens/s, step_base s, step_seq s."""

ASSUMED_SPEEDS: Speeds = (200.0, 0.004, 0.008)
"""Assumed of a worker that has not measured its own, when no other has either."""

SLOW_START_S = 5.0
"""A fresh worker's predictions are worsened up to twofold for so long."""

ERROR_WEIGHT = 8.0
"""A worker that fails every request is predicted to take 1 + this many times as long: the one
that fails fastest must not look like the fastest one."""

WORTH_WAITING = 0.5
"""On a core that others use, or a hot one, work crawls. When the best free worker has less than
this share of its core, wait for a full one that is predicted to be done in under this part of
the time."""

TIE = 1.02
"""Predictions within 2% are equal; one of them is picked at random, never by index."""


class WorkerView(msgspec.Struct, frozen=True):
    """One READY worker, as the router sees it at one moment."""

    worker: int
    epoch: int
    slots: int
    in_flight: int
    """Requests there; the greater of what the gateway sent and what the board says."""
    long_in_flight: int = 0
    """Those of them with a long prompt."""
    prefills: tuple[int, ...] = ()
    """Prompt tokens left to compute of each request there that has no output yet."""
    cached: int = 0
    """Tokens of this request's prompt that the worker probably has in its KV cache."""
    speeds: Speeds | None = None
    """None until the worker has measured its own."""
    share: float = 1.0
    """What the hardware leaves to it, over 0 and at most 1; see placement/share.py."""
    idle: float | None = None
    """Idle fraction of its core."""
    penalty: float = 1.0
    """Its predictions count for so many times as much; see `penalty`."""


class Need(msgspec.Struct, frozen=True):
    """What a request will cost."""

    prompt_tokens: int
    expected_tokens: int
    """Output tokens: max_tokens, or what such requests have produced of late, if less."""

    @property
    def long(self) -> bool:
        return self.prompt_tokens >= LONG_PROMPT


def choose(
    policy: Policy, need: Need, views: Sequence[WorkerView], rng: Random, turn: int
) -> int | None:
    """Index into `views` of the worker that gets the request now; None: keep it waiting.

    `turn` counts the placed requests, for round-robin.
    """
    if need.long and not room_for_long(views):
        return None
    if policy is Policy.COST:
        return _cost(need, views, rng)
    free = [i for i, view in enumerate(views) if view.in_flight < view.slots]
    if not free:
        return None
    if policy is Policy.ROUND_ROBIN:
        return free[turn % len(free)]
    if policy is Policy.RANDOM_TWO:
        free = rng.sample(free, min(2, len(free)))
    if policy is Policy.IDLE_CPU:
        # An unknown reading is neutral: as good as the others' mean.
        known = [idle for i in free if (idle := views[i].idle) is not None]
        mean = sum(known) / len(known) if known else 0.0
        idles = {i: mean if (idle := views[i].idle) is None else idle for i in free}
        most = max(idles.values())
        return rng.choice([i for i in free if idles[i] == most])
    fewest = min(views[i].in_flight for i in free)
    return rng.choice([i for i in free if views[i].in_flight == fewest])


def room_for_long(views: Sequence[WorkerView]) -> bool:
    """Whether one more long prompt leaves some slots of the box to short ones.

    One slot in eight is kept, at least one, unless there is but one slot. Judged by the long
    ones alone, so that a stream of short ones cannot starve them.
    """
    slots = sum(view.slots for view in views)
    kept = 0 if slots <= 1 else max(1, slots // 8)
    return sum(view.long_in_flight for view in views) < slots - kept


def penalty(error_rate: float, ready_for_s: float) -> float:
    """How much less a worker is to be believed in that fails, or has only just started.

    Args:
        error_rate: of its requests of late, 0 to 1.
        ready_for_s: since it became READY.
    """
    slow_start = 2.0 - min(1.0, ready_for_s / SLOW_START_S)
    return (1.0 + ERROR_WEIGHT * error_rate) * slow_start


def predict(need: Need, view: WorkerView, typical: Speeds) -> float:
    """Seconds until `view` would finish the request; see the module's formula.

    `typical` stands in for what the worker has not measured yet.
    """
    speed, base, seq = view.speeds or typical
    active = view.in_flight
    todo = need.prompt_tokens - view.cached
    if todo < 1:
        todo = 1
    prefills = view.prefills
    if prefills:
        # Shortest first is the worker's order, so a longer prompt does not hold this one up.
        shorter = 0
        for tokens in prefills:
            if tokens <= todo:
                shorter += tokens
        todo += shorter
    step = base + active * seq
    seconds = todo / speed + need.expected_tokens * (step + seq)
    if active:
        seconds += (todo // CHUNK + 1) * step
    return seconds * view.penalty / view.share


def _cost(need: Need, views: Sequence[WorkerView], rng: Random) -> int | None:
    typical = _typical_speeds(views)
    free: list[tuple[float, int]] = []
    for i, view in enumerate(views):
        if view.in_flight < view.slots:
            free.append((predict(need, view, typical), i))
    if not free:
        return None
    best, index = min(free)
    if views[index].share < WORTH_WAITING and _soonest_full(need, views, typical) < (
        best * WORTH_WAITING
    ):
        return None
    limit = best * TIE
    ties = [i for seconds, i in free if seconds <= limit]
    return ties[0] if len(ties) == 1 else rng.choice(ties)


def _soonest_full(need: Need, views: Sequence[WorkerView], typical: Speeds) -> float:
    """Seconds until the request would be done if it waited for a place in a full worker.

    A full worker's requests are anywhere in their lives: the first of k to end does so after
    about 1 / (k + 1) of one's whole time.
    """
    soonest = math.inf
    for view in views:
        if view.in_flight >= view.slots:
            seconds = predict(need, view, typical)
            soonest = min(soonest, seconds + seconds / (view.in_flight + 1))
    return soonest


def _typical_speeds(views: Sequence[WorkerView]) -> Speeds:
    """Mean speeds of the workers that know theirs: neutral for one that does not."""
    known = [view.speeds for view in views if view.speeds is not None]
    if not known or len(known) == len(views):
        return ASSUMED_SPEEDS
    prefills, bases, seqs = zip(*known, strict=True)
    count = len(known)
    return sum(prefills) / count, sum(bases) / count, sum(seqs) / count
