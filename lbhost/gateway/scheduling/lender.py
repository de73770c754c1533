"""Carries out what lending.py decides: which session has been lent what, and who must be told.

Lives where the exact counts of requests are: one decision for the workers of all models, since a
core that one of them lends may be another's home. A core is asked back before its owner gets a
request, so that the two overlap by one step of the borrower at most. A borrower whose requests have
ended keeps what it was lent until somebody wants it: between two texts of a lone client, which take
milliseconds, nothing has to be told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from lbhost import wire
from lbhost.board import CoreRow, WorkerState
from lbhost.gateway.scheduling.lending import Core, Home, Lent, lend
from lbhost.gateway.scheduling.readings import WorkerReadings
from lbhost.gateway.scheduling.sessions import Session, Sessions
from lbhost.gateway.scheduling.worker_link import WorkerLink

LOOK_S = 0.25
"""The cores' readings are looked at so often; the sampler writes them as often."""

USED = 0.35
"""A core of which strangers have used so much over the last second or so is not lent…"""

FREE = 0.2
"""…until it is less than this again. Clients run somewhere too; the server's own processes do not
count: a lone client's gateway computes while no worker does, and what a core that they use is
worth the borrower measures (worker/widths.py)."""


class Lender:
    """See the module. `settle` is to be called whenever requests were placed or have ended."""

    def __init__(
        self,
        readings: WorkerReadings,
        *models: Sessions,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`readings`: of all workers. models: those that there are; `add` more."""
        self._models = list(models)
        self._readings = readings
        self.enabled = enabled
        """Off: what is lent is asked back at the next `settle`."""
        self._clock = clock
        self._lent: dict[Session, Lent] = {}
        self._closed: set[int] = set()
        self._cores: list[Core] = []
        self._limit: int | None = None
        self._looked = -1e9
        self._known: object = None
        """What the last decision was made from."""

    def add(self, sessions: Sessions) -> None:
        """One more model."""
        self._models.append(sessions)

    def settle(self) -> None:
        """Decide, and tell those for whom something changes; who gives back is told first."""
        if not self.enabled and not self._lent:
            return
        self._look()
        sessions = [session for model in self._models for session in model.all()]
        homes, borrowers = self._homes(sessions)
        known = (tuple(homes), tuple(self._cores), self._limit, self.enabled)
        if known == self._known:
            return
        self._known = known
        before = {session.worker: cpus for session, cpus in self._lent.items()}
        found = lend(homes, self._cores, limit=self._limit, before=before) if self.enabled else {}
        wanted = {session: found.get(session.worker, ()) for session in borrowers}
        keepable = self._keepable(homes, found.values())
        for session in self._lent.keys() - wanted.keys():
            cpus = self._lent[session]
            wanted[session] = cpus if keepable.issuperset(cpus) else ()
        changed = [s for s, cpus in wanted.items() if cpus != self._lent.get(s, ())]
        # What one gets, another may have to give back: they are told in this order.
        for session in sorted(changed, key=lambda s: len(wanted[s]) - len(self._lent.get(s, ()))):
            session.link.send(wire.encode(wire.Lend(wanted[session])))
        self._lent = {session: cpus for session, cpus in wanted.items() if cpus}

    def _keepable(self, homes: Sequence[Home], given: Iterable[Lent]) -> set[int]:
        """Cores that whoever had them last may keep, to compute nothing."""
        if not self.enabled:
            return set()
        used = {cpu for home in homes if not home.idle for cpu in home.cpus}.union(*given)
        return {core.cpu for core in self._cores if core.open} - used

    def forget(self, link: WorkerLink) -> None:
        """It is gone, and with it what was lent over it."""
        self._lent = {session: cpus for session, cpus in self._lent.items() if session.link != link}

    def _homes(self, sessions: list[Session]) -> tuple[list[Home], list[Session]]:
        """All workers of this box, and the sessions of those that compute.

        A worker without requests lends its cores; one that is draining or has lost its link, too,
        once it has no requests. One that starts needs them.
        """
        attempts: dict[int, int] = {}
        for session in sessions:
            attempts[session.worker] = attempts.get(session.worker, 0) + len(session.attempts)
        homes: list[Home] = []
        current: list[Session] = []
        for worker, reading in self._readings.present():
            identity = reading.identity
            if identity.gpu >= 0:
                continue
            now = next((s for m in self._models if (s := m.current(worker)) is not None), None)
            busy = attempts.get(worker, 0) > 0
            computing = now is not None and bool(now.attempts)
            starting = identity.state is WorkerState.STARTING
            homes.append(Home(worker, identity.cpus, computing, idle=not (busy or starting)))
            if computing and now is not None:
                current.append(now)
        return homes, current

    def _look(self) -> None:
        """Take in the cores' readings, if they may have changed."""
        now = self._clock()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        cores = []
        for cpu, row in self._readings.cores():
            if row.lead:
                shut = self._is_used(cpu, row) or self._readings.hot(row)
                cores.append(Core(cpu, row.llc, row.node, row.efficiency, open=not shut))
        self._cores = cores
        quota = self._readings.quota_cpus()
        self._limit = None if quota is None else int(quota)

    def _is_used(self, cpu: int, row: CoreRow) -> bool:
        used = (row.usual_others if row.foreign is None else row.foreign) or 0.0
        if used > USED:
            self._closed.add(cpu)
        elif used < FREE:
            self._closed.discard(cpu)
        return cpu in self._closed
