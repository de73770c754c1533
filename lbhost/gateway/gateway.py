"""The gateway process: what the supervisor sends is done here.

Owns the control link, the data links' arrival, the board ticks and the order in which things
start and stop. `run` is the whole life, from Serve to the drained end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
from collections.abc import Callable, Coroutine, Sequence

import msgspec
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from lbhost import board, control, log
from lbhost.config import Settings
from lbhost.errors import WireError
from lbhost.gateway.board_writer import WRITE_S, BoardWriter
from lbhost.gateway.catalogue import Catalogue
from lbhost.gateway.exposition import Exposition
from lbhost.gateway.http import descriptors
from lbhost.gateway.http import routes as app
from lbhost.gateway.http.server import Server
from lbhost.gateway.key_metrics import KeyMetrics
from lbhost.gateway.keyring import LOOK_S, Keyring
from lbhost.gateway.live import Live
from lbhost.gateway.prompt import helper_process
from lbhost.gateway.prompt.prompter import Vocabulary
from lbhost.gateway.recorder import Answers, Figures
from lbhost.gateway.scheduling.lender import Lender
from lbhost.gateway.scheduling.neighbours import Neighbours
from lbhost.gateway.scheduling.readings import Readings, Siblings
from lbhost.gateway.served_model import Common, ServedModel
from lbhost.gateway.states.heritage import Bequest, Legacy
from lbhost.gateway.states.plane import MAX_ENTRIES, Plane
from lbhost.gateway.states.purse import Purse
from lbhost.gateway.vector_cache import CacheCollector, VectorCache
from lbhost.tuning import shelf

GIVE_S = 2.0
"""How long the last states may take to the gateway that takes over."""

KEEP_S = 3.0
"""How long states may be written to disk at the end: less than the supervisor waits for that."""


class Start(msgspec.Struct, frozen=True):
    """The first packet, unpacked."""

    serve: control.Serve
    page: board.Board
    listener: socket.socket

    @property
    def settings(self) -> Settings:
        """The server's own."""
        return self.serve.settings

    @property
    def models(self) -> tuple[control.Configure, ...]:
        return self.serve.models

    @property
    def configure(self) -> control.Configure:
        """The first model, with the server's settings, which hold the API key."""
        return msgspec.structs.replace(self.serve.models[0], settings=self.serve.settings)


def receive_start(link: socket.socket) -> Start | None:
    """Wait for Serve; None when the supervisor went first.

    Raises:
        WireError: something else came, or not with two descriptors.
    """
    packet = control.receive(link)
    if packet is None:
        return None
    message, fds = packet
    if not isinstance(message, control.Serve) or not message.models or len(fds) != 2:
        raise WireError("the gateway's first packet must be Serve with two descriptors")
    return Start(message, board.Board.attach(fds[0]), socket.socket(fileno=fds[1]))


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


class Gateway:
    """All parts of the gateway, put together. Tests run it in their own event loop."""

    def __init__(
        self,
        start: Start,
        vocabs: Sequence[Vocabulary | None],
        refused: dict[int, str] | None = None,
        *,
        siblings: Siblings = lambda cpus: (),
        nice_counts: bool = True,
        on_orphaned: Callable[[], None],
        helper_command: Sequence[str] = helper_process.COMMAND,
    ) -> None:
        """Of one server.

        Args:
            vocabs: of each of its models; None: that one cannot be served. Not of all.
            refused: why not, by the models' numbers; for the supervisor.
            siblings, nice_counts: see Readings.
            on_orphaned: called when the control link ends: the supervisor is gone.
        """
        settings = start.settings
        self._on_orphaned = on_orphaned
        self._refused = refused or {}
        self._listener = start.listener
        self._on_loopback = _is_loopback(start.listener)  # it is closed when it retires
        self._link: socket.socket | None = None
        self._bequest: Bequest | None = None
        self._legacy: Legacy | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._page = start.page
        self._readings = Readings(start.page, settings, siblings=siblings, nice_counts=nice_counts)
        self._total = Figures()
        self._generates = any(one.purpose.generates for one in start.models)
        self._purse = Purse(settings.state_cache_bytes if self._generates else 0)
        common = self._common(start, helper_command)
        each = list(enumerate(zip(start.models, vocabs, strict=True)))
        self.models = Catalogue(
            [ServedModel(n, one, vocab, common) for n, (one, vocab) in each if vocab is not None],
            [
                name
                for _, (one, vocab) in each
                if vocab is None
                for name in (one.model_alias, *one.aliases, *(a.name for a in one.adapters))
            ],
        )
        self._writer = BoardWriter(start.page, list(self.models), self._total, self._purse)
        self.keyring = Keyring(settings)
        keeps = not all(one.purpose.generates for one in self.models)
        self.cache = VectorCache(
            shelf.folder(os.environ), settings.embedding_cache_bytes if keeps else 0
        )
        self.live = Live()
        own = CollectorRegistry()
        own.register(KeyMetrics(self.keyring))
        own.register(CacheCollector(self.cache))
        registries = [(one.name, one.counters.registry) for one in self.models]
        several = len(start.models) > 1
        self._exposition = Exposition(registries, own, several=several)
        only = self.models.only
        counter = Answers(own, self._total) if only is None else only.traffic
        self.server = Server(self._app(settings), settings, counter)

    def _common(self, start: Start, helper_command: Sequence[str]) -> Common:
        settings = start.settings
        generating = sum(one.purpose.generates for one in start.models)
        states = descriptors.states_within(MAX_ENTRIES, settings.max_connections)
        return Common(
            self._readings,
            self._total,
            self._purse,
            Neighbours() if len(start.models) > 1 else None,
            Lender(self._readings, enabled=settings.lend),
            self._wake,
            states // max(1, generating),
            helper_command,
        )

    @property
    def closing(self) -> bool:
        """Whether a connection's next answer is its last."""
        return any(one.dispatcher.stopping or one.dispatcher.retiring for one in self.models)

    def not_ready(self) -> str | None:
        """Why a request that comes now might find no worker."""
        if any(one.dispatcher.stopping for one in self.models):
            return "the server is shutting down"
        down = [one for one in self.models if not one.dispatcher.ready()]
        if len(down) == len(self.models):
            return "no worker is ready"
        missing = [one.name for one in down if not one.sessions.unwanted()]
        missing += self.models.broken[:1]
        return f"no worker is ready for {', '.join(map(repr, missing))}" if missing else None

    @property
    def _active(self) -> int:
        """Requests that have not ended."""
        return sum(one.dispatcher.active for one in self.models)

    def _app(self, settings: Settings) -> ASGIApp:
        return app.build(
            models=self.models,
            door=self,
            exposition=self._exposition,
            cache=self.cache,
            live=self.live,
            settings=settings,
            keyring=self.keyring,
            on_loopback=self._on_loopback,
        )

    def adopt(self, settings: Settings, models: Sequence[Settings] = ()) -> None:
        """Other settings from now on, for open connections too; nothing that runs is disturbed.

        Args:
            models: each model's own; empty: all have the server's.
        """
        log.configure(settings.log_format, settings.log_level, "gateway")
        self._readings.settings = settings
        before = self.server.settings
        if self._generates and settings.state_cache_bytes != before.state_cache_bytes:
            self._purse.want(settings.state_cache_bytes)
        self.keyring.adopt(settings)
        for model in self.models:
            model.adopt(models[model.number] if models else settings)
        self.server.adopt(self._app(settings), settings)

    async def run(self, link: socket.socket) -> None:
        """Serve until told to Stop, and drained. Takes over the control link."""
        self._link = link
        link.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(link.fileno(), self._on_control)
        tasks = [asyncio.create_task(work()) for work in (self._write_board, self._watch_keys)]
        try:
            control.send(link, control.Ready(self._refused))
            for model in self.models:
                model.helpers.open()
            await self.server.serve(sockets=[self._listener])
        finally:
            for task in (*tasks, *self._tasks):
                task.cancel()
            loop.remove_reader(link.fileno())
            for line in (self._bequest, self._legacy):
                if line is not None:
                    line.close()
            await asyncio.gather(*(model.close() for model in self.models))
            await self.cache.close()

    def _on_control(self) -> None:
        assert self._link is not None
        while True:
            try:
                packet = control.receive(self._link)
            except BlockingIOError:
                return
            except (OSError, WireError) as error:
                log.get().error("control link broken", reason=str(error))
                packet = None
            if packet is None:
                asyncio.get_running_loop().remove_reader(self._link.fileno())
                self._on_orphaned()
                return
            self._obey(*packet)

    def _obey(self, message: control.Control, fds: list[int]) -> None:
        if isinstance(message, control.Link) and len(fds) in (1, 2):
            self._spawn(self._attach(message, *fds))
            return
        if isinstance(message, control.TakeStates) and len(fds) == 1:
            self._take_states(*fds)
            return
        if isinstance(message, control.Retire) and len(fds) == 1:
            self._give_states(fds.pop())
        for fd in fds:
            os.close(fd)
        if isinstance(message, control.Leaving):
            for model in self.models:
                model.dispatcher.worker_leaves()
        elif isinstance(message, control.Ended):
            for model in self.models:
                model.dispatcher.worker_ended(message.worker, message.epoch, message.by_its_work)
        elif isinstance(message, control.Reconfigure):
            self.adopt(message.settings, message.models)
            self._tell(control.Reconfigured(message.number))  # told again, it answers again
        elif isinstance(message, control.AskRequests):
            self._tell(self.live.page(message.number, message.after))
        elif isinstance(message, control.CancelRequest):
            self._tell(control.Cancelled(message.number, self.live.cancel(message.request)))
        elif isinstance(message, control.Retire):
            self._spawn(self._retire(message.limit_s))
        elif isinstance(message, control.Stop):
            if not self._stopping:
                self._stopping = True
                self._spawn(self._stop(message.grace_s))
        else:
            log.get().error("unexpected control packet", kind=type(message).__name__)

    @property
    def _planes(self) -> list[Plane]:
        """Of the models that have KV states: of others no worker says what it could go on from."""
        return [model.states for model in self.models if model.purpose.generates]

    def _give_states(self, fd: int) -> None:
        """To the gateway that takes over."""
        try:
            self._bequest = Bequest(fd, self._planes)
        except OSError as error:
            log.get().error("line of KV states unusable", reason=str(error))

    def _take_states(self, fd: int) -> None:
        """From the gateway that this one takes over from."""
        try:
            self._legacy = Legacy(fd, self._planes)
        except OSError as error:
            log.get().error("line of KV states unusable", reason=str(error))

    def _wake(self, model: int) -> None:
        if self._link is not None:
            self._tell(control.Wake(model))

    def _tell(self, message: control.Control) -> None:
        """Lost where the link is full: the supervisor asks again, or says that we are silent."""
        assert self._link is not None
        with contextlib.suppress(BlockingIOError):
            control.send(self._link, message)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attach(self, link: control.Link, fd: int, states_fd: int | None = None) -> None:
        model = next((one for one in self.models if one.number == link.model), None)
        if model is None:  # it cannot be served
            for one in (fd, states_fd):
                if one is not None:
                    os.close(one)
            return
        try:
            await model.dispatcher.attach(fd, link.worker, link.epoch, states_fd)
        except OSError as error:
            log.get().error("data link unusable", worker=link.worker, reason=str(error))

    async def _retire(self, limit_s: float) -> None:
        """Another gateway accepts on our socket: end what came here, then go."""
        log.get().info("retiring", requests=self._active)
        for model in self.models:
            model.dispatcher.retiring = True
        try:
            async with asyncio.timeout(limit_s):
                await self.server.retire()
        except TimeoutError:
            log.get().warning("retiring took too long", cut_off=self._active)
        if self._bequest is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GIVE_S):
                    await self._bequest.given()
        if not self._stopping:
            self._stopping = True
            await self._stop(0.0)

    async def _stop(self, grace_s: float) -> None:
        log.get().info("draining", grace_s=grace_s, requests=self._active)
        await asyncio.gather(*(model.dispatcher.drain(grace_s) for model in self.models))
        await asyncio.gather(*(model.states.keep(KEEP_S) for model in self.models))
        self.server.stop()

    async def _watch_keys(self) -> None:
        while True:
            self.keyring.look()
            await asyncio.sleep(LOOK_S)

    async def _write_board(self) -> None:
        while True:
            host = self._page.host.read(0)
            if host is not None:
                self._purse.settle(host.memory_available, host.memory_total)
            try:
                self._writer.write(self.server.connections)
            except Exception:  # noqa: BLE001 - the next one may do; without any we would look hung
                log.get().exception("the board cannot be written")
            await asyncio.sleep(WRITE_S)
