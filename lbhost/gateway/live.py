"""The requests that are live, as an operator sees them, and their end at an operator's word.

Owns the list and its pages, each small enough for one control packet. Holds no text of anybody's.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from lbhost import control, order
from lbhost.errors import CancelledError
from lbhost.gateway.exchange import Exchange
from lbhost.gateway.scheduling.dispatcher import Dispatcher
from lbhost.gateway.scheduling.group import Group
from lbhost.gateway.scheduling.progress import Phase, Progress
from lbhost.status import RequestStatus

PAGE = 40
"""Requests in a packet: one takes 0.3 KB, and 1 KB with the longest id and names."""

_TIERS = {order.PRIORITY: "priority", order.DEFAULT: "default", order.FLEX: "flex"}
_NAME = 64
"""Characters of a model's name or a key's that are told."""
_WORKERS = 16
"""Of a request with many answers, so many are told."""


@dataclass(frozen=True)
class _Entry:
    number: int
    group: Group
    exchange: Exchange
    model: str
    dispatcher: Dispatcher


class Live:
    """From a request's being queued to the end of its answer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._numbers = itertools.count(1)
        self._entries: dict[int, _Entry] = {}
        """By the group's id(), in the order in which they came."""

    def __len__(self) -> int:
        return len(self._entries)

    def began(self, group: Group, exchange: Exchange, model: str, dispatcher: Dispatcher) -> None:
        """A request's jobs are with the dispatcher."""
        entry = _Entry(next(self._numbers), group, exchange, model, dispatcher)
        self._entries[id(group)] = entry

    def ended(self, group: Group) -> None:
        """Nobody waits for them any more. Harmless for one that never began."""
        self._entries.pop(id(group), None)

    def page(self, question: int, after: int = 0) -> control.ToldRequests:
        """The oldest of those behind that place."""
        entries = [entry for entry in self._entries.values() if entry.number > after]
        shown = entries[:PAGE]
        behind = shown[-1].number if len(entries) > PAGE else None
        now = self._clock()
        told = tuple(_told(entry, now) for entry in shown)
        return control.ToldRequests(question, told, len(self._entries), behind)

    def cancel(self, request: str) -> int:
        """End all requests of that id; their clients get an error. How many there were."""
        named = [e for e in self._entries.values() if e.exchange.request_id == request]
        count = 0
        for entry in named:
            jobs = [job for job in entry.group.jobs if not job.over]
            count += bool(jobs)
            for job in jobs:
                entry.dispatcher.cancel(job, CancelledError("an operator has ended this request"))
        return count


def _told(entry: _Entry, now: float) -> RequestStatus:
    jobs, exchange = entry.group.jobs, entry.exchange
    parts = [entry.dispatcher.progress(job) for job in jobs if not job.over]
    phase = max((part.phase for part in parts), default=Phase.DECODE)
    over = sum(job.work.prompt_tokens for job in jobs if job.over)
    rates = [part.tokens_s for part in parts if part.tokens_s is not None]
    return RequestStatus(
        id=exchange.request_id,
        model=entry.model[:_NAME],
        key=exchange.client[:_NAME],
        tier=_TIERS[jobs[0].work.rank],
        state=phase.name.lower(),
        workers=sorted({part.worker for part in parts if part.worker is not None})[:_WORKERS],
        prompt_tokens=sum(job.work.prompt_tokens for job in jobs),
        prompt_done=over + sum(part.prompt_done for part in parts),
        tokens_out=sum(job.completion_tokens for job in jobs),
        tokens_s=sum(rates) if rates else None,
        max_tokens=sum(job.work.max_tokens for job in jobs),
        age_s=max(0.0, now - exchange.began),
        starts_in_s=_least(parts) if phase is Phase.QUEUED else None,
        ends_in_s=_last(parts),
        answers=len(jobs),
        stream=jobs[0].work.stream,
    )


def _least(parts: list[Progress]) -> float | None:
    return min((part.starts_in_s for part in parts if part.starts_in_s is not None), default=None)


def _last(parts: list[Progress]) -> float | None:
    """When the last of them ends; None where that is not known of one."""
    ends = [part.ends_in_s for part in parts if part.ends_in_s is not None]
    return max(ends) if ends and len(ends) == len(parts) else None
