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
from starlette.types import ASGIApp

from lbhost import log
from lbhost.config import Settings
from lbhost.gateway.exchange import Counter
from lbhost.gateway.http import descriptors
from lbhost.gateway.http.budget import BODIES, Budget
from lbhost.gateway.http.protocol import LimitedProtocol, Shared


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, and with one tick a second, not ten."""

    def __init__(self, app: ASGIApp, settings: Settings, counter: Counter) -> None:
        self.settings = settings
        self.budget = Budget(BODIES * settings.max_body_bytes)
        limit = descriptors.connections_within(settings.max_connections)
        if limit < settings.max_connections:
            log.get().warning(
                "fewer connections than max_connections: the limit on open files is low",
                connections=limit,
                max_connections=settings.max_connections,
            )
        shared = Shared(settings, counter, limit, self.budget)
        protocol = type("Protocol", (LimitedProtocol,), {"shared": shared})
        super().__init__(
            uvicorn.Config(
                app,
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
    def connections(self) -> int:
        return len(self.server_state.connections)

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
