"""How many workers each model is to have, by the work that comes for it. Pure: no clock of its own.

Work is measured in seconds of a worker that has all its slots taken, so that it does not depend on
how many workers there are: what comes in a second is how many workers it takes. A model gets more
workers at once, before they are used up, and fewer only after they have not been needed for a
while; that while doubles each time that it was too short. Where the cores do not suffice, a model
that needs few has them, and those that need more share the rest by their weights (max-min): one
that is flooded does not slow the others down. A model without requests may sleep: it has no
workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

FAST_S = 15.0
SLOW_S = 120.0
"""Work per second is averaged over both: what comes of late, and what usually comes."""

TREND = 0.25
"""So much of the difference between the two is expected to come on top of the former."""

TARGET = 0.7
"""Part of a worker's time that is to be used."""

FULL = 0.9
"""Part of the slots that may be taken for long. Seen as need where work was judged too small."""

CLEAR_S = 5.0
"""Work that is queued is to be begun within so many seconds: as many more workers are needed."""

FEWER = 0.8
"""A worker goes when those that stay are needed to this part of what would bring it back."""

COOLDOWN_S = 60.0
"""For so long it must not have been needed."""

MOST_COOLDOWN_S = 1920.0
"""Growing cooldowns end here."""

REGRET_S = 600.0
"""A model that needs more again so soon after it had to give a worker, gave it too early."""

CALM_S = 7200.0
"""After so long without such a mistake the cooldown is half as long again."""

TRADE_S = 60.0
"""So long after a model has got or given workers, others get none that it needs."""


class Bounds(msgspec.Struct, frozen=True):
    """What a model may have."""

    least: int
    """0: it may sleep."""
    most: int
    sleep_after_s: float = 0.0
    """Without a request, with `least` 0; 0: never."""
    fixed: bool = False
    """Somebody has said how many: what it has stays."""

    @property
    def awake(self) -> int:
        """The fewest workers of a model that does not sleep."""
        return max(1, self.least)

    @property
    def may_sleep(self) -> bool:
        """Whether it is ever left without workers."""
        return self.least == 0 and self.sleep_after_s > 0


class Look(msgspec.Struct, frozen=True):
    """One model at one moment."""

    bounds: Bounds
    workers: int
    """Wanted up now."""
    requests: int
    """That have ended since the gateway started, refused ones too, for which nobody need be awake:
    they only tell one gateway from the next."""
    work_s: float
    """What they take, in seconds of a worker."""
    backlog_s: float
    """What those take that wait, the same."""
    queued: int
    in_flight: int
    slots: int
    """Of each worker."""
    cores: int = 1
    """That each worker needs; 0: it runs on a GPU."""
    share: float = 1.0
    """Of its cores, what others leave to a worker."""
    weight: float = 1.0
    """Its part of the cores, against others' parts, where not all have what they need."""
    starting: bool = False
    """Whether none of its workers has come up yet: nobody could have used it so far."""


class Decision(msgspec.Struct, frozen=True):
    """So many workers from now on, and why."""

    workers: int
    reason: str


class _Want(msgspec.Struct, frozen=True):
    """What one model would have if there were cores enough."""

    workers: int
    need: float
    reason: str


class _Model:
    """What is remembered of one model."""

    def __init__(self, look: Look, now_s: float) -> None:
        self.fast = self.slow = 0.0
        self.slots_taken = 0.0
        self.changed_s = -math.inf
        self.cooldown_s = COOLDOWN_S
        self._requests, self._work_s = look.requests, look.work_s
        self._at_s = now_s
        self._had = look.workers
        self._busy_s = now_s
        """When there was last anything to do, or a worker of it was on its way."""
        self._enough_s = now_s
        """Since when fewer workers would do, and how many of them."""
        self._fewer = 0
        self._gave_s = -math.inf
        self._mistake_s = now_s
        """When it had last given too early, or the cooldown was shortened."""

    def see(self, look: Look, now_s: float) -> None:
        """Take the newest figures in."""
        passed = now_s - self._at_s
        work_s, requests = look.work_s - self._work_s, look.requests - self._requests
        if requests < 0:  # another gateway counts from 0
            requests, work_s = look.requests, look.work_s
        self._at_s, self._requests, self._work_s = now_s, look.requests, look.work_s
        asked = work_s or look.in_flight or look.queued
        if asked or look.starting or look.workers > self._had:
            self._busy_s = now_s
        self._had = look.workers
        if passed <= 0:
            return
        taken = (look.in_flight + look.queued) / look.slots
        rate = work_s / passed  # below 0 where work was judged too great before
        self.fast += (1 - math.exp(-passed / FAST_S)) * (rate - self.fast)
        self.slow += (1 - math.exp(-passed / SLOW_S)) * (rate - self.slow)
        self.slots_taken += (1 - math.exp(-passed / FAST_S)) * (taken - self.slots_taken)

    def want(self, look: Look, now_s: float) -> _Want:
        """What it would have if there were cores enough."""
        bounds, has = look.bounds, look.workers
        if bounds.fixed:
            return _Want(has, has, "")
        if has == 0 and not look.queued and bounds.may_sleep:
            return _Want(0, 0.0, "")
        if bounds.may_sleep and now_s - self._busy_s >= bounds.sleep_after_s:
            return _Want(0, 0.0, f"no request for {bounds.sleep_after_s:g} s")
        need, reason = self._need(look)
        target = min(max(_whole(need), bounds.awake), bounds.most)
        if has == 0:
            come = look.queued or look.in_flight
            return _Want(target, need, "a request has come" if come else "it does not sleep")
        if target > has:
            self._enough_s, self._fewer = now_s, 0
            return _Want(target, need, reason)
        fewer = min(max(_whole(need / FEWER), bounds.awake), bounds.most)
        if has > bounds.most:
            return _Want(bounds.most, need, f"at most {bounds.most} may be")
        if fewer >= has:
            self._enough_s, self._fewer = now_s, 0
            return _Want(has, need, "")
        self._fewer = max(self._fewer, fewer)
        if now_s - self._enough_s < self.cooldown_s:
            return _Want(has, need, "")
        reason = f"{_workers(self._fewer)} sufficed for {self.cooldown_s:g} s"
        return _Want(self._fewer, need, reason)

    def changes(self, has: int, workers: int, now_s: float, *, judged: bool) -> None:
        """It has other workers from now on.

        Args:
            judged: whether that says something about the cooldown.
        """
        self.changed_s = self._enough_s = now_s
        self._fewer, self._had = 0, workers
        if now_s - self._mistake_s >= CALM_S:
            self.cooldown_s = max(COOLDOWN_S, self.cooldown_s / 2)
            self._mistake_s = now_s
        if not judged:
            return
        if workers < has:
            self._gave_s = now_s
        elif now_s - self._gave_s < max(REGRET_S, self.cooldown_s):
            self.cooldown_s = min(2 * self.cooldown_s, MOST_COOLDOWN_S)
            self._mistake_s, self._gave_s = now_s, -math.inf

    def _need(self, look: Look) -> tuple[float, str]:
        """Workers that would be used to their targets, and what says so."""
        coming = max(self.slow, self.fast + TREND * (self.fast - self.slow), 0.0)
        by_work = coming / (TARGET * look.share)
        waiting = by_work + look.backlog_s / (CLEAR_S * look.share)
        by_slots = self.slots_taken / FULL
        need = max(waiting, by_slots)
        if need == by_slots and by_slots > waiting:
            reason = f"{self.slots_taken * look.slots:.1f} requests are there at a time"
        elif waiting > 1.25 * by_work:
            reason = f"{look.queued} requests wait, {look.backlog_s:.1f} s of work"
        else:
            reason = f"{100 * coming / look.share:.0f}% of a worker's work comes"
        # A request uses one worker: no more are of use than there are requests.
        at_once = look.in_flight + look.queued
        return min(need, max(at_once, look.workers, 1)), reason


class Autoscaler:
    """Decides for all models of a server together."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}
        self.held_back: dict[str, str] = {}
        """The models that would have had more workers at the last decision, if others' number were
        not fixed, and who those are."""

    def decide(self, looks: Mapping[str, Look], cores: int, now_s: float) -> dict[str, Decision]:
        """What changes: the models that are to have another number of workers from now on.

        Args:
            looks: every model, by name. What is decided has to be what is wanted at the next call.
            cores: of the box. All workers together need no more, but for the models' least.
            now_s: of a monotonic clock.
        """
        for name in self._models.keys() - looks:
            del self._models[name]
        wants: dict[str, _Want] = {}
        for name, look in looks.items():
            model = self._models.setdefault(name, _Model(look, now_s))
            model.see(look, now_s)
            wants[name] = model.want(look, now_s)
        counts = self._share_out(looks, wants, cores, now_s)
        self.held_back = _held_back(looks, wants, counts, cores)
        decided: dict[str, Decision] = {}
        for name, look in looks.items():
            if counts[name] == look.workers or look.bounds.fixed:
                continue
            taken = counts[name] < min(wants[name].workers, look.workers)
            asleep = 0 in (look.workers, counts[name])
            self._models[name].changes(
                look.workers, counts[name], now_s, judged=not taken and not asleep
            )
            reason = "another model needs the core more" if taken else wants[name].reason
            decided[name] = Decision(counts[name], reason)
        return decided

    def _share_out(
        self, looks: Mapping[str, Look], wants: Mapping[str, _Want], cores: int, now_s: float
    ) -> dict[str, int]:
        """Workers of each model: the least first, then one more to whoever has the fewest then for
        its weight."""

        def used(counts: Mapping[str, int]) -> int:
            return sum(looks[name].cores * count for name, count in counts.items())

        given = {
            name: want.workers
            if looks[name].bounds.fixed
            else min(want.workers, looks[name].bounds.awake)
            for name, want in wants.items()
        }
        held = dict(given)
        for name, look in looks.items():
            if now_s - self._models[name].changed_s < TRADE_S:
                needed = min(look.workers, wants[name].workers, _whole(wants[name].need / FEWER))
                held[name] = max(given[name], needed)
        if used(held) <= cores:
            given = held
        while True:
            room = cores - used(given)
            takers = [
                name
                for name, want in wants.items()
                if given[name] < want.workers and looks[name].cores <= room
            ]
            if not takers:
                return given
            given[
                min(takers, key=lambda n: ((given[n] + 1) / looks[n].weight, -wants[n].need))
            ] += 1


def _held_back(
    looks: Mapping[str, Look],
    wants: Mapping[str, _Want],
    counts: Mapping[str, int],
    cores: int,
) -> dict[str, str]:
    """Who has less than it wants because of models whose number is fixed, and which those are."""
    holders = [
        name for name, look in looks.items() if look.bounds.fixed and look.cores * counts[name]
    ]
    held = sum(looks[name].cores * counts[name] for name in holders)
    used = sum(look.cores * counts[name] for name, look in looks.items())
    return {
        name: ", ".join(holders)
        for name, look in looks.items()
        if counts[name] < wants[name].workers and used - held + look.cores <= cores
    }


def _whole(need: float) -> int:
    """Workers that so much need takes; a hundredth of one is no reason for another."""
    return math.ceil(need - 0.01)


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"
