"""Who is told what happens to requests, and how: telling never changes what happens.

Owns the guard that stands between the dispatcher and whoever counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, Protocol

from lbhost import log, wire
from lbhost.gateway.scheduling.job import Job
from lbhost.gateway.scheduling.moving import Reason
from lbhost.gateway.scheduling.sessions import Attempt

P = ParamSpec("P")


class Observer(Protocol):
    """Who counts what happens. See recorder.py."""

    def sent(self, attempt: Attempt, now: float) -> None: ...
    def tokens(self, attempt: Attempt, count: int, now: float) -> None: ...
    def released(self, attempt: Attempt, finish: wire.Finish) -> None: ...
    def retried(self, job: Job) -> None: ...
    def moved(self, job: Job, why: Reason) -> None: ...
    def ended(self, job: Job, now: float) -> None: ...


class GuardedObserver:
    """An observer whose failures stay its own: they are logged, and nothing else is disturbed."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def sent(self, attempt: Attempt, now: float) -> None:
        _guard(self._observer.sent, attempt, now)

    def tokens(self, attempt: Attempt, count: int, now: float) -> None:
        _guard(self._observer.tokens, attempt, count, now)

    def released(self, attempt: Attempt, finish: wire.Finish) -> None:
        _guard(self._observer.released, attempt, finish)

    def retried(self, job: Job) -> None:
        _guard(self._observer.retried, job)

    def moved(self, job: Job, why: Reason) -> None:
        _guard(self._observer.moved, job, why)

    def ended(self, job: Job, now: float) -> None:
        _guard(self._observer.ended, job, now)


def tell_later(event: str, **fields: object) -> None:
    """Log a warning from a callback of its own, after the present state change is complete.

    A log that cannot be written then fails there, and in nobody's way.
    """
    asyncio.get_running_loop().call_soon(lambda: log.get().warning(event, **fields))


def _guard(tell: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    try:
        tell(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever it is, requests go on
        tell_later("counting failed", what=tell.__name__, reason=repr(error))
