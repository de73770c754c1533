"""Carries out what moving.py decides: which attempts are asked back, and why.

Owns the count of those that are on their way back. Assigns nothing: what comes back is queued by
the dispatcher, which knows from `reason` where.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from lbhost import order, wire
from lbhost.board import WorkerState
from lbhost.gateway.scheduling import moving
from lbhost.gateway.scheduling.job_queue import JobQueue
from lbhost.gateway.scheduling.moving import Offer, Reason, Running
from lbhost.gateway.scheduling.readings import WorkerReading
from lbhost.gateway.scheduling.router import Router
from lbhost.gateway.scheduling.sessions import Attempt, Session, Sessions

_LEAVING = {WorkerState.DRAINING: Reason.DRAIN, WorkerState.RESTING: Reason.HOT}


class Mover:
    """See the module. `settle` is to be called after requests were placed, `look` now and then.

    Args:
        for_speed: whether requests are moved to be done sooner.
    """

    def __init__(
        self,
        sessions: Sessions,
        queue: JobQueue,
        router: Router,
        clock: Callable[[], float],
        clock_ns: Callable[[], int],
        *,
        for_speed: bool = True,
    ) -> None:
        self._sessions = sessions
        self._queue = queue
        self._router = router
        self._clock = clock
        self._clock_ns = clock_ns
        self._for_speed = for_speed
        self._speed_at = -math.inf
        self._asked: dict[int, Attempt] = {}
        self._leaving_seen = False

    def coming_back(self) -> int:
        """Attempts that were asked back and will want a slot elsewhere at once."""
        return sum(attempt.moving is not Reason.PRIORITY for attempt in self._on_their_way())

    def settle(self) -> None:
        """Go on with what the last look has seen, or make room for a priority request."""
        if self._leaving_seen or self._queue.priority:
            self.look()

    def look(self) -> None:
        """Decide, and ask back."""
        self._leaving_seen = False
        busy = [session for session in self._sessions.currents() if session.attempts]
        if not busy:
            return
        now_ns = self._clock_ns()
        leaving = [(s, reason) for s in busy if (reason := self._leaving(s)) is not None]
        self._leaving_seen = bool(leaving)
        if not leaving and not self._queue:
            if self._for_speed and self._clock() - self._speed_at >= moving.EVERY_S:
                self._speed_up(busy, self._sessions.usable(now_ns), now_ns)
            return
        usable = self._sessions.usable(now_ns)
        room = sum(session.room for session, _ in usable) - self.coming_back()
        if leaving:
            room -= sum(job.begun for job in self._queue)
            self._evacuate(leaving, room)
        if room <= 0 and (not leaving or self._priority_is_next()):
            self._preempt(usable)

    def _on_their_way(self) -> list[Attempt]:
        """Those asked back of which the worker has not said yet that they ended."""
        gone = [n for n, attempt in self._asked.items() if n not in attempt.session.attempts]
        for number in gone:
            del self._asked[number]
        return list(self._asked.values())

    def _leaving(self, session: Session) -> Reason | None:
        reading = self._sessions.readings.worker(session.worker)
        if reading is None or reading.identity.epoch != session.epoch:
            return None
        return _LEAVING.get(reading.identity.state)

    def _evacuate(self, leaving: Iterable[tuple[Session, Reason]], room: int) -> None:
        for session, reason in leaving:
            for number in moving.evacuate(self._running([session]), room):
                self._ask_back(session, number, reason)
                room -= 1

    def _priority_is_next(self) -> bool:
        """Whether a slot that comes free now is a priority request's: those that have come back
        from a worker that leaves go before it."""
        waiting = [job.order for job in self._queue if job.work.rank == order.PRIORITY]
        begun = [job.order for job in self._queue if job.begun]
        return bool(waiting) and (not begun or min(waiting) <= min(begun))

    def _preempt(self, usable: Iterable[tuple[Session, WorkerReading]]) -> None:
        """One slot for each priority request that waits, and no more."""
        sessions = [session for session, _ in usable]
        given = sum(attempt.moving is Reason.PRIORITY for attempt in self._on_their_way())
        waiting = sorted(j.order for j in self._queue if j.work.rank == order.PRIORITY)
        for place in waiting[given:]:
            number = moving.preempt(self._running(sessions), place)
            if number is None:
                return
            session = next(s for s in sessions if number in s.attempts)
            self._ask_back(session, number, Reason.PRIORITY)

    def _speed_up(
        self, busy: list[Session], usable: list[tuple[Session, WorkerReading]], now_ns: int
    ) -> None:
        """At most one request, to a worker that has room."""
        if self.coming_back() or len(usable) < 2:
            return
        offers: list[Offer] = []
        for session in busy:
            others = [(s, reading) for s, reading in usable if s is not session and s.room]
            settled = {one.attempt for one in self._running([session]) if one.settled}
            if others and settled:
                attempts = [session.attempts[number] for number in settled]
                offers += self._router.offers(session, attempts, others, now_ns)
        chosen = moving.best(offers)
        if chosen is not None:
            self._speed_at = self._clock()
            session = next(s for s in busy if chosen.attempt in s.attempts)
            self._ask_back(session, chosen.attempt, Reason.SPEED)

    def _running(self, sessions: Iterable[Session]) -> list[Running]:
        """Those that may be asked back at all."""
        now = self._clock()
        return [
            Running(
                attempt.number,
                attempt.job.work.rank,
                attempt.job.place,
                attempt.left,
                self._router.surely_s(attempt, now),
                settled=now - attempt.job.moved_at >= moving.AGAIN_S
                and attempt.last_token is not None
                and now - (attempt.job.started or now) >= moving.SETTLED_S,
            )
            for session in sessions
            for attempt in session.attempts.values()
            if attempt.moving is None and not attempt.alone and not attempt.job.over
        ]

    def _ask_back(self, session: Session, number: int, reason: Reason) -> None:
        attempt = self._asked[number] = session.attempts[number]
        attempt.moving = reason
        attempt.job.moved_at = self._clock()
        session.link.send(wire.encode(wire.Move(number)))
