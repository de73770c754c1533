"""The operator's commands: drain, resume, restart, scale, rolling restart.

Each writes what is wanted, lets the reconciler do it, and waits until it has happened. A
command that cannot be carried out in the present state is refused and changes nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

import msgspec

from lbhost.board import WorkerState
from lbhost.errors import ConflictError, InvalidRequestError, WorkerNotFoundError
from lbhost.placement.placement import Placement
from lbhost.supervisor import lifecycle
from lbhost.supervisor.desired import Rolling, WorkerWanted
from lbhost.supervisor.fleet import Fleet
from lbhost.supervisor.pool import Pool
from lbhost.supervisor.rolling import Over, surge
from lbhost.supervisor.shared import Shared
from lbhost.supervisor.succession import Context
from lbhost.supervisor.worker import Worker

_S = WorkerState


class Operations:
    """Commands on the models' pools. One rolling restart or scaling at a time."""

    def __init__(self, fleet: Fleet, shared: Shared) -> None:
        self.fleet = fleet
        self.homes = shared.homes
        self.events = shared.events
        self.changes = shared.changes
        self.stopping = False
        self._ids = shared.ids
        self._scaling: Pool | None = None
        self._more_to_roll = False

    @property
    def rolling(self) -> str | None:
        """What a rolling restart is doing, None when none runs."""
        for pool in self.fleet.pools:
            if pool.desired.rolling is not None:
                return pool.naming(pool.step().text)
        return "the next model" if self._more_to_roll else None

    @property
    def runs(self) -> bool:
        """Whether any worker is wanted up: not where all models sleep."""
        return any(_running(pool) for pool in self.fleet.pools)

    # --- one worker -----------------------------------------------------------------------

    async def drain(self, worker_id: int, timeout_s: float | None = None) -> str:
        """Wanted down: no new requests, then no process.

        Args:
            timeout_s: after that its requests are cut off; default: request_timeout_s.

        Raises:
            WorkerNotFoundError, ConflictError.
        """
        pool, worker = self._worker(worker_id)
        self._operator(worker, "drain")
        by = None if timeout_s is None else time.monotonic() + timeout_s
        self._want(pool, worker, up=False, down_by_s=by)
        await pool.until(
            lambda: worker.state is _S.STOPPED or pool.lost(worker) or pool.wanted(worker).up
        )
        if pool.wanted(worker).up:
            raise ConflictError(f"{worker.name} was resumed before its drain had ended")
        return f"{worker.name} is drained and stopped"

    async def resume(self, worker_id: int) -> str:
        """Wanted up: withdraws a drain in progress, or starts a worker that is not up.

        Raises:
            WorkerNotFoundError, ConflictError.
        """
        pool, worker = self._worker(worker_id)
        self._not_leaving(pool, worker)
        self._operator(worker, "resume")
        again = worker.state in {_S.STOPPED, _S.BACKOFF, _S.FAILED}
        pool.reset_crashes(worker)
        pool.desired.asleep = False
        self._want(pool, worker, up=True, down_by_s=None, epoch=worker.epoch + again)
        await self.until_up(pool, worker)
        return f"{worker.name} is up"

    async def restart(self, worker_id: int) -> str:
        """Drain, stop, start.

        Raises:
            WorkerNotFoundError, ConflictError: among others: it did not come up, or somebody
                wants something else of it.
        """
        pool, worker = self._worker(worker_id)
        self._not_leaving(pool, worker)
        self.require_alone("restart")
        self._operator(worker, "restart")
        target = worker.epoch + 1
        pool.reset_crashes(worker)
        self._want(pool, worker, up=True, down_by_s=None, epoch=target)
        await pool.until(
            lambda: worker.epoch >= target or _changed_mind(pool, worker, target) or self.stopping
        )
        if worker.epoch < target and pool.wanted(worker).up:
            resumed = f"{worker.name} was resumed before its restart had begun"
            raise ConflictError("the server is stopping" if self.stopping else resumed)
        await self.until_up(pool, worker)
        return f"{worker.name} is up again"

    # --- all of them ----------------------------------------------------------------------

    async def restart_all(self) -> str:
        """A rolling restart of every worker that is wanted up, see rolling.py; one model after the
        other.

        Stops at the first that does not come up; the spare goes then too. Models without a worker
        come last, and one whose weights cannot be loaded is left out: it has nothing to restart.

        Raises:
            ConflictError: another one runs, nothing is wanted up, or a worker did not come up.
        """
        self.require_alone("start a rolling restart")
        models = [model for model in self.fleet if _running(model.pool)]
        models.sort(key=lambda model: model.hopeless is not None)
        rolled = [model.pool for model in models if model.unloadable is None]
        left = [m.pool.naming(f"not restarted, {m.unloadable}") for m in models if m.unloadable]
        if not rolled:
            why = "; ".join(left) or "no worker is wanted up"
            raise ConflictError(f"{why}: there is nothing to restart")
        said = []
        try:
            for pool in rolled:
                self._more_to_roll = pool is not rolled[-1]
                said.append(await self._restart_all(pool))
        finally:
            self._more_to_roll = False
        return "; ".join([*said, *left])

    async def _restart_all(self, pool: Pool) -> str:
        members = _running(pool)
        if self.stopping or not members:
            raise ConflictError("the server is stopping" if self.stopping else "nothing runs")
        spared = surge(members) and self._fits_a_spare(pool, len(members))
        spare = self._add_spare(pool, members) if spared else None
        targets = {i: pool.workers[i].epoch + 1 for i in members}
        for i, target in targets.items():
            pool.reset_crashes(pool.workers[i])
            pool.want(pool.workers[i], epoch=target, down_by_s=None)
        pool.desired.rolling, pool.rolled = Rolling(targets, spare), None
        begun = pool.naming(f"rolling restart of {len(members)} workers")
        self.events.add("info", "rolling", begun)
        pool.reconcile()
        await pool.until(lambda: pool.desired.rolling is None or self.stopping)
        if pool.rolled is None:
            raise ConflictError("the server is stopping")
        return self._rolled(pool, pool.rolled)

    def _fits_a_spare(self, pool: Pool, members: int) -> bool:
        """Whether memory suffices; a lone worker has one in any case, or nobody would serve."""
        (model,) = (model for model in self.fleet if model.pool is pool)
        try:
            model.room(1)
        except ConflictError as error:
            if members == 1:
                return True
            text = pool.naming(f"no spare worker, one fewer serves at a time: {error.message}")
            self.events.add("warning", "rolling", text)
            return False
        except InvalidRequestError:
            return True  # the board has no row: that is said by who takes one
        return True

    def _add_spare(self, pool: Pool, members: dict[int, WorkerWanted]) -> int:
        free = self._ids.free(1)
        if not free:
            raise ConflictError("the board has no row for a spare worker")
        home = next(iter(members.values())).home
        assert home is not None, "who runs has a home"
        pool.add(free[0], home, WorkerWanted(home, spare=True))
        return free[0]

    def _rolled(self, pool: Pool, over: Over) -> str:
        if over.failure is None:
            message = pool.naming(f"rolling restart done: {over.done} workers")
            self.events.add("info", "rolling", message)
            return message
        failed = None if over.worker is None else pool.workers.get(over.worker)
        why = f": {failed.last_exit}" if failed is not None else ""
        message = pool.naming(f"the rolling restart has stopped: {over.failure}{why}")
        self.events.add("error", "rolling", message)
        raise ConflictError(message)

    async def scale(self, count: int, model: str | None = None, *, pin: bool = True) -> str:
        """So many workers: new ids, or the highest ids drained and removed. A spare is none.

        Args:
            model: of which model; None: of the only one.
            pin: that stays so, where the load said how many there are.

        Raises:
            ConflictError: a rolling restart or another scaling runs, or a new worker failed.
            InvalidRequestError: so many do not fit here, or there is no such model.
        """
        self.require_alone("scale")
        self.check_scale(model, count)
        pool = self.fleet.named(model).pool
        text = f"{count} worker{'' if count == 1 else 's'}"
        until = ""
        if pin and pool.desired.settings.autoscaled:
            pool.desired.pinned, until = True, ", until `lbhost scale auto`"
        self.events.add("info", "operator", pool.naming(f"scale to {count} workers{until}"))
        self._scaling = pool
        try:
            leaving, coming = self.set_workers(pool, count)
            await pool.until(lambda: all(pool.lost(worker) for worker in leaving))
            for worker in coming:
                await self.until_up(pool, worker)
        finally:
            self._scaling = None
        return pool.naming(text + until)

    async def scale_auto(self, model: str | None = None) -> str:
        """The load says how many workers there are, from now on.

        Raises:
            ConflictError: nothing says between which numbers.
            InvalidRequestError: there is no such model.
        """
        pool = self.fleet.named(model).pool
        if not pool.desired.settings.autoscaled:
            raise ConflictError(
                "the number of workers is fixed: set min_workers or max_workers, and reload"
            )
        pool.desired.pinned = False
        text = pool.naming("the load says how many workers there are")
        self.events.add("info", "operator", text)
        return text

    def check_scale(self, model: str | None, count: int) -> None:
        """Raises InvalidRequestError, ConflictError: so many do not fit here."""
        served = self.fleet.named(model)
        self.homes.check(served.pool.desired, count)
        served.room(count - len(served.pool.desired.members()))

    def scales(self, pool: Pool) -> bool:
        """Whether an operator's scaling of these workers is under way."""
        return self._scaling is pool

    def set_workers(
        self,
        pool: Pool,
        count: int,
        *,
        of_those_up: bool = False,
        down: Callable[[Sequence[Placement]], frozenset[int]] = lambda _: frozenset(),
    ) -> tuple[list[Worker], list[Worker]]:
        """Want so many; `check_scale` has found room for them. Those that go, and those that come.

        Who comes is at home where the fewest other models' workers are.

        Args:
            of_those_up: the others, which an operator has taken down, do not count and stay.
            down: which of those that come, by their homes, are not to run.
        """
        wanted = pool.desired.members().items()
        members = [i for i, want in wanted if want.up or not of_those_up]
        leaving = [pool.workers[i] for i in members[count:]]
        for worker in leaving:
            pool.want(worker, leaving=True, down_by_s=None)
        pool.desired.asleep = count == 0
        coming = self._ids.free(max(0, count - len(members)))
        for i in coming:
            pool.desired.workers[i] = WorkerWanted(None)
        self.homes.assign(pool.desired, self.fleet.beside(pool))
        homes = []
        for i in coming:
            home = pool.desired.workers[i].home
            assert home is not None, "check() has found room for it"
            homes.append(home)
        resting = down(homes)
        made = [
            pool.add(i, home, WorkerWanted(home, up=index not in resting))
            for index, (i, home) in enumerate(zip(coming, homes, strict=True))
        ]
        pool.reconcile()
        return leaving, made

    def follow(self, contexts: Sequence[Context]) -> None:
        """Want what operators of the server before this one have wanted since this one began to
        start: which workers are down, and how many a pinned model has. Nothing once this one stops:
        none of its workers is to run any more."""
        if self.stopping:
            return
        by_name = {context.name: context for context in contexts}
        for model in self.fleet:
            if model.name not in by_name:
                continue
            made = msgspec.structs.replace(model.made, before=by_name[model.name])
            pool = model.pool
            pool.desired.pinned = made.pinned
            if made.pinned and made.workers != len(pool.desired.members()):
                with contextlib.suppress(InvalidRequestError):  # the box has become too small
                    self.homes.check(pool.desired, made.workers)
                    self.set_workers(pool, made.workers)
            homes = {i: want.home for i, want in pool.desired.members().items() if want.home}
            down = made.down([home for home in homes.values() if home is not None])
            for index, i in enumerate(homes):
                pool.want(pool.workers[i], up=index not in down, down_by_s=None)
            pool.reconcile()

    # --- conditions -----------------------------------------------------------------------

    async def until_up(self, pool: Pool, worker: Worker) -> None:
        """Return once a worker is up.

        Raises:
            ConflictError: it will not be.
        """

        model = next(model for model in self.fleet if model.pool is pool)

        def settled() -> bool:
            up = worker.state in lifecycle.UP
            over = worker.state is _S.FAILED or not pool.wanted(worker).runs
            return up or over or self.stopping or model.unloadable is not None

        await pool.until(settled)
        if worker.state in lifecycle.UP:
            return
        if worker.state is _S.FAILED:
            raise ConflictError(f"{worker.name} does not start: {worker.last_exit}")
        if self.stopping:
            raise ConflictError("the server is stopping")
        want = pool.wanted(worker)
        if want.up and not want.leaving and want.home is None:
            has = self.homes.describe()
            raise ConflictError(f"there is no core for {worker.name}: this server has {has}")
        if want.runs and model.unloadable is not None:
            raise ConflictError(f"{worker.name} does not start: {model.unloadable}")
        raise ConflictError(f"{worker.name} was taken down before it was up")

    def _want(self, pool: Pool, worker: Worker, **changes: object) -> None:
        pool.want(worker, **changes)
        pool.reconcile()

    def _worker(self, worker_id: int) -> tuple[Pool, Worker]:
        if self.stopping:
            raise ConflictError("the server is stopping")
        pool = self.fleet.of_worker(worker_id)
        if pool is None:
            known = ", ".join(map(str, self.fleet.workers)) or "none"
            raise WorkerNotFoundError(f"no worker has the id {worker_id}; there are: {known}")
        return pool, pool.workers[worker_id]

    def _not_leaving(self, pool: Pool, worker: Worker) -> None:
        if pool.wanted(worker).leaving:
            raise ConflictError(f"{worker.name} is being removed")

    def require_alone(self, what: str) -> None:
        """Raises ConflictError if a rolling restart or a scaling runs."""
        if self.stopping:
            raise ConflictError("the server is stopping")
        if self.rolling is not None:
            raise ConflictError(f"cannot {what} while a rolling restart runs ({self.rolling})")
        if self._scaling is not None:
            raise ConflictError(f"cannot {what} while the server is being scaled")

    def _operator(self, worker: Worker, what: str) -> None:
        self.events.add("info", "operator", f"{what} {worker.name}", worker.id)


def _running(pool: Pool) -> dict[int, WorkerWanted]:
    """The workers that a rolling restart is of."""
    return {i: want for i, want in pool.desired.members().items() if want.runs}


def _changed_mind(pool: Pool, worker: Worker, target: int) -> bool:
    want = pool.wanted(worker)
    return want.epoch < target or not want.runs
