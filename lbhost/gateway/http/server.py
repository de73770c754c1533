"""uvicorn, with the limits that it lacks.

Its httptools protocol has no time-outs for slow headers and bodies, takes any number of
headers of any size, and answers in text/plain. `LimitedProtocol` adds: 431 for headers, 413
for bodies, 408 for slow clients, 503 for too many connections, all in OpenAI's shape; an end
for clients that do not read; no pipelining (a second request sent before the first is
answered would hide that the client has gone).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from lbhost.config import Settings
from lbhost.errors import (
    ClientTimeoutError,
    HeadersTooLargeError,
    InvalidRequestError,
    LbhostError,
    NotReadyError,
    PayloadTooLargeError,
)
from lbhost.gateway.api import replies
from lbhost.gateway.http.access import new_request_id

MAX_HEADER_FIELDS = 128

WRITE_TIMEOUT_S = 30.0
"""How long a client may leave everything unread before its connection is dropped."""

LINGER_S = 1.0
"""How long a refused client may go on sending into the void, so that it reads the answer:
closing at once would reset the connection under it."""


BODIES = 32
"""All bodies held at a time may be as large as so many of the largest together."""


class Budget:
    """Bytes of request bodies that all connections hold together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class LimitedProtocol(HttpToolsProtocol):
    """One client connection."""

    settings: Settings
    budget: Budget
    """Both set by Server's subclass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._head_fields = 0
        self._in_head = True
        self._body_bytes = 0
        """Of the request that is being received or answered: counted in the budget."""
        self._refused = False
        self._client_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # --- connection ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            self._refuse(NotReadyError("too many connections", retry_after_s=1))
        else:
            self._arm(self.settings.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._release_body()
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head and self._head_bytes == 0:
            self._arm(self.settings.header_timeout_s)
        super().data_received(data)
        if self._in_head and not self._refused:
            # The parser keeps an unfinished header to itself: count what it has swallowed.
            self._head_bytes += len(data)
            self._check_head()

    # --- parser callbacks ------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._refused:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            self._refused = True
            return
        self._in_head = True
        self._head_bytes = self._head_fields = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._refused:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._refused:
            return
        self._head_fields += 1
        if self._head_fields <= MAX_HEADER_FIELDS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._refused:
            return
        self._head_bytes = len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers)
        self._check_head()
        self._check_length()
        if self._refused:
            return
        self._in_head = False
        self._arm(self.settings.body_timeout_s)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._refused:
            return
        self._body_bytes += len(body)
        self.budget.used += len(body)
        if self._body_bytes > self.settings.max_body_bytes:
            self._refuse(self._too_large())
        elif self.budget.used > self.budget.limit:
            self._refuse(NotReadyError("too many large requests at once", retry_after_s=1))
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._refused:
            return
        self._disarm()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._release_body()
        if self._in_head is False and self._client_timer is not None:
            # Answered before its body was there: what follows is no request.
            self._disarm()
            self._refused = True
            self._linger()
        super().on_response_complete()
        self._in_head = True
        self._head_bytes = 0

    # --- limits ----------------------------------------------------------------------

    def _check_head(self) -> None:
        limit = self.settings.max_header_bytes
        if self._head_bytes > limit:
            self._refuse(HeadersTooLargeError(f"request line and headers are over {limit} bytes"))
        elif self._head_fields > MAX_HEADER_FIELDS:
            self._refuse(HeadersTooLargeError(f"there are over {MAX_HEADER_FIELDS} headers"))

    def _check_length(self) -> None:
        for name, value in self.headers:
            if name == b"content-length" and int(value) > self.settings.max_body_bytes:
                self._refuse(self._too_large())

    def _too_large(self) -> LbhostError:
        return PayloadTooLargeError(f"the body is over {self.settings.max_body_bytes} bytes")

    def _release_body(self) -> None:
        self.budget.used -= self._body_bytes
        self._body_bytes = 0

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._client_timer = self.loop.call_later(seconds, self._on_slow_client)

    def _disarm(self) -> None:
        if self._client_timer is not None:
            self._client_timer.cancel()
            self._client_timer = None

    def _on_slow_client(self) -> None:
        self._client_timer = None
        if self._in_head and self._head_bytes == 0:
            self.transport.close()
        elif self._in_head:
            self._refuse(ClientTimeoutError("the headers took too long"))
        else:
            self._refuse(ClientTimeoutError("the body took too long"))

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(WRITE_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # --- refusals --------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """uvicorn's, for what its parser cannot read."""
        self._refuse(InvalidRequestError("the request is not valid HTTP/1.1"))

    def _refuse(self, error: LbhostError) -> None:
        """Answer without the application, and close. Whatever still comes is thrown away."""
        if self._refused:
            return
        self._refused = True
        self._disarm()
        self._unset_keepalive_if_required()
        running = self.cycle is not None and not self.cycle.response_complete
        if not (running and self.cycle.response_started):
            body = replies.error_body(error)
            headers = [
                *self.server_state.default_headers,
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
                (b"x-request-id", new_request_id().encode()),
                *replies.error_headers(error),
            ]
            lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
            self.transport.write(STATUS_LINE[error.status] + lines + b"\r\n" + body)
        if running:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._linger()

    def _linger(self) -> None:
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._client_timer = self.loop.call_later(LINGER_S, self.transport.close)


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, and with one tick a second, not ten."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.budget = Budget(BODIES * settings.max_body_bytes)
        fields = {"settings": settings, "budget": self.budget}
        protocol = type("Protocol", (LimitedProtocol,), fields)
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
