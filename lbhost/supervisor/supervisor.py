"""The supervisor: what the user starts. Control plane; it sees no request and no token.

Owns the listening socket, the board, every child process and the admin API. One thread, one
loop: signal handlers and callbacks only note what has happened, this loop acts on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence

from lbhost import __version__, control, log
from lbhost.config import Settings
from lbhost.errors import LbhostError, StartupError
from lbhost.linux import STOP_SIGNALS
from lbhost.machine import niceness
from lbhost.machine.sampler import INTERVAL_S
from lbhost.machine.tree import Roots
from lbhost.sandbox import profiles
from lbhost.source import Source
from lbhost.status import Status
from lbhost.supervisor import building
from lbhost.supervisor.admin import Admin
from lbhost.supervisor.admin_socket import AdminSocket
from lbhost.supervisor.assembly import Assembly
from lbhost.supervisor.autoscaling import Autoscaling
from lbhost.supervisor.building import Builder
from lbhost.supervisor.children import Children
from lbhost.supervisor.commanded import Commanded
from lbhost.supervisor.configuration import Configuration
from lbhost.supervisor.desired import WorkerWanted
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.handover import Handover
from lbhost.supervisor.homes import REREAD_S
from lbhost.supervisor.operations import Operations
from lbhost.supervisor.questions import Questions
from lbhost.supervisor.runtime import RuntimeDir
from lbhost.supervisor.service_manager import ServiceManager
from lbhost.supervisor.shared import Shared
from lbhost.supervisor.signals import Signals
from lbhost.supervisor.startup import Prepared, wanted
from lbhost.supervisor.state_folder import StateFolder
from lbhost.supervisor.succession import Context, Inheritance
from lbhost.supervisor.told import Told
from lbhost.supervisor.watcher import Watcher

LATE_S = 1.0
"""A tick that comes so late (a suspended laptop, a paused VM) judges nobody."""
GATEWAY_LAST_S = 5.0
"""What the gateway gets beyond the grace to end its streams."""
LAST_S = 3.0

Announce = Callable[[Status], None]
"""Gets the first status in which requests are answered."""


class Supervisor(Commanded, Told):
    """One running server. `run` is all there is to call; the rest serves the admin API."""

    def __init__(
        self,
        prepared: Prepared,
        runtime: RuntimeDir,
        listener: socket.socket,
        endpoint: str,
        announce: Announce,
        *,
        asked: Settings | None = None,
        source: Source | None = None,
        inheritance: Inheritance | None = None,
        orders: Sequence[int] = (),
    ) -> None:
        """
        Args:
            asked, source: see Configuration.
            inheritance: what a server gives from which this one is to take over.
            orders: signals that have come already and ask for more than a stop; read when it runs.
        """
        self.prepared = prepared
        self.endpoint = endpoint
        self.events = EventLog()
        self._runtime = runtime
        self._listener = listener
        self._announce = announce
        self._began_s = time.monotonic()
        self._wake = asyncio.Event()
        self._signals = Signals(self._wake.set)
        self._children = Children(after_exit=self._wake.set)
        self._announced = False
        self._serves = asyncio.Event()
        self._stopping = False
        self._failure: StartupError | None = None
        self._manager = ServiceManager(os.environ)
        nice_counts = niceness.counts(Roots.from_environ(os.environ))
        self._assembly = Assembly(prepared.settings, prepared.board, nice_counts=nice_counts)
        self._state_folder = StateFolder(prepared.settings, self.events)
        self.desired = wanted(prepared)
        self.configuration = Configuration(
            prepared, listener, self.desired, self.events, asked, source, self._adopt
        )
        self._inheritance = inheritance
        self._early_orders = orders
        self._handover = Handover(
            prepared,
            listener,
            runtime,
            endpoint,
            self._children,
            self._manager,
            self.events,
            lambda: self.fleet.contexts(),  # there is none yet
            self._let_go,
            self._wake.set,
        )
        self._admin_socket = AdminSocket(Admin(self), runtime, self.events)
        self._build()

    def _build(self) -> None:
        made = self.prepared
        self.homes = building.homes(made)
        ids = building.ids(made)
        self._shared = Shared(made.board, ids, self.homes, self._children, self.events)
        builder = Builder(self, self._shared, self.desired, self.configuration, os.environ)
        self.gateway = builder.gateway()
        self.questions = Questions(self.gateway.send)
        self.fleet = builder.fleet(made.models, self.gateway)
        self.operations = Operations(self.fleet, self._shared)
        self._autoscaling = Autoscaling(self.fleet, self.operations, self._shared)
        self._watcher = Watcher(
            made.board, made.sampler, self.fleet, self.homes, self.gateway, self.events
        )

    @property
    def _settings(self) -> Settings:
        return self.desired.settings

    def _adopt(self, settings: Settings) -> None:
        """What the supervisor itself does by other settings."""
        self._assembly.settings = settings
        for service in (self.gateway, *self.fleet.fork_servers()):
            service.window_s = settings.restart_window_s

    # --- the loop -------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until a signal says stop, then stop gracefully.

        Raises:
            StartupError: the server cannot start; nothing is left behind.
        """
        loop = asyncio.get_running_loop()
        for number in (*STOP_SIGNALS, signal.SIGUSR2):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP for us
                loop.add_signal_handler(number, self._on_signal, number)
        for order in self._early_orders:
            self._signals.take(order)
        loop.add_signal_handler(signal.SIGCHLD, self._children.sweep)
        try:
            if self._inheritance is None:
                await self._admin_socket.start()
            else:
                self._handover.begin(self._inheritance, self._take_over, self._left_alone)
            await self._serve()
        finally:
            self._end_streams()
            await self._admin_socket.stop()
            self._handover.close(None if self._failure is None else self._failure.message)
            self._children.close()
            # The watchers of what was killed just now are never called: links stay open else.
            self.fleet.close()
            self.gateway.close()
            self._manager.close()
        if self._failure is not None:
            raise self._failure

    async def _serve(self) -> None:
        self.events.add("info", "server", f"lbhost {__version__} starts at {self.endpoint}")
        if missing := profiles.offered().missing:
            self.events.add("warning", "server", f"children are not confined fully: {missing}")
        if self._inheritance is None:
            self.gateway.start()
        for model in self.fleet:
            made = model.made
            if made.workers < len(made.placements):
                self.operations.set_workers(model.pool, made.workers, down=made.down)
                continue
            down = made.down(made.placements)
            for index, placement in enumerate(made.placements):
                (worker,) = self._shared.ids.free(1)
                model.pool.add(worker, placement, WorkerWanted(placement, up=index not in down))
        self.fleet.reconcile()
        ticker = asyncio.create_task(self._tick())
        ticker.add_done_callback(self._ticker_ended)
        orders = asyncio.create_task(self._obey())
        try:
            await self._until(
                lambda: bool(self.signals) or self._failure is not None or self._handover.settled
            )
            if self._handover.given:
                await self._retire()
            elif self._failure is None:
                await self._shut_down()
        finally:
            ticker.cancel()
            orders.cancel()
        if self._handover.given and (how := await self._handover.stand()) is not None:
            self._failure = StartupError(f"the server that had taken over ended: {how}")

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
            if not self._handover.waits:  # the server before this one speaks until it lets go
                self._manager.alive()
            self.configuration.tell(self.gateway)
            if now >= reread_s and not self._stopping:
                reread_s = now + REREAD_S
                self._watcher.look_at_box()
                self._state_folder.look()
                await self._admin_socket.look_again()
            self._check_start()
            if self._announced:
                self._autoscaling.look(now)
            due = now + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)

    def _check_start(self) -> None:
        """Say once that we serve; give up if no worker could be started at all."""
        if self._announced or self._stopping:
            return
        hopeless = {model.name: model.hopeless for model in self.fleet}
        if None not in hopeless.values():
            self._give_up(str(next(iter(hopeless.values()))))
        elif any(model.starting for model in self.fleet):
            return
        elif self.gateway.state == "stopped":
            self.gateway.start()  # to take over: clients come as soon as it listens
        elif self.gateway.state == "ready":
            self._announced = True
            self._watcher.begin()
            self._serves.set()
            for name, why in hopeless.items():
                if why is not None:
                    self.events.add("error", "server", f"{name} is not served: {why}")
            count = len(self.fleet.workers)
            self.events.add("info", "server", f"serving {count} workers at {self.endpoint}")
            if self._handover.predecessor is not None:
                self._handover.predecessor.serving()
            else:
                self._tell_ready()

    def _tell_ready(self) -> None:
        names = ", ".join(model.name for model in self.fleet)
        self._manager.ready(f"serving {names} at {self.endpoint}")
        self._announce(self.status())

    def _take_over(self, contexts: tuple[Context, ...]) -> None:
        """The server before this one has let go of everything."""
        self._taking = asyncio.ensure_future(self._take())
        self.operations.follow(contexts)

    async def _take(self) -> None:
        assert self._handover.predecessor is not None
        try:
            await self._admin_socket.start()
        except StartupError as error:  # the next look tries again
            self.events.add("error", "server", error.message)
        self._runtime.announce(self.endpoint)
        self._handover.predecessor.took_over()
        if self._inheritance is not None and (states := self._inheritance.states) is not None:
            self.gateway.send(control.TakeStates(), [states])
            os.close(states)
        self._tell_ready()

    def _left_alone(self) -> None:
        self._give_up("the server to take over from has ended")

    @property
    def signals(self) -> list[int]:
        """Stop signals received and not yet acted on; tests append too."""
        return self._signals.stops

    def request_stop(self, number: int) -> None:
        """What a stop signal does: note it, and wake the loop."""
        self._signals.stop(number)

    def _on_signal(self, number: int) -> None:
        self._handover.signal(number)
        self._signals.take(number)

    async def _obey(self) -> None:
        """Do what signals ask for, one after the other, as soon as the server serves. What fails
        is told as an event, and the next signal is obeyed all the same."""
        await self._serves.wait()
        while True:
            number = await self._signals.next_order()
            try:
                with contextlib.suppress(LbhostError):  # told by who found it
                    await (self.upgrade() if number == signal.SIGUSR2 else self.reload())
            except Exception as error:  # noqa: BLE001 - a fault of ours
                name = signal.Signals(number).name
                self.events.add("error", "server", f"{name} was not obeyed: {error!r}"[:500])
                log.get().error("a signal was not obeyed", signal=name, exc_info=error)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._wake.clear()
            await self._wake.wait()

    # --- the end --------------------------------------------------------------------------

    async def _shut_down(self) -> None:
        """Gateway first, for as long as the grace; then workers, then the fork server.

        A second signal ends the waiting.
        """
        self._stop_obeying()
        self._handover.give_up()
        grace = self._settings.shutdown_grace_s
        name = signal.Signals(self.signals[0]).name
        self.events.add(
            "info", "server", f"{name}: stopping, running requests have {grace:g} s to finish"
        )
        self._manager.stopping(grace + GATEWAY_LAST_S + LAST_S)
        self._listener.close()  # a client that comes now is refused instead of left waiting
        self.gateway.stop(grace)
        await self._wait_stop(lambda: self.gateway.pid is None, grace + GATEWAY_LAST_S)
        await self._end_processes()
        self.events.add("info", "server", "stopped")

    async def _end_processes(self) -> None:
        self.gateway.kill()
        self._end_workers()
        await self._wait_stop(lambda: not self._children.pids(), LAST_S)

    async def _retire(self) -> None:
        """Another server has taken over: end what began here, within any request's time."""
        self._end_streams()  # who follows them has been told, and looks at the other one now
        await self._admin_socket.stop()
        limit_s, grace = self._settings.request_timeout_s, self._settings.shutdown_grace_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s + GATEWAY_LAST_S):
                await self._until(lambda: self.gateway.pid is None or bool(self.signals))
        self.gateway.stop(grace if self.signals else 0.0)  # nor started again, if it has crashed
        await self._wait_stop(lambda: self.gateway.pid is None, grace + GATEWAY_LAST_S)
        await self._end_processes()

    def _end_streams(self) -> None:
        """Nobody is told more of events, and of what workers write, by this server."""
        self.events.close()
        for worker in self.fleet.workers.values():
            worker.output.close()

    def _let_go(self, states: int) -> None:
        """Another server serves: nothing new comes here, and KV states go there."""
        self._stop_obeying()
        self._listener.close()
        if self.gateway.state == "ready":
            self.gateway.retire(control.Retire(self._settings.request_timeout_s), [states])
        else:
            self.gateway.stop()  # it has nothing to end, and must not begin to accept

    def _stop_obeying(self) -> None:
        self._stopping = self.operations.stopping = True
        self._shared.changes.notify()

    def _end_workers(self) -> None:
        now = time.monotonic()
        for pool in self.fleet.pools:
            for worker in list(pool.workers.values()):
                pool.want(worker, up=False, down_by_s=now)
        self.fleet.reconcile()
        self.fleet.stop_fork_servers()

    async def _wait_stop(self, condition: Callable[[], bool], limit_s: float) -> None:
        """Until the condition holds, time is up, or a second signal has come."""
        try:
            async with asyncio.timeout(limit_s):
                await self._until(lambda: condition() or len(self.signals) > 1)
        except TimeoutError:
            log.get().warning("not stopped in time; killing what is left")
