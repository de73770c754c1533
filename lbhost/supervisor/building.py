"""Puts the parts of one server together: its services, and for each model what runs its workers.

Makes objects and starts nothing; the supervisor owns what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from lbhost import control
from lbhost.supervisor.configuration import Configuration
from lbhost.supervisor.desired import Desired
from lbhost.supervisor.fleet import Fleet, Served
from lbhost.supervisor.fork_servers import ForkServers
from lbhost.supervisor.homes import Homes
from lbhost.supervisor.launcher import First, Launcher, environment, with_huge_pages
from lbhost.supervisor.model_startup import PreparedModel
from lbhost.supervisor.pool import Pool
from lbhost.supervisor.room import Room
from lbhost.supervisor.service import Owner, Service
from lbhost.supervisor.shared import Shared
from lbhost.supervisor.startup import Prepared
from lbhost.supervisor.worker_ids import WorkerIds

FORK_SERVER_MODULE = "lbhost.worker.fork_server"
GATEWAY_MODULE = "lbhost.gateway"


class Builder:
    """Builds the parts of one server."""

    def __init__(
        self,
        owner: Owner,
        shared: Shared,
        desired: Desired,
        configuration: Configuration,
        environ: Mapping[str, str],
    ) -> None:
        """
        Args:
            owner: whom the services tell.
            environ: of this process.
        """
        self._owner = owner
        self._shared = shared
        self._desired = desired
        self._configuration = configuration
        self._env = environment(environ)

    def gateway(self) -> Service:
        """The gateway's service."""
        first = self._configuration.first_to_gateway
        return self._service("gateway", GATEWAY_MODULE, self._env, first)

    def fleet(self, models: Sequence[PreparedModel], gateway: Service) -> Fleet:
        """Every model, by number."""
        return Fleet([self._model(i, made, gateway) for i, made in enumerate(models)])

    def _model(self, number: int, made: PreparedModel, gateway: Service) -> Served:
        shared, first = self._shared, partial(self._configuration.first, number)
        fork_servers = ForkServers(partial(self._fork_server, made.name, first))
        launcher = Launcher(fork_servers, gateway, shared.children, first, number)
        pool = Pool(self._desired.models[made.name], launcher, shared)
        room = Room(shared.board, shared.ids, fork_servers, made.worker_bytes)
        return Served(made, pool, fork_servers, room)

    def _fork_server(self, model: str, first: First, node: int | None) -> Service:
        env = with_huge_pages(self._env)
        label = "fork server" if node is None else f"fork server of node {node}"
        if len(self._desired.models) > 1:
            label += f" ({model})"
        return self._service("fork_server", FORK_SERVER_MODULE, env, lambda: first(node), label)

    def _service(
        self,
        name: str,
        module: str,
        env: Mapping[str, str],
        first: Callable[[], tuple[control.Control, Sequence[int]]],
        label: str | None = None,
    ) -> Service:
        shared, window_s = self._shared, self._desired.settings.restart_window_s
        owner, children, events = self._owner, shared.children, shared.events
        return Service(name, module, env, first, owner, children, events, window_s, label)


def homes(prepared: Prepared) -> Homes:
    """Who gives the workers their cores."""
    cores = len(prepared.board.cores)
    return Homes(prepared.topology, prepared.reread, prepared.gpus, prepared.gpu_capable, cores)


def ids(prepared: Prepared) -> WorkerIds:
    """The board's rows for workers."""
    return WorkerIds(len(prepared.board.identity))
