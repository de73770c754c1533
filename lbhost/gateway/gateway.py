"""The gateway process: what the supervisor sends is done here.

Owns the control link, the data links' arrival, the board ticks and the order in which things
start and stop. `run` is the whole life, from Serve to the drained end.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

import msgspec
from starlette.types import ASGIApp

from lbhost import board, control, log
from lbhost.config import Settings
from lbhost.errors import WireError
from lbhost.gateway import vector_cache
from lbhost.gateway.http import descriptors
from lbhost.gateway.http import routes as app
from lbhost.gateway.http.server import Server
from lbhost.gateway.key_metrics import KeyMetrics
from lbhost.gateway.keyring import LOOK_S, Keyring
from lbhost.gateway.live import Live
from lbhost.gateway.metrics import BoardCollector, Metrics
from lbhost.gateway.prompt import helper_process
from lbhost.gateway.prompt.helper_messages import Setup
from lbhost.gateway.prompt.helpers import Helpers
from lbhost.gateway.prompt.intake import Intake
from lbhost.gateway.prompt.prompter import Vocabulary
from lbhost.gateway.recorder import WRITE_S, Recorder
from lbhost.gateway.scheduling.dispatcher import Dispatcher
from lbhost.gateway.scheduling.readings import Readings, Siblings
from lbhost.gateway.scheduling.sessions import Sessions
from lbhost.gateway.states.collector import StatesCollector
from lbhost.gateway.states.disk import Disk
from lbhost.gateway.states.disk_thread import DiskThread
from lbhost.gateway.states.plane import MAX_ENTRIES, Plane
from lbhost.gateway.vector_cache import CacheCollector, VectorCache
from lbhost.gateway.vllm_names import VllmNames
from lbhost.tuning import shelf

KEEP_S = 3.0
"""How long states may be written to disk at the end: less than the supervisor waits for that."""


class Start(msgspec.Struct, frozen=True):
    """The first packet, unpacked."""

    serve: control.Serve
    page: board.Board
    listener: socket.socket

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


def _disk(settings: Settings) -> DiskThread | None:
    """Where states are kept; the supervisor has made sure of the folder."""
    if settings.state_dir is None or settings.state_cache_bytes == 0:
        return None
    return DiskThread(Disk(Path(settings.state_dir), settings.state_dir_bytes))


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


class Gateway:
    """All parts of the gateway, put together. Tests run it in their own event loop."""

    def __init__(
        self,
        start: Start,
        vocab: Vocabulary,
        *,
        siblings: Siblings = lambda cpus: (),
        on_orphaned: Callable[[], None],
        helper_command: Sequence[str] = helper_process.COMMAND,
    ) -> None:
        """`on_orphaned` is called when the control link ends: the supervisor is gone."""
        configure = start.configure
        settings: Settings = configure.settings
        self._configure = configure
        self._vocab = vocab
        self._on_orphaned = on_orphaned
        self._listener = start.listener
        self._link: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._counters = counters = Metrics()
        self._readings = Readings(start.page, settings, siblings=siblings)
        self.sessions = Sessions(self._readings, settings.slots)
        self.traffic = Recorder(start.page, settings, self.sessions, counters)
        self._page = start.page
        self.states = Plane(
            settings.state_cache_bytes if configure.purpose.generates else 0,
            self.sessions,
            disk=_disk(settings),
            most_entries=descriptors.states_within(MAX_ENTRIES, settings.max_connections),
        )
        self.dispatcher = Dispatcher(settings, self.sessions, self.traffic, states=self.states)
        counters.registry.register(
            BoardCollector(self.sessions, self.dispatcher, lambda: self.server.settings.queue_size)
        )
        counters.registry.register(
            VllmNames(counters, self.sessions, self.dispatcher, configure.model_alias)
        )
        counters.registry.register(StatesCollector(self.states))
        self.keyring = Keyring(settings)
        counters.registry.register(KeyMetrics(self.keyring))
        helpers = Helpers(
            Setup(
                model_path=configure.model_path,
                n_ctx=configure.n_ctx,
                alias=configure.model_alias,
                nice=settings.nice,
                log_format=settings.log_format,
                log_level=settings.log_level,
                purpose=configure.purpose,
            ),
            count=settings.prompt_helpers,
            wait_s=settings.queue_timeout_s,
            counters=counters,
            command=helper_command,
        )
        self.cache = VectorCache(
            shelf.folder(os.environ),
            0 if configure.purpose.generates else settings.embedding_cache_bytes,
            vector_cache.identity(configure),
        )
        counters.registry.register(CacheCollector(self.cache))
        self.live = Live()
        self.intake = Intake(
            vocab, configure.n_ctx, configure.model_alias, helpers, configure.purpose
        )
        self.server = Server(self._app(settings), settings, self.traffic)

    def _app(self, settings: Settings) -> ASGIApp:
        configure, vocab = self._configure, self._vocab
        return app.build(
            intake=self.intake,
            dispatcher=self.dispatcher,
            sessions=self.sessions,
            vocab=vocab,
            counters=self._counters,
            model=configure.model_alias,
            pieces=functools.partial(vocab.piece, special=True),
            cache=self.cache,
            live=self.live,
            n_ctx=configure.n_ctx,
            settings=settings,
            keyring=self.keyring,
            on_loopback=_is_loopback(self._listener),
        )

    def adopt(self, settings: Settings) -> None:
        """Other settings from now on, for open connections too; nothing that runs is disturbed."""
        before = self.server.settings
        log.configure(settings.log_format, settings.log_level, "gateway")
        self._readings.settings = self.traffic.settings = settings
        keeps = self._configure.purpose.generates
        if keeps and settings.state_cache_bytes != before.state_cache_bytes:
            self.states.want(settings.state_cache_bytes)
        self.intake.helpers.wait_s = settings.queue_timeout_s
        self.keyring.adopt(settings)
        self.dispatcher.adopt(settings)
        self.server.adopt(self._app(settings), settings)

    async def run(self, link: socket.socket) -> None:
        """Serve until told to Stop, and drained. Takes over the control link."""
        self._link = link
        link.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(link.fileno(), self._on_control)
        tasks = [asyncio.create_task(work()) for work in (self._write_board, self._watch_keys)]
        try:
            control.send(link, control.Ready())
            self.intake.helpers.open()
            await self.server.serve(sockets=[self._listener])
        finally:
            for task in (*tasks, *self._tasks):
                task.cancel()
            loop.remove_reader(link.fileno())
            self.dispatcher.close()
            await self.intake.helpers.close()
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
        for fd in fds:
            os.close(fd)
        if isinstance(message, control.Leaving):
            self.dispatcher.worker_leaves()
        elif isinstance(message, control.Ended):
            self.dispatcher.worker_ended(message.worker, message.epoch, message.by_its_work)
        elif isinstance(message, control.Reconfigure):
            self.adopt(message.settings)
            self._tell(control.Reconfigured(message.number))  # told again, it answers again
        elif isinstance(message, control.AskRequests):
            self._tell(self.live.page(message.number, message.after))
        elif isinstance(message, control.CancelRequest):
            self._tell(control.Cancelled(message.number, self.live.cancel(message.request)))
        elif isinstance(message, control.Retire):
            self._spawn(self._retire(message.limit_s))
        elif isinstance(message, control.Stop):
            if not self.dispatcher.stopping:
                self._spawn(self._stop(message.grace_s))
        else:
            log.get().error("unexpected control packet", kind=type(message).__name__)

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
        try:
            await self.dispatcher.attach(fd, link.worker, link.epoch, states_fd)
        except OSError as error:
            log.get().error("data link unusable", worker=link.worker, reason=str(error))

    async def _retire(self, limit_s: float) -> None:
        """Another gateway accepts on our socket: end what came here, then go."""
        log.get().info("retiring", requests=self.dispatcher.active)
        self.dispatcher.retiring = True
        try:
            async with asyncio.timeout(limit_s):
                await self.server.retire()
        except TimeoutError:
            log.get().warning("retiring took too long", cut_off=self.dispatcher.active)
        if not self.dispatcher.stopping:
            await self._stop(0.0)

    async def _stop(self, grace_s: float) -> None:
        log.get().info("draining", grace_s=grace_s, requests=self.dispatcher.active)
        await self.dispatcher.drain(grace_s)
        await self.states.keep(KEEP_S)
        self.server.stop()

    async def _watch_keys(self) -> None:
        while True:
            self.keyring.look()
            await asyncio.sleep(LOOK_S)

    async def _write_board(self) -> None:
        while True:
            host = self._page.host.read(0)
            if host is not None:
                self.states.settle(host.memory_available, host.memory_total)
            try:
                self.traffic.write(self.dispatcher, self.server.connections, self.states)
            except Exception:  # noqa: BLE001 - the next one may do; without any we would look hung
                log.get().exception("the board cannot be written")
            await asyncio.sleep(WRITE_S)
