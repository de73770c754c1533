"""The admin API on its real socket, over commands that only note what they were asked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import httpx2
import msgspec
import pytest

from lbhost.board import Board
from lbhost.config import Settings
from lbhost.errors import ConflictError, WorkerNotFoundError
from lbhost.machine.topology import PhysicalCore, Topology
from lbhost.status import Event, ProcessStatus, Requests, Status
from lbhost.supervisor.admin import BODY_LIMIT, Admin, AdminServer
from lbhost.supervisor.assembly import Assembly
from lbhost.supervisor.cores import Ledger
from lbhost.supervisor.events import KEPT, EventLog
from lbhost.supervisor.output import Output
from lbhost.supervisor.output_lines import Written
from lbhost.supervisor.runtime import RuntimeDir

pytestmark = pytest.mark.anyio

PATIENCE_S = 60.0


class Noted:
    """Commands that succeed once `let` is set, and remember what they were."""

    def __init__(self) -> None:
        self.events = EventLog()
        self.written = Output(0, clock=lambda: 1.5)
        self.asked: list[tuple[object, ...]] = []
        self.done: list[tuple[object, ...]] = []
        self.let = asyncio.Event()
        self.let.set()

    def status(self) -> Status:
        box = Topology(cores=(PhysicalCore(cpus=(0,)),), allowed=frozenset({0}))
        assembly = Assembly(Settings(), Board.create(workers=1, cores=1, gpus=0))
        process = ProcessStatus(state="ready", pid=1, restarts=0, last_exit=None)
        return Status(
            version="0",
            pid=1,
            model="m",
            model_path="/m.gguf",
            endpoint="http://127.0.0.1:1",
            runtime_dir="/run",
            state="ready",
            policy="cost",
            uptime_s=1.0,
            rolling=None,
            workers=[],
            gateway=process,
            template=None,
            traffic=assembly.traffic(),
            cores=assembly.cores(box, Ledger({}, {}), []),
            gpus=assembly.gpus(),
            host=assembly.host(),
        )

    def output(self, worker: int) -> Output:
        if worker != 0:
            raise WorkerNotFoundError(f"no worker has the id {worker}")
        return self.written

    async def _do(self, *what: object) -> str:
        self.asked.append(what)
        if 7 in what:
            raise WorkerNotFoundError("no worker has the id 7")
        if 8 in what:
            raise ConflictError("not now")
        await self.let.wait()
        self.done.append(what)
        return f"{what[0]} done"

    async def drain(self, worker: int, timeout_s: float | None) -> str:
        return await self._do("drain", worker, timeout_s)

    async def resume(self, worker: int) -> str:
        return await self._do("resume", worker)

    async def restart(self, worker: int) -> str:
        return await self._do("restart", worker)

    async def restart_all(self) -> str:
        return await self._do("restart_all")

    async def scale(self, workers: int | Literal["auto"], model: str | None = None) -> str:
        return await self._do("scale", workers, model)

    async def requests(self, limit: int) -> Requests:
        self.asked.append(("requests", limit))
        return Requests(requests=[], total=3)

    async def cancel(self, request: str) -> str:
        return await self._do("cancel", request)

    async def reload(self, *, dry_run: bool) -> str:
        return await self._do("reload", dry_run)

    async def upgrade(self) -> str:
        return await self._do("upgrade")


@asynccontextmanager
async def served(tmp_path: Path) -> AsyncIterator[tuple[Noted, httpx2.AsyncClient]]:
    commands = Noted()
    runtime = RuntimeDir.claim(tmp_path / "run")
    server = AdminServer(Admin(commands), runtime.listen())
    await server.start()
    transport = httpx2.AsyncHTTPTransport(uds=str(runtime.socket_path))
    try:
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://lbhost", timeout=PATIENCE_S
        ) as client:
            yield commands, client
    finally:
        commands.events.close()
        await server.stop()
        runtime.release()


async def test_status_has_the_promised_shape(tmp_path: Path) -> None:
    async with served(tmp_path) as (commands, client):
        answer = await client.get("/status")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        found = msgspec.json.decode(answer.content, type=Status)
        assert found.model == "m"
        assert answer.json()["cores"] == [
            {
                "cpu": 0,
                "idle": None,
                "others": None,
                "freq_ratio": None,
                "temp_c": None,
                "throttle_s": None,
                "steal": None,
                "worker": None,
                "lent_to": None,
                "workers": [],
            }
        ]
        assert commands.asked == []


@pytest.mark.parametrize(
    ("path", "body", "asked"),
    [
        ("/workers/3/drain", b"", ("drain", 3, None)),
        ("/workers/3/drain", b"{}", ("drain", 3, None)),
        ("/workers/3/drain", b'{"timeout_s": 1.5}', ("drain", 3, 1.5)),
        ("/workers/0/resume", b"", ("resume", 0)),
        ("/workers/1/restart", b"", ("restart", 1)),
        ("/workers/restart", b"{}", ("restart_all",)),
        ("/scale", b'{"workers": 4}', ("scale", 4, None)),
        ("/scale", b'{"workers": 4, "model": "m"}', ("scale", 4, "m")),
        ("/scale", b'{"workers": "auto"}', ("scale", "auto", None)),
    ],
)
async def test_commands_are_carried_out_and_waited_for(
    tmp_path: Path, path: str, body: bytes, asked: tuple[object, ...]
) -> None:
    async with served(tmp_path) as (commands, client):
        answer = await client.post(path, content=body)
        assert answer.status_code == 200
        assert answer.json() == {"ok": True, "message": f"{asked[0]} done"}
        assert commands.done == [asked]


async def test_requests_are_listed_up_to_a_limit_and_cancelled_by_their_id(tmp_path: Path) -> None:
    async with served(tmp_path) as (commands, client):
        answer = await client.get("/requests?limit=2")
        assert answer.json() == {"requests": [], "total": 3}
        assert commands.asked == [("requests", 2)]
        answer = await client.delete("/requests/req_1.a:b-c")
        assert answer.json() == {"ok": True, "message": "cancel done"}
        assert commands.done == [("cancel", "req_1.a:b-c")]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/nothing", b"", 404, "not_found"),
        ("POST", "/scale/", b'{"workers": 2}', 404, "not_found"),
        ("DELETE", "/requests/", b"", 404, "request_not_found"),
        ("DELETE", "/requests/..%2fx", b"", 404, "request_not_found"),
        ("POST", "/workers/x/drain", b"", 404, "worker_not_found"),
        ("POST", "/workers/-1/drain", b"", 404, "worker_not_found"),
        ("POST", "/workers/99999999999999999999/drain", b"", 404, "worker_not_found"),
        ("POST", "/workers/7/resume", b"", 404, "worker_not_found"),
        ("POST", "/workers/8/restart", b"", 409, "conflict"),
        ("GET", "/workers/1/drain", b"", 405, "method_not_allowed"),
        ("POST", "/status", b"", 405, "method_not_allowed"),
        ("POST", "/workers/1/drain", b"{", 400, None),
        ("POST", "/workers/1/drain", b"[1]", 400, None),
        ("POST", "/workers/1/drain", b'{"timeout": 1}', 400, None),
        ("POST", "/workers/1/drain", b'{"timeout_s": -1}', 400, None),
        ("POST", "/workers/1/drain", b'{"timeout_s": "1"}', 400, None),
        ("POST", "/workers/1/drain", b"\xff\xfe", 400, None),
        ("POST", "/workers/1/drain", b"[" * 60_000, 400, None),
        ("POST", "/workers/1/resume", b'{"a": 1}', 400, None),
        ("POST", "/scale", b"", 400, None),
        ("POST", "/scale", b'{"workers": 0}', 400, None),
        ("POST", "/scale", b'{"workers": 1.5}', 400, None),
        ("POST", "/scale", b" " * (BODY_LIMIT + 1), 413, "payload_too_large"),
        ("GET", "/requests?limit=x", b"", 400, None),
        ("POST", "/requests/req_1", b"", 405, "method_not_allowed"),
        ("DELETE", "/requests/a%20b", b"", 404, "request_not_found"),
        ("DELETE", "/requests/" + "a" * 129, b"", 404, "request_not_found"),
        ("GET", "/events?backlog=x", b"", 400, None),
        ("GET", "/events?worker=-1", b"", 400, None),
        ("GET", "/events?level=loud", b"", 400, None),
        ("GET", "/events?since=now", b"", 400, None),
    ],
)
async def test_what_is_wrong_gets_an_openai_shaped_error(
    tmp_path: Path, method: str, path: str, body: bytes, status: int, code: str | None
) -> None:
    async with served(tmp_path) as (commands, client):
        answer = await client.request(method, path, content=body)
        assert answer.status_code == status
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == code
        assert error["message"]
        assert commands.done == []


async def test_without_waiting_the_answer_is_accepted_but_refusals_are_still_told(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as (commands, client):
        commands.let.clear()
        answer = await client.post("/workers/1/drain?wait=0")
        assert (answer.status_code, answer.json()["ok"]) == (202, True)
        assert commands.asked == [("drain", 1, None)]
        assert (await client.post("/workers/7/drain?wait=0")).status_code == 404
        assert (await client.post("/workers/8/drain?wait=0")).status_code == 409
        commands.let.set()
        assert (await client.post("/workers/1/resume")).status_code == 200
        assert ("drain", 1, None) in commands.done


async def test_a_command_goes_on_when_its_client_leaves(tmp_path: Path) -> None:
    async with served(tmp_path) as (commands, client):
        commands.let.clear()
        leaving = asyncio.create_task(client.post("/workers/1/drain"))
        async with asyncio.timeout(PATIENCE_S):
            while not commands.asked:
                await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        commands.let.set()
        assert (await client.post("/workers/1/resume")).status_code == 200
        assert commands.done[0] == ("drain", 1, None)


async def test_clients_that_hang_block_nobody(tmp_path: Path) -> None:
    async with served(tmp_path) as (commands, client):
        hanging = []
        for request in (b"", b"GET /sta", b"GET /events HTTP/1.1\r\nhost: x\r\n\r\n"):
            for _ in range(5):
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(str(tmp_path / "run/admin.sock"))
                sock.sendall(request)
                hanging.append(sock)
        for n in range(3 * KEPT):
            commands.events.add("info", "server", f"event {n} " + "x" * 400)
        assert (await client.get("/status")).status_code == 200
        assert (await client.post("/workers/1/drain")).status_code == 200
        for sock in hanging:
            sock.close()


# --- events -----------------------------------------------------------------------------


async def read_events(
    client: httpx2.AsyncClient, path: str, count: int, headers: dict[str, str] | None = None
) -> list[Event]:
    found: list[Event] = []
    async with client.stream("GET", path, headers=headers or {}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        number = ""
        async for line in answer.aiter_lines():
            if line.startswith("id: "):
                number = line[4:]
            elif line.startswith("data: "):
                found.append(msgspec.json.decode(line[6:], type=Event))
                assert str(found[-1].seq) == number
                if len(found) == count:
                    break
    return found


async def test_what_a_worker_writes_comes_as_events_do(tmp_path: Path) -> None:
    async with served(tmp_path) as (commands, client):
        commands.written.add(Written("", ("past", "and more")))
        answer = await client.get("/workers/0/log?follow=0&backlog=1")
        data = '{"seq":2,"time":1.5,"epoch":0,"level":"","message":"and more"}'
        assert f"id: 2\ndata: {data}\n\n" in answer.text
        assert "past" not in answer.text
        following = asyncio.create_task(client.get("/workers/0/log"))
        commands.written.add(Written("info", ("now",)))
        commands.written.close()
        assert '"message":"now"' in (await following).text
        assert (await client.get("/workers/9/log")).status_code == 404
        assert (await client.get("/workers/one/log")).status_code == 404


async def test_events_come_with_their_past_and_go_on(tmp_path: Path) -> None:
    async with served(tmp_path) as (commands, client):
        for n in range(5):
            commands.events.add("info", "server", f"past {n}")
        reading = asyncio.create_task(read_events(client, "/events?backlog=2", 3))
        await client.get("/status")
        commands.events.add("error", "worker_exit", "now\nhere", worker=3)
        found = await reading
        assert [event.seq for event in found] == [4, 5, 6]
        assert found[2].message == "now here"
        assert (found[2].level, found[2].kind, found[2].worker) == ("error", "worker_exit", 3)


async def test_a_client_resumes_where_it_was(tmp_path: Path) -> None:
    async with served(tmp_path) as (commands, client):
        for n in range(10):
            commands.events.add("info", "server", f"{n}")
        found = await read_events(client, "/events", 3, {"last-event-id": "7"})
        assert [event.seq for event in found] == [8, 9, 10]
        found = await read_events(client, "/events", 1, {"last-event-id": "4711"})
        assert found[0].seq == 1, "a number of an earlier server: all that there is"


@pytest.mark.parametrize(
    ("query", "seqs"),
    [
        ("worker=1", [2, 5, 8]),
        ("worker=1&backlog=2", [5, 8]),
        ("level=warning", [3, 6, 9]),
        ("level=info&worker=0&backlog=1", [7]),
        ("since=6", [6, 7, 8, 9]),
        ("since=6.5&worker=2", [9]),
        ("backlog=0", []),
        ("worker=9", []),
    ],
)
async def test_a_reader_gets_the_newest_of_those_it_wants(
    tmp_path: Path, query: str, seqs: list[int]
) -> None:
    async with served(tmp_path) as (commands, client):
        clock = iter(range(1, 10))
        commands.events = EventLog(lambda: float(next(clock)))
        for n in range(9):
            level = "warning" if n % 3 == 2 else "info"
            commands.events.add(level, "server", f"{n}", worker=n % 3)
        answer = await client.get(f"/events?follow=0&{query}")
        ids = [int(line[4:]) for line in answer.text.splitlines() if line.startswith("id: ")]
        assert ids == seqs


async def test_what_is_wrong_with_a_body_is_said_in_plain_words(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, client):
        answer = await client.post("/scale", content=b'{"workers": 0}')
        assert answer.json()["error"]["message"] == "bad body: workers: expected int >= 1"


async def test_without_following_the_stream_ends(tmp_path: Path) -> None:
    async with served(tmp_path) as (commands, client):
        for n in range(3):
            commands.events.add("info", "server", f"{n}")
        answer = await client.get("/events?follow=0")
        assert answer.text.count("data: ") == 3


async def test_the_ring_keeps_the_newest(tmp_path: Path) -> None:
    events = EventLog()
    for n in range(KEPT + 5):
        events.add("info", "server", f"{n}")
    assert [event.seq for event in events.after(0)] == list(range(6, KEPT + 6))
    assert events.after(KEPT + 5) == []
    assert [event.seq for event in events.latest(2)] == [KEPT + 4, KEPT + 5]


async def test_streams_end_with_the_server(tmp_path: Path) -> None:
    async with served(tmp_path) as (commands, client):
        reading = asyncio.create_task(client.get("/events"))
        await client.get("/status")
        commands.events.close()
        assert (await reading).status_code == 200
