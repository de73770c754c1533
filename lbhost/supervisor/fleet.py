"""The models of one server: each with its fork servers and its pool of workers.

Owns them by number. What is said to all, or to whom a worker's id belongs, is passed on here; what
is wanted of a model lies in desired.py, what becomes of its workers in pool.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lbhost.board import ProgressRow, WorkerState
from lbhost.errors import InvalidRequestError, WorkerNotFoundError
from lbhost.status import ForkServerStatus, ProcessStatus
from lbhost.supervisor import lifecycle
from lbhost.supervisor.cores import Ledger, ledger
from lbhost.supervisor.desired import ModelWanted
from lbhost.supervisor.fork_servers import ForkServers
from lbhost.supervisor.model_startup import PreparedModel
from lbhost.supervisor.pool import Pool
from lbhost.supervisor.room import Room
from lbhost.supervisor.service import Service
from lbhost.supervisor.succession import Context
from lbhost.supervisor.worker import Worker

_S = WorkerState


@dataclass
class Served:
    """One model as the supervisor has it."""

    made: PreparedModel
    pool: Pool
    fork_servers: ForkServers
    room: Room
    failure: str | None = None
    """Why its weights could not be loaded; None: they could, or nobody knows yet."""
    refused: str | None = None
    """Why the gateway cannot serve it, whatever workers there are; None: it can."""

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.made.name

    @property
    def most(self) -> int:
        """Workers that the load may bring it: a reload may have said another number than the start
        did."""
        settings = self.pool.desired.settings
        if settings.max_workers is None and isinstance(settings.workers, int):
            return settings.workers
        return len(self.made.placements)

    @property
    def starting(self) -> bool:
        """Whether it may have its first worker yet."""
        states = {worker.state for worker in self.pool.workers.values()}
        wanted = any(want.up for want in self.pool.desired.workers.values())
        return (
            wanted
            and self.hopeless is None
            and (not states & lifecycle.UP or WorkerState.STARTING in states)
        )

    @property
    def hopeless(self) -> str | None:
        """Why it has no worker and will have none by itself; None: it has one, or may have."""
        workers = self.pool.workers.values()
        if any(worker.state in lifecycle.UP for worker in workers):
            return None
        if all(worker.state is _S.FAILED for worker in workers):
            return next((f"no worker could be started: {w.last_exit}" for w in workers), None)
        return self.failure

    @property
    def unloadable(self) -> str | None:
        """Why its workers wait for weights that cannot be loaded; None: they do not."""
        return None if self.hopeless is None else self.failure

    @property
    def state(self) -> str:
        """ready, degraded (some worker that should be up is not), starting, failed, sleeping, or
        stopped (none is wanted up)."""
        if self.pool.desired.asleep:
            return "sleeping"
        members = self.pool.desired.members()
        states = [self.pool.workers[i].state for i, want in members.items() if want.up]
        up = sum(state in lifecycle.UP for state in states)
        if not states:
            return "stopped"
        if self.refused is not None:
            return "failed"
        if up:
            return "ready" if up == len(states) else "degraded"
        return "starting" if self.hopeless is None else "failed"


class Fleet:
    """All models of a server, by number."""

    def __init__(self, models: Sequence[Served]) -> None:
        self.models = models

    def __iter__(self) -> Iterator[Served]:
        return iter(self.models)

    @property
    def pools(self) -> list[Pool]:
        """Each model's."""
        return [model.pool for model in self.models]

    def contexts(self) -> tuple[Context, ...]:
        """How the models are served, for a server that is to take over."""
        return tuple(
            Context(
                model.name,
                model.made.file.path,
                model.made.n_ctx,
                workers=sum(want.up for want in model.pool.desired.members().values()),
                asleep=model.pool.desired.asleep,
                down=tuple(
                    want.home
                    for want in model.pool.desired.members().values()
                    if not want.up and want.home is not None
                ),
                pinned=model.pool.desired.pinned,
            )
            for model in self
        )

    @property
    def several(self) -> bool:
        """Whether a model has to be named."""
        return len(self.models) > 1

    @property
    def workers(self) -> dict[int, Worker]:
        """Of all models, by id."""
        found = {i: worker for pool in self.pools for i, worker in pool.workers.items()}
        return dict(sorted(found.items()))

    def worker(self, worker_id: int) -> Worker:
        """Raises WorkerNotFoundError: there is none of that id."""
        workers = self.workers
        if worker_id not in workers:
            known = ", ".join(map(str, workers)) or "none"
            raise WorkerNotFoundError(f"no worker has the id {worker_id}; there are: {known}")
        return workers[worker_id]

    def named(self, name: str | None) -> Served:
        """The model that clients call so; None: the only one.

        Raises:
            InvalidRequestError: there is no such model, or more than one.
        """
        names = ", ".join(model.name for model in self.models)
        if name is None:
            if self.several:
                raise InvalidRequestError(
                    f"this server has several models: name one (--model): {names}", param="model"
                )
            return self.models[0]
        for model in self.models:
            if name == model.name or name in model.pool.desired.aliases:
                return model
        raise InvalidRequestError(f"no model is called {name!r}; there are: {names}", param="model")

    def of_worker(self, worker_id: int) -> Pool | None:
        """The pool that has this worker."""
        return next((pool for pool in self.pools if worker_id in pool.workers), None)

    def of_service(self, service: Service) -> Served | None:
        """The model whose fork server that is."""
        return next((m for m in self.models if service in m.fork_servers.all()), None)

    def beside(self, pool: Pool) -> list[ModelWanted]:
        """What is wanted of the other models."""
        return [other.desired for other in self.pools if other is not pool]

    # --- all pools ------------------------------------------------------------------------

    def reconcile(self) -> None:
        """See Pool.reconcile."""
        for pool in self.pools:
            pool.reconcile()

    def pin(self) -> None:
        """See Pool.pin."""
        for pool in self.pools:
            pool.pin()

    def progress(self) -> dict[int, ProgressRow]:
        """See Roster.progress."""
        return {i: row for pool in self.pools for i, row in pool.progress().items()}

    def tick(
        self,
        now_s: float,
        progress: Mapping[int, ProgressRow],
        *,
        looked: bool,
        gateway_fresh: bool,
    ) -> None:
        """See Pool.tick."""
        for pool in self.pools:
            pool.tick(now_s, progress, looked=looked, gateway_fresh=gateway_fresh)

    def ledger(self) -> Ledger:
        """Whose each core is, and who else runs there."""
        places = {i: place for pool in self.pools for i, place in pool.places().items()}
        return ledger([pool.homes() for pool in self.pools], places)

    def close(self) -> None:
        """Let go of all links and timers."""
        for model in self.models:
            model.pool.close()
            for fork_server in model.fork_servers.all():
                fork_server.close()

    # --- all fork servers -----------------------------------------------------------------

    def fork_servers(self) -> list[Service]:
        """Those of all models, the first one's first."""
        return [service for model in self.models for service in model.fork_servers.all()]

    def stop_fork_servers(self) -> None:
        """End all of them for good."""
        for model in self.models:
            model.fork_servers.stop()

    def fork_server_status(self) -> list[ForkServerStatus]:
        """Each of them, for the admin API."""
        return [row for m in self.models for row in m.fork_servers.status(m.name)]

    def worst_fork_server(self) -> ProcessStatus | None:
        """The first that is not ready, else the first; None if there is none."""
        services = self.fork_servers()
        bad = [service for service in services if service.state != "ready"]
        return next((service.status() for service in [*bad, *services]), None)
