"""What the admin API asks of a supervisor: its status, and the commands that others carry out."""

from __future__ import annotations

import os
import time
from typing import Literal

from lbhost import __version__
from lbhost.config import Settings
from lbhost.errors import ConflictError
from lbhost.status import Requests, Status
from lbhost.supervisor.assembly import Assembly
from lbhost.supervisor.children import Children
from lbhost.supervisor.configuration import Configuration
from lbhost.supervisor.desired import Desired
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.fleet import Fleet
from lbhost.supervisor.handover import Handover
from lbhost.supervisor.homes import Homes
from lbhost.supervisor.operations import Operations
from lbhost.supervisor.output import Output
from lbhost.supervisor.questions import Questions
from lbhost.supervisor.rehearsal import rehearse
from lbhost.supervisor.runtime import RuntimeDir
from lbhost.supervisor.service import Service
from lbhost.supervisor.startup import Prepared
from lbhost.supervisor.state_folder import StateFolder


class Commanded:
    """The supervisor as the admin API sees it; the supervisor makes the parts."""

    prepared: Prepared
    endpoint: str
    events: EventLog
    configuration: Configuration
    desired: Desired
    fleet: Fleet
    gateway: Service
    homes: Homes
    operations: Operations
    questions: Questions
    _announced: bool
    _assembly: Assembly
    _began_s: float
    _children: Children
    _handover: Handover
    _runtime: RuntimeDir
    _state_folder: StateFolder
    _stopping: bool

    def status(self) -> Status:
        """Everything there is to know."""
        made, assembly = self.prepared, self._assembly
        workers = assembly.workers(self.fleet, self.homes.topology)
        first = made.models[0]
        return Status(
            version=__version__,
            pid=os.getpid(),
            model=first.name,
            model_path=first.file.path,
            kind=first.info.purpose.kind.value,
            endpoint=self.endpoint,
            runtime_dir=str(self._runtime.path),
            state=self._state(),
            policy=self.desired.settings.policy.value,
            uptime_s=time.monotonic() - self._began_s,
            rolling=self.operations.rolling,
            workers=workers,
            gateway=self.gateway.status(),
            template=self.fleet.worst_fork_server(),
            traffic=assembly.traffic(),
            states=assembly.states(),
            cores=assembly.cores(self.homes.topology, self.fleet.ledger(), workers),
            gpus=assembly.gpus(),
            host=assembly.host(),
            fork_servers=self.fleet.fork_server_status(),
            models=assembly.models(self.fleet),
            warnings=self._state_folder.warnings,
        )

    def _state(self) -> str:
        if self._stopping:
            return "stopping"
        if not self._announced:
            return "starting"
        whole = all(model.state in {"ready", "sleeping", "stopped"} for model in self.fleet)
        return "ready" if whole and self.gateway.state == "ready" else "degraded"

    async def drain(self, worker: int, timeout_s: float | None) -> str:
        """See Operations.drain; so for the next ones."""
        return await self.operations.drain(worker, timeout_s)

    async def resume(self, worker: int) -> str:
        """See Operations.resume."""
        return await self.operations.resume(worker)

    async def restart(self, worker: int) -> str:
        """See Operations.restart."""
        return await self.operations.restart(worker)

    async def restart_all(self) -> str:
        """See Operations.restart_all."""
        return await self.operations.restart_all()

    async def scale(self, workers: int | Literal["auto"], model: str | None = None) -> str:
        """See Operations.scale and scale_auto."""
        if workers == "auto":
            return await self.operations.scale_auto(model)
        return await self.operations.scale(workers, model)

    def output(self, worker: int) -> Output:
        """What a worker's processes have written. Raises WorkerNotFoundError."""
        return self.fleet.worker(worker).output

    async def requests(self, limit: int) -> Requests:
        """See Questions.requests."""
        return await self.questions.requests(limit)

    async def cancel(self, request: str) -> str:
        """See Questions.cancel."""
        said = await self.questions.cancel(request)
        self.events.add("info", "operator", said)
        return said

    async def reload(self, *, dry_run: bool = False) -> str:
        """See Configuration.reload and dry_run."""
        self._require_serving()
        if dry_run:
            return await self.configuration.dry_run(self.operations, self._rehearse)
        return await self.configuration.reload(self.operations, self.gateway, self._hand_over)

    async def upgrade(self) -> str:
        """Have the lbhost that is installed now take over, with the configuration as it is now."""
        self._require_serving()
        return await self.configuration.upgrade(self.operations, self.gateway, self._hand_over)

    def _require_serving(self) -> None:
        if self._stopping or not self._announced:
            raise ConflictError(f"the server is {'stopping' if self._stopping else 'starting'}")

    async def _rehearse(self, settings: Settings) -> list[str]:
        return await rehearse(settings, self.prepared, self.fleet.contexts(), self._children)

    async def _hand_over(self, why: str) -> str:
        return await self._handover.give(why, self.configuration.source)
