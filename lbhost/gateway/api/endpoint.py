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

from lbhost.errors import (
    DeadlineError,
    InvalidRequestError,
    UnsupportedMediaTypeError,
)
from lbhost.gateway.api.dialects import DIALECTS
from lbhost.gateway.api.replies import Kind, Reply
from lbhost.gateway.exchange import Exchange, milliseconds
from lbhost.gateway.prompt.intake import Intake
from lbhost.gateway.prompt.preparation import Taken
from lbhost.gateway.recorder import outcome
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
        model: str,
        *,
        time_limit_s: float,
    ) -> None:
        """`time_limit_s` counts from a request's arrival; the dispatcher keeps it for the rest."""
        self._kind = kind
        self._reply = DIALECTS[kind].reply
        self._intake = intake
        self._dispatcher = dispatcher
        self._model = model
        self._time_limit_s = time_limit_s
        self._preparing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises LbhostError only before anything was sent."""
        exchange: Exchange = scope["state"]["exchange"]
        answer = Answer(exchange, send)
        exchange.ended_as = "error"
        try:
            check_media_type(scope)
            await self._answer(answer, await _read(receive), receive)
            job = answer.job
            exchange.ended_as = "cancelled" if job is None or job.cancelled else outcome(job.error)
        except (_ClientGoneError, asyncio.CancelledError) as error:
            exchange.ended_as = "cancelled"
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            exchange.body.release()
            if answer.job is not None:
                self._dispatcher.cancel(answer.job)
                exchange.details = answer.details(answer.job)

    async def _answer(self, answer: Answer, body: bytes, receive: Receive) -> None:
        client = _Client(receive)
        try:
            taken = await self._prepare(body, client, answer.exchange)
            del body
            exchange = answer.exchange
            job = answer.job = self._dispatcher.submit(
                taken.work, exchange.began, exchange.complete
            )
            client.on_gone(lambda: self._dispatcher.cancel(job))
            reply = self._reply(exchange.request_id, self._model, taken.include_usage, taken.tier)
            if taken.work.stream:
                await answer.stream(job, reply)
            else:
                await answer.whole(job, reply)
        finally:
            client.forget()

    async def _prepare(self, body: bytes, client: _Client, exchange: Exchange) -> Taken:
        """Intake, for as long as the client waits for it and there is time.

        Raises:
            DeadlineError: it took too long.
            LbhostError: what Dispatcher.check_open and Intake.take raise.
        """
        self._preparing += 1
        limit = asyncio.timeout(exchange.began + self._time_limit_s - time.monotonic())
        client.on_gone(lambda: _expire(limit))
        try:
            self._dispatcher.check_open(self._preparing - 1)
            async with limit:
                return await self._intake.take(body, self._kind)
        except TimeoutError as error:
            if client.gone:
                raise _ClientGoneError from error
            raise DeadlineError(
                f"not even read after {self._time_limit_s:g} s, which is the limit",
                retry_after_s=1,
            ) from error
        finally:
            self._preparing -= 1
            exchange.body.release()


def _expire(limit: asyncio.Timeout) -> None:
    """End what a time-out guards as if its time were over."""
    if not limit.expired():
        limit.reschedule(asyncio.get_running_loop().time())


class _Client:
    """Notices when the client hangs up. `forget` must be called in the end."""

    def __init__(self, receive: Receive) -> None:
        self.gone = False
        self._then: Callable[[], None] | None = None
        self._task = asyncio.create_task(self._watch(receive))

    def on_gone(self, then: Callable[[], None]) -> None:
        """What to do when it happens, instead of what was said before; at once if it has."""
        self._then = then
        if self.gone:
            then()

    def forget(self) -> None:
        self._task.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._then is not None:
            self._then()


class Answer:
    """One response on its way out."""

    def __init__(self, exchange: Exchange, send: Send) -> None:
        self.exchange = exchange
        self._send = send
        self.job: Job | None = None

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
            # The job may end while a slow client keeps `send` waiting: only what was sent counts.
            ended = False
            while not ended:
                await job.wait()
                if job.cancelled:
                    raise _ClientGoneError
                if job.error is not None and self.exchange.status is None:
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
                    event += reply.failing(job.error)
                elif not event:
                    event = reply.ping()
                ended = job.over
                if self.exchange.status is None:
                    await self._start(job, _STREAM_HEADERS)
                await self._send(
                    {"type": "http.response.body", "body": event, "more_body": not ended}
                )
                pinger.sent()
        finally:
            pinger.stop()

    async def _start(self, job: Job, headers: list[tuple[bytes, bytes]]) -> None:
        self.exchange.status = 200
        if job.worker is not None:
            headers = [*headers, (b"x-lbhost-worker", b"%d" % job.worker)]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    def details(self, job: Job) -> dict[str, object]:
        """For the log line; never what was asked or answered."""
        finish = job.finish
        ttft = milliseconds(job.first_token - job.arrived) if job.first_token else None
        return {
            "worker": job.worker,
            "prompt_tokens": job.work.prompt_tokens,
            "completion_tokens": job.completion_tokens,
            "cached_tokens": finish.cached_tokens if finish is not None else None,
            "ttft_ms": ttft,
            "attempts": job.attempts,
        }


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


def check_media_type(scope: Scope) -> None:
    """Raises UnsupportedMediaTypeError unless the body is said to be JSON in UTF-8, uncompressed.

    A missing content-type is refused too: without one, a web page may send a request anywhere
    without the browser's asking beforehand.
    """
    given = ""
    for name, value in scope["headers"]:
        if name == b"content-type":
            given = value.decode("latin-1")
        elif name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise UnsupportedMediaTypeError("compressed bodies are not supported")
    media, _, parameters = given.lower().partition(";")
    charset = parameters.partition("charset=")[2].strip(' "')
    if media.strip() != "application/json" or charset not in ("", "utf-8", "utf8"):
        what = repr(given[:80]) if given else "one without a content-type"
        raise UnsupportedMediaTypeError(f"the body must be application/json, not {what}")


async def _read(receive: Receive) -> bytes:
    """The whole body; http/protocol.py keeps it within its limits."""
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
