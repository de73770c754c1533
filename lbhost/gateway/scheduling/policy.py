"""Which worker answers a request soonest. Pure: a snapshot goes in, a choice comes out.

Owns the routing policies. Imports no clock, no asyncio and no randomness of its own, so that
the gateway, the tests and a simulator drive the same lines. The caller filters: only workers
that are READY with a fresh heartbeat come in.

The prediction, for worker w with A requests in flight and a request of n prompt tokens (h of
them cached in w) and m expected output tokens (design, section 5):

    step(k)                                                     seconds of a decode step of k
    todo    = n - h and the prompts that w computes before or beside it, by lbhost/order.py
    ttft    = (todo / prefill_speed + (todo / CHUNK + 1) * step(A)) / share
    e2e     = ttft + m * step(A + 1) / share

A step of k sequences takes what the worker has measured for so many, or step_base + k * step_seq
where it has told no more. The second term of ttft is the decoding that rides along with every
chunk of prefill. All but `todo` is known before the request is, and linear in its tokens: a view
(worker_view.py) works that part out when it is made (`costs`), so that a choice costs little.

Requests with different LoRA adapters take turns in a worker (lbhost/order.py). Where k adapters do,
a request shares its steps and its place among the prompts with those of its own alone, and all of
it takes k times as long: A and the prompts above are those of its own. So a worker that computes
with a request's adapter already is sooner than one that computes with another.

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

import msgspec

from lbhost import order
from lbhost.choices import Policy
from lbhost.gateway.scheduling.worker_view import Speeds, WorkerView

LONG_PROMPT = 512
"""Prompt tokens from which a request counts as long: some slots are never given to those."""

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

ANOTHER_KIND = 2.0
"""Hardware that computes a request alone so many times faster is worth joining although an idle
worker of the slower kind is there: a GPU beside cores."""


class Need(msgspec.Struct, frozen=True):
    """What a request will cost."""

    prompt_tokens: int
    """Those to be computed before it has the next output token: what it has already included."""
    expected_tokens: int
    """Output tokens: max_tokens, or what such requests have produced of late, if less."""
    rank: int = order.DEFAULT
    begun: bool = False
    """Whether it has output: somebody may be reading, and it takes any slot."""

    @property
    def long(self) -> bool:
        return self.prompt_tokens >= LONG_PROMPT and not self.begun


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
    slots has room left after any one request. A slot that a flex one has is none: until the long
    ones are done, that does not compute either, and no short one would get a slot.
    """
    if any(not view.in_flight and view.slots > 1 for view in views):
        return True
    slots = sum(max(0, view.slots - view.flex_in_flight) for view in views)
    kept = 0 if slots <= 1 else max(1, slots // 8)
    return sum(view.long_in_flight for view in views) < slots - kept


def room_for_flex(views: Sequence[WorkerView]) -> bool:
    """Whether a flex request may take a slot: one in four is left for those who ask later.

    A box with but one slot gives it to flex when nobody else wants it.
    """
    slots = sum(view.slots for view in views)
    kept = 0 if slots <= 1 else max(1, slots // 4)
    return sum(max(0, view.slots - view.in_flight) for view in views) > kept


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
    if view.in_flight >= view.slots:
        view = msgspec.structs.replace(view, slots=view.in_flight + 1)
    return _seconds(need, view)


def foresee(need: Need, view: WorkerView) -> tuple[float, float] | None:
    """Seconds to the first token, and seconds from one to the next, if `view` gets the request.

    As it is believed to be: a penalty only makes a worker less attractive, and no slower. None
    where no speeds are known.
    """
    if view.speeds is None:
        return None
    honest = msgspec.structs.replace(view, penalty=1.0, slots=max(view.slots, view.in_flight + 1))
    output_s = honest.costs[1]
    return _seconds(need, honest) - need.expected_tokens * output_s, output_s


def _seconds(need: Need, view: WorkerView) -> float:
    token_s, output_s, start_s = view.costs
    todo = max(1, need.prompt_tokens - view.cached)
    if view.prefills:
        todo = order.tokens_until_done(
            todo, view.prefills, rank=need.rank, ranks=view.ranks or None
        )
    return (todo + view.cached) * token_s + need.expected_tokens * output_s + start_s


def _cost(need: Need, views: Sequence[WorkerView], rng: Random) -> int | None:
    seconds = _bounds(need, views)
    lowest = min(seconds, default=math.inf)
    if lowest == -math.inf:
        views = _measured(views)
        seconds = _bounds(need, views)
        lowest = min(seconds)
    if lowest == math.inf:
        return None
    first = seconds.index(lowest)
    if not views[first].vacant:
        vacant = [i for i, view in enumerate(views) if view.vacant]
        if not vacant:
            return _best(need, views, seconds, first, rng)
        first = min(vacant, key=seconds.__getitem__)
        joined = _worth_joining(need, views, seconds, first)
        if joined is not None:
            return joined
    # Nothing is ahead of a request in a vacant worker, so that these bounds are predictions.
    limit = seconds[first] * NOISE
    ties = [i for i, bound in enumerate(seconds) if bound <= limit and views[i].vacant]
    return rng.choice([i for i in ties if views[i].loaded] or ties)


def _best(
    need: Need, views: Sequence[WorkerView], seconds: list[float], first: int, rng: Random
) -> int | None:
    """The choice where no worker is vacant; None where waiting for a full one is better."""
    best = _settle(need, views, seconds, first)
    if views[best].share < WORTH_WAITING and _soonest_full(need, views) < (
        seconds[best] * WORTH_WAITING
    ):
        return None
    # Of those that the noise does not tell from the best the least loaded, by chance.
    limit = seconds[best] * NOISE
    ties = [i for i, bound in enumerate(seconds) if bound <= limit]
    if len(ties) == 1:
        return ties[0]
    loads = [views[i].in_flight for i in ties]
    fewest = min(loads)
    return rng.choice([i for i, load in zip(ties, loads, strict=True) if load == fewest])


def _bounds(need: Need, views: Sequence[WorkerView]) -> list[float]:
    """Seconds as if no other prompt were ahead; infinite for full workers."""
    prompt, outputs = need.prompt_tokens, need.expected_tokens
    return [
        prompt * token_s + outputs * output_s + start_s
        for token_s, output_s, start_s in [view.costs for view in views]
    ]


def _settle(need: Need, views: Sequence[WorkerView], seconds: list[float], first: int) -> int:
    """Turn those bounds into predictions that may be the best, or not to be told from it.

    Returns the index of the best. `first` is that of the lowest bound.
    """
    best, best_s = first, _seconds(need, views[first])
    limit = best_s * NOISE
    for i, bound in enumerate(seconds):
        if bound <= limit and (views[i].prefills or i == first):
            seconds[i] = bound = _seconds(need, views[i])
        if bound < best_s:
            best, best_s = i, bound
            limit = bound * NOISE
    return best


def _worth_joining(
    need: Need, views: Sequence[WorkerView], seconds: list[float], best_vacant: int
) -> int | None:
    """A worker that computes and is still to be preferred to the vacant ones; the best of them."""
    vacant = views[best_vacant]
    lonely = _lonely_s(need, vacant)
    best, limit = None, seconds[best_vacant] / NOISE
    for i, bound in enumerate(seconds):
        if bound < limit and not views[i].vacant:
            view = views[i]
            if view.cached > vacant.cached or _lonely_s(need, view) * ANOTHER_KIND < lonely:
                exact = _seconds(need, view)
                if exact < limit:
                    best, limit = i, exact
    return best


def _lonely_s(need: Need, view: WorkerView) -> float:
    """Seconds that such hardware takes for the request alone, undisturbed."""
    speed, base, seq = view.speeds or ASSUMED_SPEEDS
    return need.prompt_tokens / speed + need.expected_tokens * view.step_s(1, base, seq)


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


def _measured(views: Sequence[WorkerView]) -> list[WorkerView]:
    """The views, with typical speeds where a worker has not measured its own.

    Typical is the mean of those that know theirs: neutral for one that does not.
    """
    known = [view.speeds for view in views if view.speeds is not None]
    typical = ASSUMED_SPEEDS
    if known:
        prefills, bases, seqs = zip(*known, strict=True)
        count = len(known)
        typical = sum(prefills) / count, sum(bases) / count, sum(seqs) / count
    return [
        view if view.speeds is not None else msgspec.structs.replace(view, speeds=typical)
        for view in views
    ]
