"""An admin server with a scripted Status and scripted events, on a real unix socket.

For the TUI's tests; moving_admin.py is one to look at.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Generator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from lbhost.errors import ConflictError, LbhostError, RequestNotFoundError, WorkerNotFoundError
from lbhost.status import (
    Accepted,
    CoreStatus,
    Event,
    HostStatus,
    LogLine,
    ModelStatus,
    ProcessStatus,
    Requests,
    RequestStatus,
    Status,
    TrafficStatus,
    WorkerStatus,
)

GB = 1024**3


def worker(number: int, **changes: Any) -> WorkerStatus:
    """A ready worker on core `number` with ordinary figures."""
    plain = WorkerStatus(
        id=number,
        state="ready",
        wanted="up",
        epoch=1,
        pid=4200 + number,
        cores=[number],
        gpu=None,
        slots=4,
        slots_busy=0,
        waiting=0,
        in_flight=0,
        ctx_size=2048,
        prefill_pending=0,
        tokens_s=0.0,
        tokens_out=0,
        ttft_s=None,
        inter_token_s=None,
        prefill_tok_s=None,
        kv_used=0,
        kv_total=8192,
        memory=312 * 1024**2,
        idle=0.97,
        others=0.02,
        temp_c=None,
        freq_ratio=None,
        share=0.98,
        errors=0,
        timeouts=0,
        restarts=0,
        health_kills=0,
        last_exit=None,
        uptime_s=130.0,
        retry_in_s=None,
    )
    return msgspec.structs.replace(plain, **changes)


def live_request(name: str, **changes: Any) -> RequestStatus:
    """A request that decodes on worker 0."""
    plain = RequestStatus(
        id=name,
        model="SmolLM2-135M-Instruct",
        key="",
        tier="default",
        state="decode",
        workers=[0],
        prompt_tokens=120,
        prompt_done=120,
        tokens_out=40,
        tokens_s=38.0,
        max_tokens=256,
        age_s=1.4,
        starts_in_s=None,
        ends_in_s=3.1,
        answers=1,
        stream=True,
    )
    return msgspec.structs.replace(plain, **changes)


def model(name: str, **changes: Any) -> ModelStatus:
    """One of several models, quiet."""
    plain: dict[str, Any] = {
        "name": name,
        "aliases": [],
        "kind": "chat",
        "path": f"/models/{name}.gguf",
        "state": "ready",
        "failure": None,
        "ctx_size": 2048,
        "slots": 4,
        "workers": 2,
        "workers_up": 2,
        "min_workers": None,
        "max_workers": None,
        "requests": 0,
        "errors": 0,
        "rejected": 0,
        "in_flight": 0,
        "queue_depth": 0,
        "requests_s": 0.0,
        "tokens_s": 0.0,
        "prompt_tokens_s": 0.0,
        "ttft_p50_s": None,
        "ttft_p95_s": None,
        "oldest_wait_s": None,
        "error_rate": None,
        "scaling": "fixed",
    }
    return msgspec.convert({**plain, **changes}, ModelStatus)


def status(workers: int = 2, **changes: Any) -> Status:
    """A quiet server with so many ready workers."""
    plain = Status(
        version="0.1.0",
        pid=4100,
        model="SmolLM2-135M-Instruct",
        model_path="/models/SmolLM2-135M-Instruct.Q4_1.gguf",
        endpoint="http://127.0.0.1:8080",
        runtime_dir="/run/user/1000/lbhost",
        state="ready",
        policy="cost",
        uptime_s=135.0,
        rolling=None,
        workers=[worker(number) for number in range(workers)],
        gateway=ProcessStatus(state="ready", pid=4101, restarts=0, last_exit=None),
        template=ProcessStatus(state="ready", pid=4102, restarts=0, last_exit=None),
        traffic=TrafficStatus(
            requests=0,
            errors=0,
            rejected=0,
            in_flight=0,
            queue_depth=0,
            queue_limit=256,
            connections=0,
            requests_s=0.0,
            tokens_s=0.0,
            ttft_p50_s=None,
            ttft_p95_s=None,
        ),
        cores=[CoreStatus(cpu=number, idle=0.97, others=0.02) for number in range(workers)],
        gpus=[],
        host=HostStatus(
            psi_cpu=0.01, memory_total=32.0 * GB, memory_available=21.5 * GB, psi_memory=0.0
        ),
    )
    return msgspec.structs.replace(plain, **changes)


def event(**changes: Any) -> Event:
    """What a worker that came up tells."""
    plain = Event(
        seq=1, time=0.0, level="info", kind="worker_state", worker=1, message="ready after 31 ms"
    )
    return msgspec.structs.replace(plain, **changes)


class FakeAdmin:
    """The server. Set `status`, call `say`, read `orders`; hold answers back with `gate`."""

    def __init__(self, socket_path: Path, picture: Status | None = None) -> None:
        self.socket_path = socket_path
        self.status = picture if picture is not None else status()
        self.events: list[Event] = []
        self.written: dict[int, list[LogLine]] = {}
        """By worker: what its process has written."""
        self.requests: list[RequestStatus] = []
        self.asked_requests = 0
        """GET /requests so far."""
        self.orders: list[tuple[str, Any]] = []
        """Every POST and DELETE: path and body."""
        self.resumed_from: list[str | None] = []
        """Last-Event-ID of every GET /events."""
        self.polls = 0
        self.polls_at_once = 0
        self.most_polls_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.refusal: LbhostError | None = None
        self._news = asyncio.Condition()
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; returns when connections are taken."""
        config = uvicorn.Config(
            self._app(), uds=str(self.socket_path), log_level="critical", lifespan="off", ws="none"
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve())
        while not self._server.started:
            if self._task.done():
                await self._task
                raise OSError("the fake admin server did not start")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Go away as a killed server does: streams break, the socket file vanishes."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = self._server.force_exit = True
        async with self._news:
            self._news.notify_all()
        await self._task
        # Who was accepted in these very turns of the loop would be served for ever.
        for _ in range(10):
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)
        self._server = self._task = None
        self.socket_path.unlink(missing_ok=True)

    async def __aenter__(self) -> FakeAdmin:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.gate.set()
        await self.stop()

    async def say(self, message: str, **fields: Any) -> None:
        """Append an event and send it to all followers."""
        plain = Event(
            seq=self.events[-1].seq + 1 if self.events else 1,
            time=time.time(),
            level="info",
            kind="worker_state",
            worker=None,
            message=message,
        )
        async with self._news:
            self.events.append(msgspec.structs.replace(plain, **fields))
            self._news.notify_all()

    async def write(self, number: int, message: str, level: str = "") -> None:
        """A worker's process writes a line."""
        async with self._news:
            lines = self.written.setdefault(number, [])
            line = LogLine(
                seq=len(lines) + 1, time=time.time(), epoch=1, level=level, message=message
            )
            lines.append(line)
            self._news.notify_all()

    def change(self, number: int, **changes: Any) -> None:
        """Change one worker in the picture."""
        workers = [
            msgspec.structs.replace(w, **changes) if w.id == number else w
            for w in self.status.workers
        ]
        self.status = msgspec.structs.replace(self.status, workers=workers)

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/status", self._status),
                Route("/events", self._events),
                Route("/requests", self._requests),
                Route("/workers/{id:int}/log", self._log),
                Route("/requests/{name}", self._cancel, methods=["DELETE"]),
                Route("/workers/restart", self._order, methods=["POST"]),
                Route("/workers/{id:int}/{verb}", self._order, methods=["POST"]),
                Route("/scale", self._order, methods=["POST"]),
            ]
        )

    async def _status(self, request: Request) -> Response:
        self.polls += 1
        self.polls_at_once += 1
        self.most_polls_at_once = max(self.most_polls_at_once, self.polls_at_once)
        try:
            return _json(self.status)
        finally:
            self.polls_at_once -= 1

    async def _requests(self, request: Request) -> Response:
        self.asked_requests += 1
        if self.refusal is not None:
            return _error(self.refusal)
        return _json(Requests(requests=self.requests, total=len(self.requests)))

    async def _cancel(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.orders.append((request.url.path, None))
        await self.gate.wait()
        left = [one for one in self.requests if one.id != name]
        if len(left) == len(self.requests):
            return _error(RequestNotFoundError(f"no live request has the id {name!r}"))
        self.requests = left
        return _json(Accepted(ok=True, message=f"request {name} is ended"))

    async def _events(self, request: Request) -> Response:
        last = request.headers.get("last-event-id")
        self.resumed_from.append(last)
        if last is None:
            past = self.events[-int(request.query_params.get("backlog", "100")) :]
            after = past[0].seq - 1 if past else 0
        else:
            after = int(last)

        return self._follow(self.events, after)

    async def _log(self, request: Request) -> Response:
        number = request.path_params["id"]
        if number not in {worker.id for worker in self.status.workers}:
            return _error(WorkerNotFoundError(f"there is no worker {number}"))
        return self._follow(self.written.setdefault(number, []), 0)

    def _follow(self, lines: Sequence[Event | LogLine], after: int) -> Response:
        async def stream() -> AsyncIterator[bytes]:
            nonlocal after
            yield b": hello\n\n"
            while self._server is not None and not self._server.should_exit:
                for line in [one for one in lines if one.seq > after]:
                    after = line.seq
                    yield b"id: %d\ndata: %b\n\n" % (line.seq, msgspec.json.encode(line))
                async with self._news:
                    if not any(one.seq > after for one in lines):
                        await self._news.wait()

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def _order(self, request: Request) -> Response:
        body = await request.json()
        self.orders.append((request.url.path, body))
        await self.gate.wait()
        number: Any = request.path_params.get("id")
        if number is not None and number not in {w.id for w in self.status.workers}:
            return _error(WorkerNotFoundError(f"there is no worker {number}"))
        if self.refusal is not None:
            return _error(self.refusal)
        verb = None if number is None else request.path_params["verb"]
        if verb == "drain":
            self.change(number, state="stopped", wanted="down", pid=None)
        elif verb == "resume":
            if self.status.workers[number].state == "ready":
                return _error(ConflictError(f"worker {number} is ready already"))
            self.change(number, state="ready", wanted="up", pid=5000 + number)
        elif isinstance(body.get("workers"), int):
            self.status = msgspec.structs.replace(
                self.status, workers=[worker(number) for number in range(body["workers"])]
            )
        await self.say(f"operator: {request.url.path}", kind="operator", worker=number)
        return _json(Accepted(ok=True, message="done"))


class _Server(uvicorn.Server):
    """Leaves the signals of the process that it runs in alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _error(error: LbhostError) -> Response:
    body = msgspec.json.encode(error.body())
    return Response(body, status_code=error.status, media_type="application/json")
