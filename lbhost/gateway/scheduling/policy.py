"""Which worker answers a request soonest. Pure: a snapshot goes in, a choice comes out.

Owns the routing policies. Imports no clock, no asyncio and no randomness of its own, so that
the gateway, the tests and a simulator drive the same lines. The caller filters: only workers
that are READY with a fresh heartbeat come in.

The prediction, for worker w with A requests in flight and a request of n prompt tokens (h of
them cached in w) and m expected output tokens (design, section 5):

    step(k) = step_base + k * step_seq                          seconds of a decode step
    todo    = n - h + the shorter prompts that w prefills first
    ttft    = (todo / prefill_speed + (todo / CHUNK + 1) * step(A)) / share
    e2e     = ttft + m * step(A + 1) / share

The second term of ttft is the decoding that rides along with every chunk of prefill. All but
`todo` is known before the request is, and linear in its tokens: a view works that part out
when it is made (`token_s`, `output_s`, `start_s`), so that a choice costs little.

Two things hold of the default policy, whatever the readings:

- A request waits, or joins a worker that computes, only when no worker is vacant: idle, on
  hardware that others leave to it. A computing worker is still joined when it is sooner by more
  than NOISE because it holds more of the prompt, or because it is another kind of hardware.
- Of two workers to choose from, one that is predicted to be sooner by more than NOISE gets it.
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

NOISE = 1.1
"""Predictions that differ by less than a tenth say nothing: speeds and shares are readings."""

UNDISTURBED = 0.75
"""Share from which a worker counts as having its hardware for itself. What gateway and clients
use in passing shows as 0.2 of a core; see machine/cpustat.py."""

TRUSTED = 2.0
"""Penalty up to which an idle worker counts as a good place: one that has just started does, one
that has just failed a request does not."""

ANOTHER_KIND = 2.0
"""Hardware that computes a request alone so many times faster is worth joining although an idle
worker of the slower kind is there: a GPU beside cores."""


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

    # Worked out from the above.
    vacant: bool = False
    """Idle, undisturbed, trusted."""
    token_s: float = 0.0
    """Seconds for a prompt token."""
    output_s: float = 0.0
    """Seconds for an output token."""
    start_s: float = 0.0
    """Seconds before the first; infinite where there is no room."""

    def __post_init__(self) -> None:
        active = self.in_flight
        speed, base, seq = self.speeds or ASSUMED_SPEEDS
        weight = self.penalty / self.share
        step = (base + active * seq) * weight
        settle = msgspec.structs.force_setattr
        settle(self, "output_s", step + seq * weight)
        if active:
            settle(self, "vacant", False)
            settle(self, "token_s", weight / speed + step / CHUNK)
            settle(self, "start_s", step if active < self.slots else math.inf)
        else:
            settle(self, "vacant", self.share >= UNDISTURBED and self.penalty <= TRUSTED)
            settle(self, "token_s", weight / speed)
            settle(self, "start_s", 0.0)


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
    ones alone, so that a stream of short ones cannot starve them. An idle worker of several
    slots has room left after any one request.
    """
    if any(not view.in_flight and view.slots > 1 for view in views):
        return True
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

    A full worker is taken to have room. `typical` stands in for what the worker has not
    measured yet.
    """
    if view.speeds is None:
        view = msgspec.structs.replace(view, speeds=typical)
    if view.start_s == math.inf:
        view = msgspec.structs.replace(view, slots=view.in_flight + 1)
    return _seconds(need, view)


def _seconds(need: Need, view: WorkerView) -> float:
    todo = max(1, need.prompt_tokens - view.cached)
    ahead = 0
    for tokens in view.prefills:
        # Shortest first is the worker's order, so a longer prompt does not hold this one up.
        if tokens <= todo:
            ahead += tokens
    return (todo + ahead) * view.token_s + need.expected_tokens * view.output_s + view.start_s


def _cost(need: Need, views: Sequence[WorkerView], rng: Random) -> int | None:
    views = _all_measured(views)
    seconds = _lower_bounds(need, views)
    vacant = [i for i, view in enumerate(views) if view.vacant]
    if vacant:
        _settle(need, views, seconds, vacant)
        best = min(vacant, key=seconds.__getitem__)
        justified = _worth_joining(need, views, seconds, best)
        return _one_of(justified or vacant, views, seconds, rng)
    if not views or min(seconds) == math.inf:
        return None
    _settle(need, views, seconds, range(len(views)))
    best = seconds.index(min(seconds))
    if views[best].share < WORTH_WAITING and _soonest_full(need, views) < (
        seconds[best] * WORTH_WAITING
    ):
        return None
    return _one_of(range(len(views)), views, seconds, rng)


def _lower_bounds(need: Need, views: Sequence[WorkerView]) -> list[float]:
    """Seconds as if no other prompt were ahead; infinite for full workers."""
    prompt, outputs = need.prompt_tokens, need.expected_tokens
    return [
        (prompt - view.cached) * view.token_s + outputs * view.output_s + view.start_s
        for view in views
    ]


def _settle(
    need: Need, views: Sequence[WorkerView], seconds: list[float], among: Sequence[int]
) -> None:
    """Turn those bounds into predictions that may be under the best one, or its noise."""
    lowest = min(among, key=seconds.__getitem__)
    limit = _seconds(need, views[lowest]) * NOISE
    for i in among:
        if seconds[i] <= limit and (views[i].prefills or views[i].cached):
            seconds[i] = _seconds(need, views[i])


def _worth_joining(
    need: Need, views: Sequence[WorkerView], seconds: list[float], vacant: int
) -> list[int]:
    """Workers that compute and are still to be preferred to the best of the vacant ones."""
    limit = seconds[vacant] / NOISE
    found: list[int] = []
    if min(seconds) >= limit:
        return found
    lonely = _lonely_s(need, views[vacant])
    for i, bound in enumerate(seconds):
        if bound >= limit or views[i].vacant:
            continue
        view = views[i]
        better = view.cached > views[vacant].cached
        if better or _lonely_s(need, view) * ANOTHER_KIND < lonely:
            seconds[i] = _seconds(need, view)
            if seconds[i] < limit:
                found.append(i)
    return found


def _one_of(
    among: Sequence[int], views: Sequence[WorkerView], seconds: list[float], rng: Random
) -> int:
    """One of those that the noise does not tell from the best: the least loaded, by chance."""
    limit = min(seconds[i] for i in among) * NOISE
    ties = [i for i in among if seconds[i] <= limit]
    if len(ties) == 1:
        return ties[0]
    fewest = min(views[i].in_flight for i in ties)
    return rng.choice([i for i in ties if views[i].in_flight == fewest])


def _lonely_s(need: Need, view: WorkerView) -> float:
    """Seconds that such hardware takes for the request alone, undisturbed."""
    speed, base, seq = view.speeds or ASSUMED_SPEEDS
    return need.prompt_tokens / speed + need.expected_tokens * (base + seq)


def _soonest_full(need: Need, views: Sequence[WorkerView]) -> float:
    """Seconds until the request would be done if it waited for a place in a full worker.

    A full worker's requests are anywhere in their lives: the first of k to end does so after
    about 1 / (k + 1) of one's whole time.
    """
    soonest = math.inf
    for view in views:
        if view.in_flight >= view.slots:
            seconds = predict(need, view, ASSUMED_SPEEDS)
            soonest = min(soonest, seconds + seconds / (view.in_flight + 1))
    return soonest


def _all_measured(views: Sequence[WorkerView]) -> Sequence[WorkerView]:
    """The views, with typical speeds where a worker has not measured its own.

    Typical is the mean of those that know theirs: neutral for one that does not.
    """
    known = [view.speeds for view in views if view.speeds is not None]
    if not known or len(known) == len(views):
        return views
    prefills, bases, seqs = zip(*known, strict=True)
    count = len(known)
    typical = sum(prefills) / count, sum(bases) / count, sum(seqs) / count
    return [
        view if view.speeds is not None else msgspec.structs.replace(view, speeds=typical)
        for view in views
    ]
