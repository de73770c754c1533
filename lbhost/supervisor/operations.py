"""The operator's commands: drain, resume, restart, scale, rolling restart.

Each changes what is wanted, lets pool.py do it, and waits until it has happened. A command
that cannot be carried out in the present state is refused and changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from lbhost.board import Wanted, WorkerState
from lbhost.errors import ConflictError, WorkerNotFoundError
from lbhost.placement.placement import Placement
from lbhost.supervisor import lifecycle
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.pool import Pool
from lbhost.supervisor.worker import Worker

_S = WorkerState

Plan = Callable[[int], Sequence[Placement]]
"""Where so many workers run, by id; raises InvalidRequestError when they do not fit."""


class Operations:
    """Commands on a pool. One rolling restart or scaling at a time."""

    def __init__(
        self,
        pool: Pool,
        events: EventLog,
        plan: Plan,
        new_worker: Callable[[int, Placement], Worker],
        request_timeout_s: float,
    ) -> None:
        self.pool = pool
        self.events = events
        self.new_worker = new_worker
        self.request_timeout_s = request_timeout_s
        self.stopping = False
        self.rolling: str | None = None
        """What a rolling restart is doing, None when none runs."""
        self._scaling = False
        self._plan = plan

    # --- one worker -----------------------------------------------------------------------

    async def drain(self, worker_id: int, timeout_s: float | None = None) -> str:
        """Wanted down: no new requests, then no process.

        Args:
            timeout_s: after that its requests are cut off; default: request_timeout_s.

        Raises:
            WorkerNotFoundError, ConflictError.
        """
        worker = self._worker(worker_id)
        self._operator(worker, "drain")
        self.pool.want(worker, Wanted.DOWN)
        self._take_down(worker, self.request_timeout_s if timeout_s is None else timeout_s)
        await self.pool.until(
            lambda: worker.state is _S.STOPPED or worker.wanted is Wanted.UP or self._lost(worker)
        )
        if worker.wanted is Wanted.UP:
            raise ConflictError(f"{worker.name} was resumed before its drain had ended")
        return f"{worker.name} is drained and stopped"

    async def resume(self, worker_id: int) -> str:
        """Wanted up: withdraws a drain in progress, or starts a worker that is not up.

        Raises:
            WorkerNotFoundError, ConflictError.
        """
        worker = self._worker(worker_id)
        self._not_leaving(worker)
        self._operator(worker, "resume")
        self.pool.want(worker, Wanted.UP)
        self.pool.reset_crashes(worker)
        if worker.state is _S.DRAINING:
            self.pool.withdraw(worker)
        elif worker.state in {_S.STOPPED, _S.BACKOFF, _S.FAILED}:
            self.pool.start(worker)
        await self.until_up(worker)
        return f"{worker.name} is up"

    async def restart(self, worker_id: int) -> str:
        """Drain, stop, start.

        Raises:
            WorkerNotFoundError, ConflictError.
        """
        worker = self._worker(worker_id)
        self._not_leaving(worker)
        self.require_alone("restart")
        self._operator(worker, "restart")
        await self.renew(worker)
        return f"{worker.name} is up again"

    async def renew(self, worker: Worker) -> None:
        """A new process for this worker, after the old one's requests have ended.

        Raises:
            ConflictError: it did not come up, or somebody wants something else of it.
        """
        before = worker.epoch
        self.pool.want(worker, Wanted.UP)
        self.pool.reset_crashes(worker)
        if worker.state in {_S.STOPPED, _S.BACKOFF, _S.FAILED}:
            self.pool.start(worker)
        else:
            self._take_down(worker, self.request_timeout_s)
        withdrawn = [False]

        def renewed() -> bool:
            # READY with the old epoch: a resume took the drain back.
            withdrawn[0] = worker.epoch == before and worker.state in lifecycle.UP
            return withdrawn[0] or worker.epoch > before or worker.wanted is Wanted.DOWN

        await self.pool.until(renewed)
        if withdrawn[0]:
            raise ConflictError(f"{worker.name} was resumed before its restart had begun")
        await self.until_up(worker)

    # --- all of them ----------------------------------------------------------------------

    async def scale(self, count: int) -> str:
        """So many workers: new ids at the end, or the highest ids drained and removed.

        Raises:
            ConflictError: a rolling restart or another scaling runs, or a new worker failed.
            InvalidRequestError: so many do not fit here.
        """
        self.require_alone("scale")
        placements = self._plan(count)
        self.events.add("info", "operator", f"scale to {count} workers")
        self._scaling = True
        try:
            await self._scale(placements)
        finally:
            self._scaling = False
        return f"{count} worker{'' if count == 1 else 's'}"

    async def _scale(self, placements: Sequence[Placement]) -> None:
        workers = self.pool.workers
        leaving = [workers[i] for i in sorted(workers, reverse=True) if i >= len(placements)]
        for worker in leaving:
            self.retire(worker)
        coming = []
        for i, placement in enumerate(placements):
            if i not in workers:
                coming.append(self.new_worker(i, placement))
                self.pool.add(coming[-1])
        await self.pool.until(lambda: all(self._lost(worker) for worker in leaving))
        for worker in coming:
            await self.until_up(worker)

    def retire(self, worker: Worker) -> None:
        """Drain a worker and forget it."""
        worker.retiring = True
        self.pool.want(worker, Wanted.DOWN)
        self._take_down(worker, self.request_timeout_s)
        self.pool.settle(worker)

    async def until_retired(self, worker: Worker) -> None:
        """Return once a retired worker is gone."""
        await self.pool.until(lambda: self._lost(worker))

    # --- conditions -----------------------------------------------------------------------

    async def until_up(self, worker: Worker) -> None:
        """Return once a worker is up.

        Raises:
            ConflictError: it will not be.
        """

        def settled() -> bool:
            up = worker.state in lifecycle.UP
            over = worker.state is _S.FAILED or worker.wanted is Wanted.DOWN
            return up or over or self._lost(worker) or self.stopping

        await self.pool.until(settled)
        if worker.state in lifecycle.UP:
            return
        if worker.state is _S.FAILED:
            raise ConflictError(f"{worker.name} does not start: {worker.last_exit}")
        raise ConflictError(f"{worker.name} was taken down before it was up")

    def _take_down(self, worker: Worker, timeout_s: float) -> None:
        if worker.state in lifecycle.UP:
            self.pool.drain(worker, timeout_s)
        elif worker.state is _S.DRAINING:
            worker.deadline_s = time.monotonic() + timeout_s
        elif lifecycle.possible(worker.state, lifecycle.Event.STOP):
            self.pool.stop(worker)

    def _lost(self, worker: Worker) -> bool:
        return self.pool.workers.get(worker.id) is not worker

    def _worker(self, worker_id: int) -> Worker:
        if self.stopping:
            raise ConflictError("the server is stopping")
        worker = self.pool.workers.get(worker_id)
        if worker is None:
            known = ", ".join(map(str, sorted(self.pool.workers))) or "none"
            raise WorkerNotFoundError(f"no worker has the id {worker_id}; there are: {known}")
        return worker

    def _not_leaving(self, worker: Worker) -> None:
        if worker.retiring:
            raise ConflictError(f"{worker.name} is being removed")

    def require_alone(self, what: str) -> None:
        """Raises ConflictError if a rolling restart or a scaling runs."""
        if self.stopping:
            raise ConflictError("the server is stopping")
        if self.rolling is not None:
            raise ConflictError(f"cannot {what} while a rolling restart runs ({self.rolling})")
        if self._scaling:
            raise ConflictError(f"cannot {what} while the server is being scaled")

    def _operator(self, worker: Worker, what: str) -> None:
        self.events.add("info", "operator", f"{what} {worker.name}", worker.id)
