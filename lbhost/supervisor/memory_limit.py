"""Which workers have more memory of their own than they may, and are to be replaced. Pure.

A worker that grows without end would be ended by the kernel, at a moment that nobody chose, or
another one in its place. One over its limit hands its requests to the others and is replaced.
Judged by what a process has taken since it was made: the weights that it shares do not count.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

from lbhost.config import Settings
from lbhost.supervisor.budget import Restarts, after_crash

OVER_S = 1.0
"""So long it must be over: what a step takes and gives back does not count."""
CALM = 0.9
"""Part of the limit under which one that was let be has to come before it is told of again."""
HASTE = 1.5
"""Over so many times the limit it does not wait for others, nor for its requests to move."""
DRAIN_S = 5.0
"""How long its requests may take to move; then it is stopped and gives them back."""


class Used(msgspec.Struct, frozen=True):
    """One worker that serves."""

    worker: int
    epoch: int
    own_bytes: int


class Verdict(enum.Enum):
    """What is to be done about a worker that is over its limit."""

    REPLACE = "replace"
    REPLACE_NOW = "replace now"
    LET_BE = "let be"
    """It has been replaced so often that once more would not help. Said once."""


class _Record(msgspec.Struct, frozen=True):
    epoch: int
    since_s: float | None = None
    """When it came over the limit."""
    told: bool = False


class MemoryLimit:
    """Remembers since when each worker has been over, and how often it was replaced for that."""

    def __init__(self) -> None:
        self.limit_bytes: int | None = None
        """None: there is no limit."""
        self._window_s, self._budget = 60.0, 5
        self._records: dict[int, _Record] = {}
        self._past: dict[int, Restarts] = {}

    def adopt(self, settings: Settings) -> None:
        """From now on these: the limit, and how many replacements of a worker in which time."""
        self.limit_bytes = settings.memory_limit_bytes
        self._window_s, self._budget = settings.restart_window_s, settings.restart_budget

    def judge(self, used: Iterable[Used], *, others_down: bool, now_s: float) -> dict[int, Verdict]:
        """Verdicts on those that are over, one REPLACE at most.

        Args:
            used: all that serve.
            others_down: whether a worker is on its way down or up: the others need those that are
                left, so that nobody is replaced unless in haste.
        """
        found: dict[int, Verdict] = {}
        if self.limit_bytes is None:
            return found
        busy = others_down
        # The largest first, if only one can go.
        for one in sorted(used, key=lambda u: -u.own_bytes):
            verdict = self._look(one, self.limit_bytes, now_s, busy=busy)
            if verdict is not None:
                found[one.worker] = verdict
                busy = busy or verdict is not Verdict.LET_BE
        return found

    def _look(self, one: Used, limit: int, now_s: float, *, busy: bool) -> Verdict | None:
        record = self._records.get(one.worker)
        if record is None or record.epoch != one.epoch:
            record = _Record(one.epoch)
        if one.own_bytes <= limit:
            calm = one.own_bytes <= CALM * limit
            self._records[one.worker] = _Record(one.epoch, told=record.told and not calm)
            return None
        since = now_s if record.since_s is None else record.since_s
        self._records[one.worker] = record = _Record(one.epoch, since, record.told)
        haste = one.own_bytes > HASTE * limit
        if now_s - since < OVER_S or (busy and not haste):
            return None
        if self._spent(one.worker, now_s):
            self._records[one.worker] = _Record(one.epoch, since, told=True)
            return None if record.told else Verdict.LET_BE
        return Verdict.REPLACE_NOW if haste else Verdict.REPLACE

    def _spent(self, worker: int, now_s: float) -> bool:
        """Count a replacement, or say that there have been enough of them lately."""
        past, delay = after_crash(
            self._past.get(worker, Restarts()),
            now_s=now_s,
            ran_s=self._window_s,
            jitter=0.0,
            window_s=self._window_s,
            budget=self._budget,
        )
        if delay is not None:
            self._past[worker] = past
        return delay is None
