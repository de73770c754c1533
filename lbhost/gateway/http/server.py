"""uvicorn's server as lbhost runs it: on a socket that it is given, with limits, without signals.

Owns what all connections share. What a single one may do is in protocol.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from email.utils import formatdate

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from lbhost import log
from lbhost.config import Settings
from lbhost.gateway.exchange import Counter
from lbhost.gateway.http import descriptors
from lbhost.gateway.http.budget import BODIES, Budget
from lbhost.gateway.http.protocol import LimitedProtocol, Shared
from lbhost.gateway.http.unread import Unread, most

RETIRE_IDLE_S = 5.0
RETIRE_LOOK_S = 0.05


class _Door:
    """The application that requests come to now: connections that stay open must not keep an
    older one, and its API key."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, and with one tick a second, not ten."""

    def __init__(self, app: ASGIApp, settings: Settings, counter: Counter) -> None:
        self.settings = settings
        self.budget = Budget(BODIES * settings.max_body_bytes)
        self._shared = Shared(settings, counter, _connections(settings), self.budget)
        self._door = _Door(app)
        protocol = type("Protocol", (LimitedProtocol,), {"shared": self._shared})
        super().__init__(
            uvicorn.Config(
                self._door,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=2048,
                timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]
                timeout_graceful_shutdown=2,
            )
        )
        self._stop = asyncio.Event()

    @property
    def unread(self) -> Unread:
        """What clients do not read."""
        return self._shared.unread

    @property
    def connections(self) -> int:
        return len(self.server_state.connections)

    def adopt(self, app: ASGIApp, settings: Settings) -> None:
        """Another application and other limits, for open connections too."""
        self.settings = settings
        self.budget.limit = BODIES * settings.max_body_bytes
        self._shared.adopt(settings)
        self.unread.limit = most(settings.max_body_bytes)
        self._shared.limit = _connections(settings)
        self.config.timeout_keep_alive = settings.keep_alive_s  # type: ignore[assignment]
        self._door.app = app

    async def retire(self) -> None:
        """Accept nothing more, and return when the last connection has gone.

        One that is idle may be about to send its next request, as a client that keeps it alive
        does: it has RETIRE_IDLE_S for it, and is told with the answer to come anew.
        """
        for server in self.servers:
            server.close()
        idle_s = time.monotonic() + RETIRE_IDLE_S
        while self.server_state.connections:
            await asyncio.sleep(RETIRE_LOOK_S)
            if time.monotonic() >= idle_s:
                for connection in list(self.server_state.connections):
                    if isinstance(connection, LimitedProtocol) and connection.idle:
                        connection.shutdown()

    def stop(self) -> None:
        """Close what is idle, wait 2 s for the rest, and return from `serve`."""
        self._stop.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The supervisor decides when we go."""
        yield

    async def main_loop(self) -> None:
        while not self._stop.is_set():
            date = formatdate(time.time(), usegmt=True).encode()
            self.server_state.default_headers = [(b"date", date)]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._stop.wait()


def _connections(settings: Settings) -> int:
    """Those that may be open at once; told if they are fewer than the setting says."""
    limit = descriptors.connections_within(settings.max_connections)
    if limit < settings.max_connections:
        log.get().warning(
            "fewer connections than max_connections: the limit on open files is low",
            connections=limit,
            max_connections=settings.max_connections,
        )
    return limit
