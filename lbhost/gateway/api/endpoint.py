"""The two endpoints that generate: one HTTP request from its body to its last byte.

A plain ASGI application, because a stream is its hot path: chunks go straight to `send`, one
for all that has come since the last. The response's headers wait for the first text (or ping),
so that whatever goes wrong before it still has an HTTP status.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from lbhost import log
from lbhost.errors import (
    DeadlineError,
    InvalidRequestError,
    LbhostError,
)
from lbhost.gateway.api import replies
from lbhost.gateway.api.replies import Kind, Reply
from lbhost.gateway.prompt.intake import INLINE_BYTES, Intake, Taken
from lbhost.gateway.recorder import Recorder, outcome
from lbhost.gateway.scheduling.deltas import text_of
from lbhost.gateway.scheduling.dispatcher import Dispatcher
from lbhost.gateway.scheduling.job import Job

PING_S = 10.0
"""While nothing else is sent for so long, a stream gets a comment: proxies cut idle ones."""


class _ClientGoneError(Exception):
    """The client hung up; there is nobody to answer."""


class Completions:
    """POST /v1/chat/completions or /v1/completions."""

    def __init__(
        self,
        kind: Kind,
        intake: Intake,
        dispatcher: Dispatcher,
        traffic: Recorder,
        model: str,
        request_timeout_s: float,
    ) -> None:
        self._kind = kind
        self._intake = intake
        self._dispatcher = dispatcher
        self._traffic = traffic
        self._model = model
        self._request_timeout_s = request_timeout_s
        self._preparing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises LbhostError only before anything was sent."""
        exchange = _Exchange(scope, send)
        scope["state"]["recorded"] = True
        ended = "error"
        try:
            await self._answer(exchange, scope, receive)
            job = exchange.job
            ended = "cancelled" if job is None or job.cancelled else outcome(job.error)
        except LbhostError as error:
            exchange.status = error.status
            ended = outcome(error)
            if exchange.job is not None:
                scope["state"]["worker"] = exchange.job.worker
            raise
        except (_ClientGoneError, asyncio.CancelledError) as error:
            ended = "cancelled"
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            if exchange.job is not None:
                self._dispatcher.cancel(exchange.job)
            self._traffic.count(ended)
            exchange.log(ended)

    async def _answer(self, exchange: _Exchange, scope: Scope, receive: Receive) -> None:
        taken = await self._take(exchange, scope, receive)
        job = exchange.job = self._dispatcher.submit(taken.work, exchange.began)
        watch = asyncio.create_task(self._watch(receive, job))
        try:
            reply = Reply(self._kind, exchange.request_id, self._model, taken.include_usage)
            if taken.work.stream:
                await exchange.stream(job, reply)
            else:
                await exchange.whole(job, reply)
        finally:
            watch.cancel()

    async def _take(self, exchange: _Exchange, scope: Scope, receive: Receive) -> Taken:
        """From the body to work. What the body holds of the budget is given back in the end."""
        release: Callable[[], None] = scope["state"]["release_body"]
        try:
            body = await _read(receive)
            self._preparing += 1
            try:
                self._dispatcher.check_open(self._preparing - 1)
                return await self._intake_while_there(exchange, body, receive)
            finally:
                self._preparing -= 1
        finally:
            release()

    async def _intake_while_there(
        self, exchange: _Exchange, body: bytes, receive: Receive
    ) -> Taken:
        """Intake, as long as the client is there and the request has time left."""
        if len(body) <= INLINE_BYTES:
            return self._intake.take_now(body, self._kind)
        taking = asyncio.ensure_future(self._intake.take(body, self._kind))
        leaving = asyncio.ensure_future(_disconnected(receive))
        left = self._request_timeout_s - (time.monotonic() - exchange.began)
        try:
            await asyncio.wait(
                {taking, leaving}, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED
            )
            if taking.done():
                return taking.result()
            if leaving.done():
                raise _ClientGoneError
            raise DeadlineError("the request took too long to prepare", retry_after_s=1)
        finally:
            taking.cancel()
            leaving.cancel()

    async def _watch(self, receive: Receive, job: Job) -> None:
        """Stop the work when the client hangs up."""
        await _disconnected(receive)
        self._dispatcher.cancel(job)


class _Exchange:
    """One response on its way out."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.began = time.monotonic()
        self.request_id: str = scope["state"]["request_id"]
        self.job: Job | None = None
        self.status: int | None = None

    async def whole(self, job: Job, reply: Reply) -> None:
        """An answer in one piece."""
        await job.wait()
        if job.error is not None:
            raise job.error
        if job.finish is None:
            raise _ClientGoneError
        body = reply.whole(text_of(job.take()), job.finish)
        await self._start(
            job,
            [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))],
        )
        await self._send({"type": "http.response.body", "body": body})

    async def stream(self, job: Job, reply: Reply) -> None:
        """An answer as server-sent events, ending in [DONE] or an error event."""
        pinger = _Pinger(job)
        opened = False
        try:
            while True:
                await job.wait()
                if job.cancelled:
                    raise _ClientGoneError
                if job.error is not None and self.status is None:
                    raise job.error
                text = text_of(job.take())
                event = b""
                if (text or job.finish is not None) and not opened:
                    event = reply.opening()
                    opened = True
                if text:
                    event += reply.text(text)
                if job.finish is not None:
                    event += reply.closing(job.finish)
                elif job.error is not None:
                    event += replies.error_event(job.error)
                elif not event:
                    event = replies.PING
                if self.status is None:
                    await self._start(job, _STREAM_HEADERS)
                await self._send(
                    {"type": "http.response.body", "body": event, "more_body": not job.over}
                )
                if job.over and not job.untaken:
                    return
                pinger.sent()
        finally:
            pinger.stop()

    async def _start(self, job: Job, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = 200
        if job.worker is not None:
            headers = [*headers, (b"x-lbhost-worker", b"%d" % job.worker)]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    def log(self, ended: str) -> None:
        """One line a request; never what was asked or answered."""
        now = time.monotonic()
        job = self.job
        fields: dict[str, object] = {}
        if job is not None:
            finish = job.finish
            fields = {
                "worker": job.worker,
                "prompt_tokens": job.work.prompt_tokens,
                "completion_tokens": job.completion_tokens,
                "cached_tokens": finish.cached_tokens if finish is not None else None,
                "ttft_ms": _ms(job.first_token - self.began) if job.first_token else None,
                "attempts": job.attempts,
            }
        log.get().info(
            "request",
            id=self.request_id,
            path=self._scope["path"],
            outcome=ended,
            status=self.status,
            duration_ms=_ms(now - self.began),
            **fields,
        )


_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class _Pinger:
    """Pokes a job's consumer whenever nothing was sent for PING_S."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer = self._loop.call_later(PING_S, self._due)

    def sent(self) -> None:
        self._last = self._loop.time()

    def stop(self) -> None:
        self._timer.cancel()

    def _due(self) -> None:
        silent = self._loop.time() - self._last
        if silent >= PING_S:
            self._job.poke()
            silent = 0.0
        self._timer = self._loop.call_later(PING_S - silent, self._due)


async def _read(receive: Receive) -> bytes:
    """The whole body; server.py keeps it within its limits."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGoneError
        parts.append(message["body"])
        if not message["more_body"]:
            break
    body = b"".join(parts)
    if not body:
        raise InvalidRequestError("the body is empty; send a JSON object")
    return body


async def _disconnected(receive: Receive) -> None:
    """Return when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
