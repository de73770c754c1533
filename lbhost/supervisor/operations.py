"""The operator's commands: drain, resume, restart, scale, rolling restart.

Each writes what is wanted, lets the reconciler do it, and waits until it has happened. A
command that cannot be carried out in the present state is refused and changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lbhost.board import WorkerState
from lbhost.errors import ConflictError, WorkerNotFoundError
from lbhost.supervisor import lifecycle
from lbhost.supervisor.desired import Rolling, WorkerWanted
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.homes import Homes
from lbhost.supervisor.pool import Pool
from lbhost.supervisor.rolling import Over, surge
from lbhost.supervisor.worker import Worker

_S = WorkerState

Room = Callable[[int, int], None]
"""Raises LbhostError if so many workers (and so many more than now) have no room."""


class Operations:
    """Commands on a pool. One rolling restart or scaling at a time."""

    def __init__(self, pool: Pool, homes: Homes, events: EventLog, rows: int, room: Room) -> None:
        """
        Args:
            rows: of the board's worker tables.
            room: beyond cores: rows and memory.
        """
        self.pool = pool
        self.homes = homes
        self.events = events
        self.stopping = False
        self._rows = rows
        self._room = room
        self._scaling = False

    @property
    def rolling(self) -> str | None:
        """What a rolling restart is doing, None when none runs."""
        return None if self.pool.desired.rolling is None else self.pool.step().text

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
        by = None if timeout_s is None else time.monotonic() + timeout_s
        self._want(worker, up=False, down_by_s=by)
        await self.pool.until(
            lambda: (
                worker.state is _S.STOPPED or self.pool.lost(worker) or self.pool.wanted(worker).up
            )
        )
        if self.pool.wanted(worker).up:
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
        again = worker.state in {_S.STOPPED, _S.BACKOFF, _S.FAILED}
        self.pool.reset_crashes(worker)
        self._want(worker, up=True, down_by_s=None, epoch=worker.epoch + again)
        await self.until_up(worker)
        return f"{worker.name} is up"

    async def restart(self, worker_id: int) -> str:
        """Drain, stop, start.

        Raises:
            WorkerNotFoundError, ConflictError: among others: it did not come up, or somebody
                wants something else of it.
        """
        worker = self._worker(worker_id)
        self._not_leaving(worker)
        self.require_alone("restart")
        self._operator(worker, "restart")
        target = worker.epoch + 1
        self.pool.reset_crashes(worker)
        self._want(worker, up=True, down_by_s=None, epoch=target)
        await self.pool.until(
            lambda: worker.epoch >= target or self._changed_mind(worker, target) or self.stopping
        )
        if worker.epoch < target and self.pool.wanted(worker).up:
            raise ConflictError(f"{worker.name} was resumed before its restart had begun")
        await self.until_up(worker)
        return f"{worker.name} is up again"

    def _changed_mind(self, worker: Worker, target: int) -> bool:
        want = self.pool.wanted(worker)
        return want.epoch < target or not want.runs

    # --- all of them ----------------------------------------------------------------------

    async def restart_all(self) -> str:
        """A rolling restart of every worker that is wanted up, see rolling.py.

        Stops at the first that does not come up; the spare goes then too.

        Raises:
            ConflictError: another one runs, nothing is wanted up, or a worker did not come up.
        """
        self.require_alone("start a rolling restart")
        pool = self.pool
        members = {i: want for i, want in pool.desired.members().items() if want.runs}
        if not members:
            raise ConflictError("no worker is wanted up: there is nothing to restart")
        spare = self._add_spare(members) if surge(members) else None
        targets = {i: pool.workers[i].epoch + 1 for i in members}
        for i, target in targets.items():
            pool.reset_crashes(pool.workers[i])
            pool.want(pool.workers[i], epoch=target, down_by_s=None)
        pool.desired.rolling, pool.rolled = Rolling(targets, spare), None
        self.events.add("info", "rolling", f"rolling restart of {len(members)} workers")
        pool.reconcile()
        await pool.until(lambda: pool.desired.rolling is None or self.stopping)
        if pool.rolled is None:
            raise ConflictError("the server is stopping")
        return self._rolled(pool.rolled)

    def _add_spare(self, members: dict[int, WorkerWanted]) -> int:
        spare = max(self.pool.workers) + 1
        if spare >= self._rows:
            raise ConflictError(f"the board has no row for a worker {spare}")
        home = next(iter(members.values())).home
        assert home is not None, "who runs has a home"
        self.pool.add(spare, home, WorkerWanted(home, spare=True))
        return spare

    def _rolled(self, over: Over) -> str:
        if over.failure is None:
            message = f"rolling restart done: {over.done} workers"
            self.events.add("info", "rolling", message)
            return message
        failed = None if over.worker is None else self.pool.workers.get(over.worker)
        why = f": {failed.last_exit}" if failed is not None else ""
        message = f"the rolling restart has stopped: {over.failure}{why}"
        self.events.add("error", "rolling", message)
        raise ConflictError(message)

    async def scale(self, count: int) -> str:
        """So many workers: new ids, or the highest ids drained and removed. A spare is none.

        Raises:
            ConflictError: a rolling restart or another scaling runs, or a new worker failed.
            InvalidRequestError: so many do not fit here.
        """
        self.require_alone("scale")
        self.check_scale(count)
        members = list(self.pool.desired.members())
        self.events.add("info", "operator", f"scale to {count} workers")
        self._scaling = True
        try:
            await self._scale(members, count)
        finally:
            self._scaling = False
        return f"{count} worker{'' if count == 1 else 's'}"

    def check_scale(self, count: int) -> None:
        """Raises InvalidRequestError, ConflictError: so many do not fit here."""
        self.homes.check(count)
        self._room(count, count - len(self.pool.desired.members()))

    async def _scale(self, members: list[int], count: int) -> None:
        pool = self.pool
        leaving = [pool.workers[i] for i in members[count:]]
        for worker in leaving:
            pool.want(worker, leaving=True, down_by_s=None)
        free = [i for i in range(self._rows) if i not in pool.workers]
        coming = free[: max(0, count - len(members))]
        for i in coming:
            pool.desired.workers[i] = WorkerWanted(None)
        self.homes.assign(pool.desired)
        made = []
        for i in coming:
            want = pool.desired.workers[i]
            assert want.home is not None, "check() has found room for it"
            made.append(pool.add(i, want.home, want))
        pool.reconcile()
        await pool.until(lambda: all(pool.lost(worker) for worker in leaving))
        for worker in made:
            await self.until_up(worker)

    # --- conditions -----------------------------------------------------------------------

    async def until_up(self, worker: Worker) -> None:
        """Return once a worker is up.

        Raises:
            ConflictError: it will not be.
        """

        def settled() -> bool:
            up = worker.state in lifecycle.UP
            over = worker.state is _S.FAILED or not self.pool.wanted(worker).runs
            return up or over or self.stopping

        await self.pool.until(settled)
        if worker.state in lifecycle.UP:
            return
        if worker.state is _S.FAILED:
            raise ConflictError(f"{worker.name} does not start: {worker.last_exit}")
        want = self.pool.wanted(worker)
        if want.up and not want.leaving and want.home is None:
            has = self.homes.describe()
            raise ConflictError(f"there is no core for {worker.name}: this server has {has}")
        raise ConflictError(f"{worker.name} was taken down before it was up")

    def _want(self, worker: Worker, **changes: object) -> None:
        self.pool.want(worker, **changes)
        self.pool.reconcile()

    def _worker(self, worker_id: int) -> Worker:
        if self.stopping:
            raise ConflictError("the server is stopping")
        worker = self.pool.workers.get(worker_id)
        if worker is None:
            known = ", ".join(map(str, sorted(self.pool.workers))) or "none"
            raise WorkerNotFoundError(f"no worker has the id {worker_id}; there are: {known}")
        return worker

    def _not_leaving(self, worker: Worker) -> None:
        if self.pool.wanted(worker).leaving:
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
