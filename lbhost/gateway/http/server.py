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
from lbhost.gateway.http.access import Refused, new_request_id

MAX_HEADER_FIELDS = 128

WRITE_TIMEOUT_S = 30.0
"""How long a client may leave everything unread before its connection is dropped."""

LINGER_S = 1.0
"""How long a refused client may go on sending into the void, so that it reads the answer:
closing at once would reset the connection under it."""


BODIES = 32
"""All bodies held at a time may be as large as so many of the largest together."""

SMALL_BODY = 16 * 1024
"""Bytes of a body that is never refused for what others hold: connections bound those."""

FRAMING = 2
"""A chunked body may take so many times max_body_bytes with its framing."""

TRAILER_BYTES = 4096
"""Bytes that may follow a chunk's header before its data: after the last chunk, a trailer."""


class Budget:
    """Bytes of request bodies that all connections hold together, until they are worked on."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


_NO_TRAILERS = InvalidRequestError("trailers after the body are not accepted")


class LimitedProtocol(HttpToolsProtocol):
    """One client connection."""

    settings: Settings
    budget: Budget
    refused: Refused
    """All set by Server's subclass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._head_fields = 0
        self._in_head = True
        self._body_bytes = 0
        """Of the request that is being received."""
        self._raw_bytes = 0
        """The same with the framing of its chunks."""
        self._since_chunk = 0
        """Bytes since the last chunk's header without any of its data."""
        self._held_bytes = 0
        """What of the body is counted in the budget."""
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
        if self._refused:
            return
        if self._in_head:
            # The parser keeps an unfinished header to itself: count what it has swallowed.
            self._head_bytes += len(data)
            self._check_head()
        elif self._receiving:
            self._count_raw(len(data))

    @property
    def _receiving(self) -> bool:
        """Whether a body, or what follows it, is still to come."""
        return not self._in_head and self._client_timer is not None

    def _count_raw(self, size: int) -> None:
        self._raw_bytes += size
        if self._since_chunk >= 0:
            self._since_chunk += size
        if self._raw_bytes > FRAMING * self.settings.max_body_bytes + TRAILER_BYTES:
            self._refuse(self._too_large())
        elif self._since_chunk > TRAILER_BYTES:
            self._refuse(_NO_TRAILERS)

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
        self._body_bytes = self._raw_bytes = 0
        self._since_chunk = -1
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._refused:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._refused:
            return
        if not self._in_head:
            # uvicorn would put a trailer's fields among the headers, Authorization too.
            self._refuse(_NO_TRAILERS)
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
        self.scope["state"]["release_body"] = self._release_body
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._since_chunk = 0

    def on_body(self, body: bytes) -> None:
        if self._refused:
            return
        self._since_chunk = -1
        self._body_bytes += len(body)
        self._held_bytes += len(body)
        self.budget.used += len(body)
        if self._body_bytes > self.settings.max_body_bytes:
            self._refuse(self._too_large())
        elif self.budget.used > self.budget.limit and self._body_bytes > SMALL_BODY:
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
        """The body is worked on, or thrown away: others may have its room."""
        self.budget.used -= self._held_bytes
        self._held_bytes = 0

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
        request_id = new_request_id()
        path = self.url.partition(b"?")[0].decode("latin-1") if hasattr(self, "url") else ""
        type(self).refused(error.status, path, request_id)
        self._unset_keepalive_if_required()
        running = self.cycle is not None and not self.cycle.response_complete
        if not (running and self.cycle.response_started):
            body = replies.error_body(error)
            headers = [
                *self.server_state.default_headers,
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
                (b"x-request-id", request_id.encode()),
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

    def __init__(self, app: ASGIApp, settings: Settings, refused: Refused) -> None:
        self.budget = Budget(BODIES * settings.max_body_bytes)
        fields = {"settings": settings, "budget": self.budget, "refused": staticmethod(refused)}
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
