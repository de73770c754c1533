"""The admin API's client: status, events and orders over the unix socket.

Owns the connections. Every call has a timeout, and every failure becomes one of three errors
whose message is a line for a person: `ServerGoneError` (nobody answers), `OtherVersionError`
(a server that this version cannot read) or `RefusedError` (it said no). Knows nothing of the
screen.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import httpx2

from lbhost import answers
from lbhost.errors import LbhostError, OtherVersionError, ServerGoneError
from lbhost.status import Event, LogLine, Requests, Status
from lbhost_tui.actions import Action

CONNECT_TIMEOUT_S = 2.0
STATUS_TIMEOUT_S = 5.0
EVENTS_SILENCE_S = 25.0
"""The server sends a comment every 10 s: two may be lost."""


class RefusedError(LbhostError):
    """The server understood and said no; the message says why."""


def _words(error: httpx2.HTTPError) -> str:
    """Why a request got no answer, for a person."""
    if isinstance(error, httpx2.ConnectTimeout | httpx2.ReadTimeout | httpx2.PoolTimeout):
        return "it does not answer in time"
    if isinstance(error, httpx2.ConnectError):
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, PermissionError):
                return "its socket belongs to another user"
            if isinstance(cause, FileNotFoundError):
                return "there is no socket"
            cause = cause.__cause__ or cause.__context__
        return "nobody listens on its socket"
    return "the connection broke"


class AdminClient:
    """A connection to one server's admin socket."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path
        self._http = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=str(socket_path)),
            base_url="http://lbhost",
            timeout=httpx2.Timeout(STATUS_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def status(self) -> Status:
        """`GET /status`.

        Raises:
            ServerGoneError: no answer.
            OtherVersionError: one that this version cannot read.
        """
        try:
            response = await self._http.get("/status")
            if response.status_code != 200:
                raise ServerGoneError(f"it answers {response.status_code}")
            return answers.status(response.content)
        except httpx2.HTTPError as error:
            raise ServerGoneError(_words(error)) from error

    async def requests(self) -> Requests:
        """`GET /requests`.

        Raises:
            RefusedError: the gateway does not answer, or the server is too old for this.
            ServerGoneError, OtherVersionError: as status.
        """
        try:
            response = await self._http.get("/requests")
        except httpx2.HTTPError as error:
            raise ServerGoneError(_words(error)) from error
        if response.status_code != 200:
            raise RefusedError(answers.refusal(response.content, response.status_code))
        return answers.requests(response.content)

    async def events(self, after: int | None, backlog: int = 200) -> AsyncGenerator[Event, None]:
        """`GET /events`: past events (those after `after`, or the last `backlog`), then new ones.

        Ends only by raising.

        Raises:
            ServerGoneError: the stream broke, ended, or was silent for too long.
            OtherVersionError: an event that this version cannot read.
        """
        async with aclosing(self._stream("/events", after, backlog)) as stream:
            async for data in stream:
                yield answers.event(data)

    async def log(
        self, worker: int, after: int | None, backlog: int = 200
    ) -> AsyncGenerator[LogLine, None]:
        """`GET /workers/{id}/log`: what a worker's processes have written; as `events`.

        Raises:
            RefusedError: there is no such worker, or the server is too old for this.
        """
        async with aclosing(self._stream(f"/workers/{worker}/log", after, backlog)) as stream:
            async for data in stream:
                yield answers.log_line(data)

    async def _stream(
        self, path: str, after: int | None, backlog: int
    ) -> AsyncGenerator[str, None]:
        headers = {} if after is None else {"last-event-id": str(after)}
        timeout = httpx2.Timeout(STATUS_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, read=EVENTS_SILENCE_S)
        try:
            async with self._http.stream(
                "GET", path, params={"backlog": backlog}, headers=headers, timeout=timeout
            ) as response:
                if response.status_code == 404:
                    await response.aread()
                    raise RefusedError(answers.refusal(response.content, 404))
                if response.status_code != 200:
                    raise ServerGoneError(f"it answers {response.status_code}")
                async for sse in httpx2.EventSource(response):
                    if sse.data:
                        yield sse.data
        except httpx2.HTTPError as error:
            raise ServerGoneError(_words(error)) from error
        raise ServerGoneError("it closed the stream")

    async def send(self, action: Action) -> str:
        """Have the action done and wait for it; the server's line about it.

        Raises:
            RefusedError: not possible (unknown worker, wrong state), or it failed.
            ServerGoneError: no answer; it may or may not happen.
        """
        timeout = httpx2.Timeout(STATUS_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, read=action.timeout_s)
        try:
            response = await self._http.request(
                action.method, action.path, json=action.body, timeout=timeout
            )
        except httpx2.HTTPError as error:
            raise ServerGoneError(f"no answer: {_words(error)}") from error
        if response.status_code >= 300:
            raise RefusedError(answers.refusal(response.content, response.status_code))
        try:
            accepted = answers.accepted(response.content)
        except OtherVersionError as error:
            raise RefusedError(error.message) from error
        if not accepted.ok:
            raise RefusedError(accepted.message)
        return accepted.message
