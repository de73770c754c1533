"""One client connection: uvicorn's httptools protocol, with the limits that it lacks.

That one has no time-outs for slow headers and bodies, takes any number of headers of any size,
merges trailers into the headers, forgets the body of a request that asks for an upgrade, and
answers in text/plain. `LimitedProtocol` adds: 431 for headers, 413 for bodies, 400 for trailers
and for chunks that are mostly framing, 408 for slow clients, 503 for too many connections, all
in the shape of the path and all counted; an end for clients that do not read; no pipelining (a
second request sent before the first is answered would hide that the client has gone). Never looks
at what a request asks for.
"""

from __future__ import annotations

import asyncio
import enum
import time
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lbhost.config import Settings
from lbhost.errors import (
    ClientTimeoutError,
    HeadersTooLargeError,
    InvalidRequestError,
    LbhostError,
    MethodNotAllowedError,
    NotReadyError,
    PayloadTooLargeError,
)
from lbhost.gateway.exchange import Counter, Exchange
from lbhost.gateway.http.answer_transport import AnswerTransport, ReadingWatch
from lbhost.gateway.http.budget import BodyHold, Budget
from lbhost.gateway.http.framing import LINE_END, Framing, trailers, without_upgrade
from lbhost.gateway.http.hosts import Origins
from lbhost.gateway.http.refusal import refusal
from lbhost.gateway.http.unread import Unread, most
from lbhost.gateway.http.until_close import unframed

MAX_HEADER_FIELDS = 128

LINGER_S = 1.0
"""How long a refused client may go on sending into the void, so that it reads the answer:
closing at once would reset the connection under it."""

READ_FIRST_S = 0.01
"""Between a client's time that is over and the judgement: what has come by then is read first."""


class Shared:
    """What all connections of a server have in common."""

    def __init__(self, settings: Settings, counter: Counter, limit: int, budget: Budget) -> None:
        self.adopt(settings)
        self.counter = counter
        self.limit = limit
        """Connections at once."""
        self.budget = budget
        self.unread = Unread(most(settings.max_body_bytes))
        self.waiting: dict[LimitedProtocol, None] = {}
        """Those without a complete head, and those that linger, longest wait first: they make room
        for others."""

    def adopt(self, settings: Settings) -> None:
        """Other settings for what connections do from now on."""
        self.settings = settings
        self.origins = Origins(settings)


class Phase(enum.Enum):
    """What a connection's next bytes are. OVER: whatever comes is thrown away."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    ANSWER = "answer"
    OVER = "over"


class LimitedProtocol(HttpToolsProtocol):
    """One client connection."""

    shared: Shared
    """Set by Server's subclass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase = Phase.IDLE
        self._raw_bytes = 0
        """That have come in this phase."""
        self._head_fields = 0
        self._upgrading = False
        """The head asks for another protocol; it is read again as one that does not."""
        self._framing = Framing()
        self._hold = BodyHold(self.shared.budget)
        self._exchange: Exchange | None = None
        """Of the request that is being received or answered."""
        self._client_timer: asyncio.TimerHandle | None = None
        self._reading: ReadingWatch | None = None
        """None before there is a transport."""
        self.owner = ""
        """Whose unread answer it is, while there is one."""

    @property
    def idle(self) -> bool:
        """Whether nothing of a request has come that is not answered."""
        return self._phase is Phase.IDLE

    @property
    def _settings(self) -> Settings:
        return self.shared.settings

    # --- connection ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._reading = ReadingWatch(self.loop, transport)
        if len(self.connections) > self.shared.limit and not self._make_room():
            self._refuse(NotReadyError("too many connections", retry_after_s=1))
        else:
            self.shared.waiting[self] = None
            self._arm(self._settings.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._phase = Phase.OVER
        self.shared.waiting.pop(self, None)
        self._hold.release()
        self._keeps_up()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._phase is Phase.OVER:
            return
        self._unset_keepalive_if_required()
        if self._phase is Phase.IDLE:
            self._enter(Phase.HEAD)
            self._arm(self._settings.header_timeout_s)
        before, events = self._phase, self._framing.events
        self._feed(data)
        if self._phase is not before:
            return
        # The parser keeps what is unfinished to itself: count what it has swallowed.
        self._raw_bytes += len(data)
        if before is Phase.HEAD:
            self._check_head(self._raw_bytes)
        elif before is Phase.BODY:
            self._check_framing(len(data), quiet=events == self._framing.events)
        elif before is Phase.ANSWER and self._raw_bytes > LINE_END:
            self._ignore_the_rest()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._phase is not Phase.OVER:
                self._read_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            if self._phase is Phase.ANSWER:
                self._ignore_the_rest()
            else:
                self.send_400_response("")

    def _read_without_upgrade(self, rest: bytes) -> None:
        """The same head once more as plain HTTP/1.1: the parser takes an upgraded message's body
        for another protocol's bytes. Java's HttpClient asks for h2c by default."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [name + b": " + value for name, value in without_upgrade(self.headers)]
        self._upgrading = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._feed(b"\r\n".join([*lines, b"", b""]) + rest)

    # --- parser callbacks ------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._phase is Phase.OVER:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._ignore_the_rest()
            return
        self._head_fields = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._phase is Phase.HEAD:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is Phase.BODY:
            self._refuse(trailers())
        elif self._phase is Phase.HEAD:
            self._head_fields += 1
            if self._head_fields <= MAX_HEADER_FIELDS:
                super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._phase is not Phase.HEAD:
            return
        method = self.parser.get_method().decode("latin-1")
        path = self.url.partition(b"?")[0].decode("latin-1")
        self._hold = BodyHold(self.shared.budget)
        self._exchange = Exchange(self.shared.counter, self._hold, method, path, self.headers)
        self._check_head(len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers))
        self._check_length()
        if method == "CONNECT":
            self._refuse(MethodNotAllowedError("CONNECT: this server is no proxy"))
        self._upgrading = self.parser.should_upgrade()
        if self._upgrading or self._phase is not Phase.HEAD:
            return
        self.shared.waiting.pop(self, None)
        self._exchange.others = len(self.connections) - len(self.shared.waiting) - 1
        self._exchange.connections = self.shared.limit
        self.scope["state"]["exchange"] = self._exchange
        self._enter(Phase.BODY)
        self._arm(min(self._settings.body_timeout_s, self._settings.request_timeout_s))
        super().on_headers_complete()
        self.cycle.transport = AnswerTransport(self.transport, self._lingers)
        if self.scope["http_version"] < "1.1":
            unframed(self.cycle)

    def _lingers(self) -> bool:
        """Whether the answer has gone out before the body was there."""
        return self._phase is Phase.BODY and bool(self.cycle.response_complete)

    def on_chunk_header(self) -> None:
        """httptools': a chunk's size line is complete."""
        self._framing.on_size_line()

    def on_body(self, body: bytes) -> None:
        if self._phase is not Phase.BODY:
            return
        self._framing.on_data()
        room = self._hold.add(len(body))
        if self._hold.size > self._settings.max_body_bytes:
            self._refuse(self._too_large())
        elif not room:
            self._refuse(NotReadyError("too many large requests at once", retry_after_s=1))
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._phase is not Phase.BODY:
            return
        self._disarm()
        self._enter(Phase.ANSWER)
        assert self._exchange is not None
        self._exchange.complete = time.monotonic()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._hold.release()
        self._exchange = None
        if self._phase is Phase.BODY:
            # Answered before its body was there: what follows is no request.
            self._disarm()
            self._phase = Phase.OVER
            self._linger()
        super().on_response_complete()
        if self._phase is Phase.ANSWER:
            self._enter(Phase.IDLE)
            self.shared.waiting[self] = None

    # --- limits ----------------------------------------------------------------------

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._raw_bytes = 0
        self._framing = Framing()

    def _check_head(self, size: int) -> None:
        limit = self._settings.max_header_bytes
        if size > limit:
            self._refuse(HeadersTooLargeError(f"request line and headers are over {limit} bytes"))
        elif self._head_fields > MAX_HEADER_FIELDS:
            self._refuse(HeadersTooLargeError(f"there are over {MAX_HEADER_FIELDS} headers"))

    def _check_length(self) -> None:
        for name, value in self.headers:
            if name == b"content-length" and int(value) > self._settings.max_body_bytes:
                self._refuse(self._too_large())

    def _check_framing(self, size: int, *, quiet: bool) -> None:
        problem = self._framing.problem(
            size,
            quiet=quiet,
            read=self._raw_bytes,
            body=self._hold.size,
            most=self._settings.max_header_bytes,
        )
        if problem is not None:
            self._refuse(problem)

    def _too_large(self) -> LbhostError:
        return PayloadTooLargeError(f"the body is over {self._settings.max_body_bytes} bytes")

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._client_timer = self.loop.call_later(seconds, self._on_late_client)

    def _disarm(self) -> None:
        if self._client_timer is not None:
            self._client_timer.cancel()
            self._client_timer = None

    def _on_late_client(self) -> None:
        """It may have been us: after a pause (a suspended machine, a crowded one) the loop sees its
        timers before it reads what has come meanwhile."""
        self._client_timer = self.loop.call_later(READ_FIRST_S, self._on_slow_client)

    def _on_slow_client(self) -> None:
        self._client_timer = None
        if self._phase is Phase.BODY:
            self._refuse(ClientTimeoutError("the body took too long"))
        else:
            self._give_up_waiting("the headers took too long")

    def _make_room(self) -> bool:
        """End the connection that has waited longest for a head. False: all have requests."""
        longest = next(iter(self.shared.waiting), None)
        if longest is None:
            return False
        longest._give_up_waiting("too many connections, and this one waited longest")
        return True

    def _give_up_waiting(self, why: str) -> None:
        if self._phase is Phase.HEAD:
            self._refuse(ClientTimeoutError(why))
        else:
            self._phase = Phase.OVER
            self.shared.waiting.pop(self, None)
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading is not None:
            self._reading.begin()
        self.owner = "" if self._exchange is None else self._exchange.client
        for one in self.shared.unread.begin(self):
            assert isinstance(one, LimitedProtocol)
            one.transport.abort()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._keeps_up()

    @property
    def unread(self) -> int:
        """Bytes of answers that the client has not taken."""
        return int(self.transport.get_write_buffer_size())

    def _keeps_up(self) -> None:
        if self._reading is not None:
            self._reading.end()
        self.shared.unread.end(self)

    # --- refusals --------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """uvicorn's, for what its parser cannot read."""
        self._refuse(InvalidRequestError("the request is not valid HTTP/1.1"))

    def _ignore_the_rest(self) -> None:
        """The request that came is answered; whatever comes after it is not."""
        self.cycle.keep_alive = False
        self._phase = Phase.OVER

    def _refuse(self, error: LbhostError) -> None:
        """Answer without the application, and close. Whatever still comes is thrown away."""
        if self._phase is Phase.OVER:
            return
        self._phase = Phase.OVER
        self.shared.waiting.pop(self, None)
        self._disarm()
        self._unset_keepalive_if_required()
        exchange = self._exchange or Exchange(self.shared.counter, self._hold)
        running = self.cycle is not None and not self.cycle.response_complete
        if not (running and self.cycle.response_started):
            exchange.fail(error)
            exchange.end()
            # As far as they came: none before the first request.
            for_pages = self.shared.origins.headers_for(self.headers or [])
            headers = [*self.server_state.default_headers, *for_pages]
            self.transport.write(refusal(error, exchange.path, exchange.request_id, headers))
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
        self.shared.waiting[self] = None
