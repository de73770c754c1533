"""Which workers rest when their cores are hot, and at what temperatures. Pure.

A sensor speaks for a domain: one core, a package, or the whole board. A worker rests for a
sensor of its own. A sensor that several workers share (AMD's Tctl, x86_pkg_temp, a Raspberry Pi)
cannot tell whose core is hot: it thins the work out instead of stopping it. Beyond hot, one more
of its workers rests every PACE_S, half of them at most; below hot they come back one by one.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence

import msgspec

from lbhost.board import CoreRow
from lbhost.config import DEFAULT_HOT_C, DEFAULT_WARM_C

BEYOND_C = 3.0
"""A shared sensor makes workers rest only this far beyond hot: some chips (Ryzen 7000) run at 95
degrees by design and hold that by themselves, at full work."""

PACE_S = 2.0
"""A chip answers to less work within seconds: so long one change of a shared domain is watched."""

SHARED_PART = 0.5
"""Part of the workers that may rest, of a shared sensor and altogether."""


class Limits(msgspec.Struct, frozen=True):
    """Degrees Celsius from which there is less work, and at which a worker rests."""

    warm_c: float
    hot_c: float
    chosen: bool = False
    """By the operator: a chip's own limits do not count then."""


def limits_of(warm_c: float | None, hot_c: float | None) -> Limits:
    """The settings' limits; None: not set."""
    return Limits(
        DEFAULT_WARM_C if warm_c is None else warm_c,
        DEFAULT_HOT_C if hot_c is None else hot_c,
        chosen=warm_c is not None or hot_c is not None,
    )


class Change(enum.Enum):
    """What heat asks of a worker."""

    REST = "rest"
    WAKE = "wake"


class Domain(msgspec.Struct, frozen=True):
    """One sensor and the workers on whose cores it sits."""

    name: str
    workers: tuple[int, ...]
    temp_c: float | None
    limits: Limits
    changed_s: float = float("-inf")
    """When one of its workers was last made to rest, or woken."""


def of_chip(core: CoreRow, limits: Limits) -> Limits:
    """The chip's own limits, unless the operator has chosen some: then those."""
    if limits.chosen or core.hot_c is None:
        return limits
    warm_c = core.warm_c if core.warm_c is not None else core.hot_c - 15.0
    return Limits(min(warm_c, core.hot_c - 1.0), core.hot_c)


def decide(
    domains: Sequence[Domain],
    ready: frozenset[int],
    resting: frozenset[int],
    now_s: float,
) -> dict[int, Change]:
    """Who rests and who wakes now. Never all of them rest: a slow answer is better than none,
    and the hardware throttles for itself.

    Args:
        domains: every sensor; a worker may be in several.
        ready, resting: workers in these states; others are left alone.
    """
    changes: dict[int, Change] = {}
    for domain in domains:
        if len(domain.workers) == 1:
            changes.update(_alone(domain, ready, resting))
        else:
            changes.update(_shared(domain, ready, resting, now_s))
    known = {worker for domain in domains for worker in domain.workers}
    for worker in resting - known:
        changes[worker] = Change.WAKE
    # A worker of several threads has a sensor on each core: one that has cooled wakes nobody.
    for worker in _held(domains, resting):
        if changes.get(worker) is Change.WAKE:
            del changes[worker]
    return _some_left(changes, domains, ready, resting)


def _held(domains: Sequence[Domain], resting: frozenset[int]) -> set[int]:
    """Resting workers of whose sensors one is still too hot."""
    hot = [d for d in domains if d.temp_c is not None and d.temp_c > _awake_c(d)]
    return {worker for domain in hot for worker in resting.intersection(domain.workers)}


def _awake_c(domain: Domain) -> float:
    """The temperature from which down a domain's workers may come back."""
    return domain.limits.warm_c if len(domain.workers) == 1 else domain.limits.hot_c


def _alone(domain: Domain, ready: frozenset[int], resting: frozenset[int]) -> dict[int, Change]:
    (worker,) = domain.workers
    temp = domain.temp_c
    if worker in resting and (temp is None or temp <= domain.limits.warm_c):
        return {worker: Change.WAKE}
    if worker in ready and temp is not None and temp >= domain.limits.hot_c:
        return {worker: Change.REST}
    return {}


def _shared(
    domain: Domain, ready: frozenset[int], resting: frozenset[int], now_s: float
) -> dict[int, Change]:
    temp = domain.temp_c
    asleep = sorted(resting.intersection(domain.workers))
    awake = sorted(ready.intersection(domain.workers))
    if temp is None:
        return dict.fromkeys(asleep, Change.WAKE)
    if now_s - domain.changed_s < PACE_S:
        return {}
    if temp >= domain.limits.hot_c + BEYOND_C:
        most = int(SHARED_PART * len(domain.workers))
        if awake and len(asleep) < most:
            return {awake[-1]: Change.REST}
    elif temp < domain.limits.hot_c and asleep:
        return {asleep[0]: Change.WAKE}
    return {}


def _some_left(
    changes: dict[int, Change],
    domains: Sequence[Domain],
    ready: frozenset[int],
    resting: frozenset[int],
) -> dict[int, Change]:
    """The same, but so that half of the workers stay or become ready, the coolest of those asked
    to rest: under full load every core may be at its limit.
    """
    temps = {w: d.temp_c for d in domains for w in d.workers if d.temp_c is not None}
    woken = {worker for worker, change in changes.items() if change is Change.WAKE}
    left = len(ready | woken)
    kept: dict[int, Change] = dict.fromkeys(sorted(woken), Change.WAKE)
    going = [worker for worker, change in changes.items() if change is Change.REST]
    least = max(1, math.ceil((1 - SHARED_PART) * len(ready | resting)))
    for worker in sorted(going, key=lambda w: (-temps.get(w, 0.0), w)):
        if left > least:
            kept[worker] = Change.REST
            left -= 1
    if not left and resting:
        coolest = min(resting, key=lambda w: (temps.get(w, 0.0), w))
        kept[coolest] = Change.WAKE
    return kept
