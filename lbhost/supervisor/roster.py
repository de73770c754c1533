"""The records of one model's workers: the one place that changes a worker's state.

Owns the worker records and the identity rows of the board; a state changes by lifecycle.py's
table, and is told of only then. Knows no process: those lie in processes.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lbhost.board import IdentityRow, ProgressRow
from lbhost.placement.placement import Placement
from lbhost.supervisor import lifecycle
from lbhost.supervisor.budget import Restarts
from lbhost.supervisor.desired import ModelWanted, WorkerWanted
from lbhost.supervisor.lifecycle import Event
from lbhost.supervisor.shared import Shared
from lbhost.supervisor.worker import Worker


class Roster:
    """The workers of one model by id, and what is wanted of them."""

    def __init__(self, desired: ModelWanted, shared: Shared) -> None:
        self.desired = desired
        """Whoever changes it calls the pool's `reconcile`."""
        self.workers: dict[int, Worker] = {}
        self._board = shared.board
        self._events = shared.events
        self._ids = shared.ids
        self._changes = shared.changes

    def add(self, worker_id: int, place: Placement, want: WorkerWanted) -> Worker:
        """A new worker; `reconcile` starts it."""
        model = self.desired
        of = model.name if model.several else ""
        worker = Worker(worker_id, place, model.slots, model.n_ctx, model.number, of)
        worker.epoch = self._ids.take(worker_id)
        self.desired.workers[worker_id] = want
        self.workers[worker_id] = worker
        self.publish(worker)
        return worker

    def want(self, worker: Worker, **changes: object) -> None:
        """Want something else of a worker; `reconcile` does it."""
        self.desired.change(worker.id, **changes)
        self.publish(worker)

    def wanted(self, worker: Worker) -> WorkerWanted:
        """What is wanted of a worker; of one that is gone: that."""
        gone = WorkerWanted(home=None, up=False, leaving=True)
        return gone if self.lost(worker) else self.desired.workers[worker.id]

    def lost(self, worker: Worker) -> bool:
        """Whether it has been forgotten."""
        return self.workers.get(worker.id) is not worker

    def reset_crashes(self, worker: Worker) -> None:
        """The operator asks for a new try: earlier crashes do not count."""
        worker.crashes = Restarts()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds; it is looked at after every change of a worker."""
        await self._changes.until(condition)

    def progress(self) -> dict[int, ProgressRow]:
        """What the present processes say of themselves, by worker; none of those that were."""
        rows = {i: self._board.progress.read(i) for i in self.workers}
        return {
            i: row
            for i, row in rows.items()
            if row is not None and row.epoch == self.workers[i].epoch
        }

    def begin(self, worker: Worker, place: Placement) -> None:
        """A new epoch of a worker: its process is to be made at this place."""
        worker.epoch += 1
        self._ids.began(worker.id, worker.epoch)
        worker.pid, worker.ready_ns, worker.complaint, worker.place = None, 0, None, place
        worker.found_hung = worker.stopped = False
        worker.inherited_bytes, worker.own_bytes = 0, None
        self.apply(worker, Event.START)

    def apply(
        self,
        worker: Worker,
        event: Event,
        note: str = "",
        level: str = "info",
        ended: str | None = None,
        retry_at_s: float | None = None,
    ) -> None:
        """Change the state, then tell of it.

        Args:
            ended: how its process ended, told before.
        """
        before = worker.state
        worker.state = lifecycle.apply(before, event)
        worker.since_s = time.monotonic()
        worker.retry_at_s, worker.watch = retry_at_s, None
        self.publish(worker)
        if ended is not None:
            self._events.add("error", "worker_exit", ended, worker.id)
        text = f"{worker.name}: {before.name.lower()} -> {worker.state.name.lower()}"
        self._events.add(level, "worker_state", f"{text} ({note})" if note else text, worker.id)

    def publish(self, worker: Worker) -> None:
        """Write its row on the board."""
        self._board.identity.write(worker.id, worker.identity(self.wanted(worker)))
        self.notify()

    def forget(self, worker: Worker) -> None:
        """It is no worker any more. Its id never has the same epoch twice."""
        worker.output.end()
        self._ids.give_back(worker.id)
        del self.workers[worker.id]
        del self.desired.workers[worker.id]
        self._board.identity.write(worker.id, IdentityRow(epoch=worker.epoch))
        self.notify()

    def naming(self, text: str) -> str:
        """The text, beginning with the model's name where there are several."""
        return f"{self.desired.name}: {text}" if self.desired.several else text

    def notify(self) -> None:
        """Something has changed: let those who wait look again."""
        self._changes.notify()
