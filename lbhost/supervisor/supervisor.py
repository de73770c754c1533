"""The supervisor: what the user starts. Control plane; it sees no request and no token.

Owns the listening socket, the board, every child process and the admin API. One thread, one
loop: signal handlers and callbacks only note what has happened, this loop acts on it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence

import msgspec

from lbhost import __version__, control, log
from lbhost.board import WorkerState
from lbhost.errors import ConflictError, InvalidRequestError, StartupError
from lbhost.linux import STOP_SIGNALS
from lbhost.machine.sampler import INTERVAL_S
from lbhost.placement.memory import gib
from lbhost.status import Status
from lbhost.supervisor import lifecycle
from lbhost.supervisor.admin import Admin
from lbhost.supervisor.admin_socket import AdminSocket
from lbhost.supervisor.assembly import Assembly
from lbhost.supervisor.children import Children
from lbhost.supervisor.desired import Desired, ModelWanted, WorkerWanted
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.fork_servers import ForkServers
from lbhost.supervisor.homes import REREAD_S, Homes
from lbhost.supervisor.launcher import Launcher, environment, with_huge_pages
from lbhost.supervisor.operations import Operations
from lbhost.supervisor.pool import Pool
from lbhost.supervisor.runtime import RuntimeDir
from lbhost.supervisor.service import Service
from lbhost.supervisor.service_manager import ServiceManager
from lbhost.supervisor.startup import Prepared
from lbhost.supervisor.watcher import Watcher

FORK_SERVER_MODULE = "lbhost.worker.fork_server"
GATEWAY_MODULE = "lbhost.gateway"

LATE_S = 1.0
"""A tick that comes so late (a suspended laptop, a paused VM) judges nobody."""
GATEWAY_LAST_S = 5.0
"""What the gateway gets beyond the grace to end its streams."""
LAST_S = 3.0
SAME_STOP_S = 1.0
"""SIGTERMs and SIGHUPs so soon after the first signal are the same request to stop."""

Announce = Callable[[Status], None]
"""Gets the first status in which requests are answered."""


class Supervisor:
    """One running server. `run` is all there is to call; the rest serves the admin API."""

    def __init__(
        self,
        prepared: Prepared,
        runtime: RuntimeDir,
        listener: socket.socket,
        endpoint: str,
        announce: Announce,
    ) -> None:
        self.prepared = prepared
        self.endpoint = endpoint
        self.events = EventLog()
        self.signals: list[int] = []
        """Stop signals received and not yet acted on; tests append too."""
        self._settings = prepared.settings
        self._board = prepared.board
        self._runtime = runtime
        self._listener = listener
        self._announce = announce
        self._began_s = time.monotonic()
        self._stop_asked_s = 0.0
        self._wake = asyncio.Event()
        self._children = Children(after_exit=self._wake.set)
        self._announced = False
        self._stopping = False
        self._failure: StartupError | None = None
        self._env = environment(os.environ)
        self._manager = ServiceManager(os.environ)
        self._assembly = Assembly(prepared.settings, prepared.board)
        self._build()

    def _build(self) -> None:
        made = self.prepared
        self.gateway = self._service("gateway", GATEWAY_MODULE, self._env, self._first_to_gateway)
        self.fork_servers = ForkServers(self._fork_server)
        self.homes = Homes(
            made.topology,
            made.reread,
            self._settings.threads,
            made.gpus,
            made.gpu_capable,
            len(self._board.cores),
        )
        wanted = ModelWanted(made.model, made.n_ctx, self._settings.slots)
        self.desired = Desired({made.model.alias: wanted})
        launcher = Launcher(self.fork_servers, self.gateway, self._children, self._first)
        self.pool = Pool(
            wanted,
            self.homes,
            self._settings,
            self._board,
            launcher,
            self._children,
            self.events,
        )
        rows = len(self._board.identity)
        self.operations = Operations(self.pool, self.homes, self.events, rows, self._room)
        self._watcher = Watcher(
            self._board, made.sampler, self.pool, self.homes, self.gateway, self.events
        )

    def _fork_server(self, node: int | None) -> Service:
        env = with_huge_pages(self._env)
        label = "fork server" if node is None else f"fork server of node {node}"
        return self._service(
            "fork_server", FORK_SERVER_MODULE, env, lambda: self._first(node), label
        )

    def _service(
        self,
        name: str,
        module: str,
        env: dict[str, str],
        first: Callable[[], tuple[control.Configure, Sequence[int]]],
        label: str | None = None,
    ) -> Service:
        window_s = self._settings.restart_window_s
        return Service(name, module, env, first, self, self._children, self.events, window_s, label)

    # --- the loop -------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until a signal says stop, then stop gracefully.

        Raises:
            StartupError: the server cannot start; nothing is left behind.
        """
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP for us
                loop.add_signal_handler(number, self.request_stop, number)
        loop.add_signal_handler(signal.SIGCHLD, self._children.sweep)
        self._admin_socket = AdminSocket(Admin(self), self._runtime, self.events)
        await self._admin_socket.start()
        try:
            await self._serve()
        finally:
            self.events.close()
            await self._admin_socket.stop()
            self._children.close()
            # The watchers of what was killed just now are never called: links stay open else.
            self.pool.close()
            self.gateway.close()
            for fork_server in self.fork_servers.all():
                fork_server.close()
            self._manager.close()
        if self._failure is not None:
            raise self._failure

    async def _serve(self) -> None:
        self.events.add("info", "server", f"lbhost {__version__} starts at {self.endpoint}")
        self.gateway.start()
        for i, placement in enumerate(self.prepared.placements):
            self.pool.add(i, placement, WorkerWanted(placement))
        self.pool.reconcile()
        ticker = asyncio.create_task(self._tick())
        ticker.add_done_callback(self._ticker_ended)
        try:
            await self._until(lambda: bool(self.signals) or self._failure is not None)
            if self._failure is None:
                await self._shut_down()
        finally:
            ticker.cancel()

    def _ticker_ended(self, ticker: asyncio.Task[None]) -> None:
        """Without the tick nothing is watched any more: better to end and be restarted."""
        if not ticker.cancelled() and (error := ticker.exception()) is not None:
            self._give_up(f"internal error: {error!r}")
            log.get().error("the supervisor has failed", exc_info=error)

    async def _tick(self) -> None:
        due = reread_s = time.monotonic()
        while True:
            now = time.monotonic()
            self._watcher.look(now, looked=now - due < LATE_S)
            self._manager.alive()
            if now >= reread_s and not self._stopping:
                reread_s = now + REREAD_S
                self._watcher.look_at_box()
                await self._admin_socket.look_again()
            self._check_start()
            due = now + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)

    def _check_start(self) -> None:
        """Say once that we serve; give up if no worker could be started at all."""
        if self._announced or self._stopping:
            return
        workers = self.pool.workers.values()
        states = {w.state for w in workers}
        if states == {WorkerState.FAILED}:
            first = next(iter(workers))
            self._give_up(f"no worker could be started: {first.last_exit}")
        elif (
            self.gateway.state == "ready"
            and states & lifecycle.UP
            and WorkerState.STARTING not in states
        ):
            self._announced = True
            self.events.add("info", "server", f"serving {len(workers)} workers at {self.endpoint}")
            self._manager.ready(f"serving {self.prepared.model.alias} at {self.endpoint}")
            self._announce(self.status())

    def _give_up(self, why: str) -> None:
        if self._failure is None:
            self._failure = StartupError(why)
            self._wake.set()

    def request_stop(self, number: int) -> None:
        """What a stop signal does: note it, and wake the loop.

        A second one ends the waiting, but not one that belongs to the first: service managers
        and scripts send SIGTERM to the process and then to its group, or SIGHUP after it
        (systemd's SendSIGHUP=); a closed terminal's SIGHUP comes from the kernel and from the
        shell. Only a person presses Ctrl-C twice.
        """
        now = time.monotonic()
        if number != signal.SIGINT and self.signals and now - self._stop_asked_s < SAME_STOP_S:
            return
        if not self.signals:
            self._stop_asked_s = now
        self.signals.append(number)
        self._wake.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._wake.clear()
            await self._wake.wait()

    # --- the end --------------------------------------------------------------------------

    async def _shut_down(self) -> None:
        """Gateway first, for as long as the grace; then workers, then the fork server.

        A second signal ends the waiting.
        """
        self._stopping = self.operations.stopping = True
        grace = self._settings.shutdown_grace_s
        name = signal.Signals(self.signals[0]).name
        self.events.add(
            "info", "server", f"{name}: stopping, running requests have {grace:g} s to finish"
        )
        self._manager.stopping(grace + GATEWAY_LAST_S + LAST_S)
        self._listener.close()  # a client that comes now is refused instead of left waiting
        self.gateway.stop(grace)
        await self._wait_stop(lambda: self.gateway.pid is None, grace + GATEWAY_LAST_S)
        self.gateway.kill()
        self._end_workers()
        await self._wait_stop(lambda: not self._children.pids(), LAST_S)
        self.events.add("info", "server", "stopped")

    def _end_workers(self) -> None:
        now = time.monotonic()
        for worker in list(self.pool.workers.values()):
            self.pool.want(worker, up=False, down_by_s=now)
        self.pool.reconcile()
        self.fork_servers.stop()

    async def _wait_stop(self, condition: Callable[[], bool], limit_s: float) -> None:
        """Until the condition holds, time is up, or a second signal has come."""
        try:
            async with asyncio.timeout(limit_s):
                await self._until(lambda: condition() or len(self.signals) > 1)
        except TimeoutError:
            log.get().warning("not stopped in time; killing what is left")

    # --- what services tell ---------------------------------------------------------------

    def service_message(self, service: Service, message: control.Control) -> None:
        """A service is ready. Nothing else is said on these links."""
        if isinstance(message, control.Loaded) and service is not self.gateway:
            service.ready()
            self.events.add("info", "fork_server", f"weights loaded in {message.load_s:.2f} s")
        elif isinstance(message, control.Ready) and service is self.gateway:
            service.ready()
        self.pool.reconcile()

    def service_down(self, service: Service) -> None:
        """The loop may be waiting for that."""
        self._wake.set()

    def service_hopeless(self, service: Service, why: str) -> bool:
        """It never came up: at the start that is the server's end. Later on it is a fork server of
        a node that came to have workers, and the other nodes' go on."""
        if not self._announced:
            self._give_up(why)
        return not self._announced

    def _first(self, node: int | None) -> tuple[control.Configure, Sequence[int]]:
        made = self.prepared
        configure = control.Configure(
            settings=msgspec.structs.replace(made.settings, api_key=None),
            model_path=made.model.path,
            model_alias=made.model.alias,
            n_ctx=made.n_ctx,
            weights=made.weights,
            node=node,
            purpose=made.info.purpose,
        )
        return configure, (made.board.fd,)

    def _first_to_gateway(self) -> tuple[control.Configure, Sequence[int]]:
        configure, fds = self._first(None)
        configure = msgspec.structs.replace(configure, settings=self._settings)
        return configure, (*fds, self._listener.fileno())

    # --- what the admin API asks ----------------------------------------------------------

    def status(self) -> Status:
        """Everything there is to know."""
        made, assembly = self.prepared, self._assembly
        workers = assembly.workers(self.pool, self.homes.topology)
        return Status(
            version=__version__,
            pid=os.getpid(),
            model=made.model.alias,
            model_path=made.model.path,
            kind=made.info.purpose.kind.value,
            endpoint=self.endpoint,
            runtime_dir=str(self._runtime.path),
            state=self._state(),
            policy=self._settings.policy.value,
            uptime_s=time.monotonic() - self._began_s,
            rolling=self.operations.rolling,
            workers=workers,
            gateway=self.gateway.status(),
            template=self.fork_servers.worst(),
            traffic=assembly.traffic(),
            states=assembly.states(),
            cores=assembly.cores(self.homes.topology, self.pool.ledger(), workers),
            gpus=assembly.gpus(),
            host=assembly.host(),
            fork_servers=self.fork_servers.status(),
        )

    def _state(self) -> str:
        if self._stopping:
            return "stopping"
        if not self._announced:
            return "starting"
        wanted = [i for i, want in self.pool.desired.members().items() if want.up]
        states = [self.pool.workers[i].state for i in wanted]
        whole = self.gateway.state == "ready" and lifecycle.UP.issuperset(states)
        return "ready" if whole else "degraded"

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

    async def scale(self, workers: int) -> str:
        """See Operations.scale."""
        return await self.operations.scale(workers)

    def _room(self, count: int, more: int) -> None:
        """Raises InvalidRequestError or ConflictError if rows or memory do not suffice."""
        most = len(self._board.identity)
        if count > most:
            raise InvalidRequestError(f"this server has room for {most} workers", param="workers")
        host = self._board.host.read(0)
        on_gpu = not self.fork_servers.all()
        if more <= 0 or on_gpu or host is None or host.memory_available is None:
            return
        need = more * self.prepared.worker_bytes
        if need > host.memory_available:
            raise ConflictError(
                f"{more} more workers need {gib(need)} of memory, "
                f"{gib(int(host.memory_available))} are available"
            )
