"""The admin API: Starlette on uvicorn, on admin.sock, in the supervisor's own loop.

Translates HTTP to commands and back; decides nothing. A command goes on when its client has
left; a client that does not read holds up nobody but itself.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal, Protocol

import msgspec
import uvicorn
from msgspec import Meta
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from lbhost import log
from lbhost.errors import (
    ConflictError,
    InvalidRequestError,
    LbhostError,
    MethodNotAllowedError,
    NotFoundError,
    PayloadTooLargeError,
    RequestNotFoundError,
    WorkerNotFoundError,
)
from lbhost.status import Accepted, Requests, Status
from lbhost.supervisor.event_filter import LEVELS, EventFilter
from lbhost.supervisor.events import KEPT, EventLog
from lbhost.supervisor.journal import Journal, T, told
from lbhost.supervisor.output import Output
from lbhost.supervisor.peers import PeerProtocol
from lbhost.supervisor.questions import MOST

BODY_LIMIT = 64 * 1024
BACKLOG = 100
"""Past events that a new reader gets."""
CONNECTIONS = 256
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""As the gateway takes them."""


class DrainBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /workers/{id}/drain."""

    timeout_s: Annotated[float, Meta(ge=0, le=86400)] | None = None


class ScaleBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /scale."""

    workers: Annotated[int, Meta(ge=1, le=1024)] | Literal["auto"]
    """auto: as many as the load needs, between min_workers and max_workers."""
    model: str | None = None
    """Of which model; null: of the only one."""


class ReloadBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /reload."""

    dry_run: bool = False
    """Only say what would happen."""


class EmptyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every other POST."""


class Commands(Protocol):
    """What the API offers. Each command returns a line for a person or raises LbhostError."""

    events: EventLog

    def status(self) -> Status: ...
    def output(self, worker: int) -> Output: ...
    def drain(self, worker: int, timeout_s: float | None) -> Coroutine[Any, Any, str]: ...
    def resume(self, worker: int) -> Coroutine[Any, Any, str]: ...
    def restart(self, worker: int) -> Coroutine[Any, Any, str]: ...
    def restart_all(self) -> Coroutine[Any, Any, str]: ...
    def scale(
        self, workers: int | Literal["auto"], model: str | None
    ) -> Coroutine[Any, Any, str]: ...
    def requests(self, limit: int) -> Coroutine[Any, Any, Requests]: ...
    def cancel(self, request: str) -> Coroutine[Any, Any, str]: ...
    def reload(self, *, dry_run: bool) -> Coroutine[Any, Any, str]: ...
    def upgrade(self) -> Coroutine[Any, Any, str]: ...


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def _body(request: Request, shape: type[Any]) -> Any:
    """The request's body in this shape; an empty one is `{}`.

    Raises:
        InvalidRequestError: not JSON, or not of this shape.
        PayloadTooLargeError
    """
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > BODY_LIMIT:
            raise PayloadTooLargeError(f"the body is over {BODY_LIMIT} bytes")
    try:
        return msgspec.json.decode(data or b"{}", type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"bad body: {_plain(error)}") from error


def _plain(error: Exception) -> str:
    """msgspec's words without its marks: "workers: expected int >= 1"."""
    what, _, where = str(error).replace("`", "").partition(" - at ")
    what = re.sub("^Expected", "expected", what)
    key = where.removeprefix("$").removeprefix(".")
    return f"{key}: {what}" if key else what


def _worker_id(request: Request) -> int:
    text = request.path_params["id"]
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise WorkerNotFoundError(f"a worker's id is a number, not {text!r}")
    return int(text)


def _request_id(request: Request) -> str:
    text: str = request.path_params["id"]
    if not _REQUEST_ID.fullmatch(text):
        raise RequestNotFoundError("a request's id is its x-request-id: letters, digits, . _ : -")
    return text


def _number(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise InvalidRequestError(f"{name} is a number, not {text!r}", param=name)
    return min(int(text), most)


def _event_filter(request: Request) -> EventFilter:
    """What `worker`, `level` and `since` ask for. Raises InvalidRequestError."""
    query = request.query_params
    worker = _number(request, "worker", 0, 10**9) if "worker" in query else None
    level = query.get("level")
    if level is not None and level not in LEVELS:
        raise InvalidRequestError(f"level is {', '.join(LEVELS)}, not {level!r}", param="level")
    since = query.get("since")
    if since is not None and not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", since):
        raise InvalidRequestError(f"since is a Unix time in seconds, not {since!r}", param="since")
    return EventFilter(worker, level, None if since is None else float(since))


def _told(request: Request, journal: Journal[T], wanted: Callable[[T], bool]) -> Response:
    """What a journal holds and will hold, as server-sent events."""
    backlog = _number(request, "backlog", BACKLOG, KEPT)
    resume = request.headers.get("last-event-id", "")
    if resume.isascii() and resume.isdecimal() and len(resume) < 19:
        # A number that we have not come to is another server's: begin with ours.
        seq = int(resume) if int(resume) <= journal.last else 0
    else:
        # The newest so many of those that are wanted, not the wanted ones of the newest.
        past = [line.seq for line in journal.latest(KEPT) if wanted(line)]
        seq = past[-backlog] - 1 if 0 < backlog <= len(past) else 0 if backlog else journal.last
    return StreamingResponse(
        told(journal, seq, wanted, follow=_number(request, "follow", 1, 1) == 1),
        media_type="text/event-stream",
        headers={"cache-control": "no-store"},
    )


class Admin:
    """The API's routes over some Commands."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._running: set[asyncio.Task[str]] = set()
        self.app = Starlette(
            routes=[
                Route("/status", self._status, methods=["GET"]),
                Route("/events", self._events, methods=["GET"]),
                Route("/requests", self._requests, methods=["GET"]),
                Route("/requests/{id:path}", self._cancel, methods=["DELETE"]),
                Route("/workers/restart", self._restart_all, methods=["POST"]),
                Route("/workers/{id}/log", self._log, methods=["GET"]),
                Route("/workers/{id}/drain", self._drain, methods=["POST"]),
                Route("/workers/{id}/resume", self._resume, methods=["POST"]),
                Route("/workers/{id}/restart", self._restart, methods=["POST"]),
                Route("/scale", self._scale, methods=["POST"]),
                Route("/reload", self._reload, methods=["POST"]),
                Route("/upgrade", self._upgrade, methods=["POST"]),
            ],
            exception_handlers={
                LbhostError: _refused,
                HTTPException: _http_error,
                ClientDisconnect: _left,
                Exception: _our_bug,
            },
        )
        # An answer without words: a command at such a path would be lost without a sign.
        self.app.router.redirect_slashes = False

    async def _status(self, _request: Request) -> Response:
        return _json(self._commands.status())

    async def _requests(self, request: Request) -> Response:
        limit = _number(request, "limit", MOST, MOST)
        return _json(await self._commands.requests(limit))

    async def _cancel(self, request: Request) -> Response:
        return await self._run(request, self._commands.cancel(_request_id(request)))

    async def _drain(self, request: Request) -> Response:
        worker, body = _worker_id(request), await _body(request, DrainBody)
        return await self._run(request, self._commands.drain(worker, body.timeout_s))

    async def _resume(self, request: Request) -> Response:
        worker, _ = _worker_id(request), await _body(request, EmptyBody)
        return await self._run(request, self._commands.resume(worker))

    async def _restart(self, request: Request) -> Response:
        worker, _ = _worker_id(request), await _body(request, EmptyBody)
        return await self._run(request, self._commands.restart(worker))

    async def _restart_all(self, request: Request) -> Response:
        await _body(request, EmptyBody)
        return await self._run(request, self._commands.restart_all())

    async def _scale(self, request: Request) -> Response:
        body = await _body(request, ScaleBody)
        return await self._run(request, self._commands.scale(body.workers, body.model))

    async def _reload(self, request: Request) -> Response:
        body = await _body(request, ReloadBody)
        return await self._run(request, self._commands.reload(dry_run=body.dry_run))

    async def _upgrade(self, request: Request) -> Response:
        await _body(request, EmptyBody)
        return await self._run(request, self._commands.upgrade())

    async def _run(self, request: Request, command: Coroutine[Any, Any, str]) -> Response:
        """Carry out a command, whether its client waits, does not want to, or leaves."""
        task = asyncio.ensure_future(command)
        self._running.add(task)
        task.add_done_callback(self._ended)
        wait = request.query_params.get("wait", "1") not in {"0", "false", "no"}
        # A refusal comes before the first wait: a client that does not wait learns it too.
        done, _ = await asyncio.wait({task}, timeout=None if wait else 0)
        if task.cancelled():
            raise ConflictError("the server is stopping")
        if done:
            return _json(Accepted(ok=True, message=task.result()))
        return _json(Accepted(ok=True, message="accepted"), 202)

    def _ended(self, task: asyncio.Task[str]) -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, LbhostError):
            log.get().error("admin command failed", exc_info=error)

    async def _events(self, request: Request) -> Response:
        return _told(request, self._commands.events, _event_filter(request).passes)

    async def _log(self, request: Request) -> Response:
        return _told(request, self._commands.output(_worker_id(request)), lambda _line: True)

    async def close(self) -> None:
        """Give up the commands that still run."""
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, LbhostError)
    return _json(error.body(), error.status)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.scope['path']}"  # its URL would name the socket
    if error.status_code == 404:
        return await _refused(request, NotFoundError(f"{what}: no such path"))
    if error.status_code == 405:
        answer = await _refused(request, MethodNotAllowedError(f"{what}: method not allowed"))
        answer.headers.update(error.headers or {})
        return answer
    return await _refused(request, InvalidRequestError(f"{what}: {error.detail}"))


async def _left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _our_bug(request: Request, error: Exception) -> Response:
    log.get().error("admin request failed", path=request.url.path, exc_info=error)
    return _json(LbhostError("internal error; see the server's log").body(), 500)


class AdminServer:
    """Runs the API on a listening socket, inside a loop that is somebody else's."""

    def __init__(self, admin: Admin, listener: socket.socket) -> None:
        self._admin = admin
        self._listener = listener
        config = uvicorn.Config(
            admin.app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            http=PeerProtocol,
            date_header=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=1,
        )
        config.load()
        self._server = uvicorn.Server(config)
        # What uvicorn's serve() does, less its signal handlers and its ten wake-ups a second.
        self._server.lifespan = config.lifespan_class(config)

    async def start(self) -> None:
        """Serve from now on."""
        await self._server.startup(sockets=[self._listener])

    async def move(self, listener: socket.socket) -> None:
        """Accept on this listening socket instead; open connections stay open."""
        for server in self._server.servers:
            server.close()
        self._listener.close()
        self._listener = listener
        await self._server.startup(sockets=[listener])

    async def stop(self) -> None:
        """Close everything; clients get a second to take their last bytes."""
        await self._admin.close()
        await self._server.shutdown(sockets=[self._listener])
