"""What the HTTP server refuses, and whom it makes wait: sizes, times, connections, descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import resource
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from fake_worker import Script
from http_bytes import check_refusal, post, read
from lbhost.gateway.http import answer_transport, budget, protocol
from running_gateway import CHAT, HELLO, PATIENCE_S, RunningGateway, running_gateway, until

pytestmark = [pytest.mark.anyio, pytest.mark.uvloop]


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\nlong: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\nendless: " + b"a" * 400_000,
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 100_000,
        b"GET /livez HTTP/1.1\r\n" + b"a" * 20_000,
    ],
    ids=["long", "endless", "url", "many", "very many", "name"],
)
async def test_too_large_headers_are_a_431(request_head: bytes) -> None:
    async with running_gateway() as g:
        check_refusal(await g.raw(request_head), 431, "headers_too_large")


async def test_too_large_bodies_are_a_413_declared_or_not() -> None:
    async with running_gateway(max_body_bytes=10_000) as g:
        check_refusal(await g.raw(post(b"{", length=20_000)), 413, "payload_too_large")
        chunked = (
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            "transfer-encoding: chunked\r\n\r\n"
        ).encode() + (b"1000\r\n" + b"a" * 0x1000 + b"\r\n") * 3
        check_refusal(await g.raw(chunked), 413, "payload_too_large")
        assert (await g.chat()).status_code == 200


async def test_a_413_can_be_read_by_a_client_that_is_still_sending() -> None:
    async with running_gateway(max_body_bytes=10_000) as g:
        response = await g.client.post(CHAT, content=b"x" * 3_000_000)
        assert response.status_code == 413


async def test_slow_headers_are_a_408() -> None:
    async with running_gateway(header_timeout_s=0.1) as g:
        check_refusal(await g.raw(b"GET /livez HTTP/1.1\r\nhost"), 408, "request_timeout")


async def test_a_slow_body_is_a_408() -> None:
    async with running_gateway(body_timeout_s=0.1) as g:
        check_refusal(await g.raw(post(b"{", length=100)), 408, "request_timeout")
        await until(lambda: not g.gateway.server.server_state.tasks, "nobody waits for it")


async def test_a_request_that_came_while_we_were_stopped_is_not_late() -> None:
    async with running_gateway() as g:
        reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
        shared = g.gateway.server.server_state.connections
        await until(lambda: shared, "it is connected")
        (connection,) = shared
        assert isinstance(connection, protocol.LimitedProtocol)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        connection._on_late_client()  # as when its timer and this are seen in one turn of the loop
        async with asyncio.timeout(PATIENCE_S):
            assert read(await reader.read())[0] == 200
        writer.close()


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with running_gateway(header_timeout_s=0.1) as g:
        assert await g.raw(b"") == b""


async def test_an_idle_connection_is_closed() -> None:
    async with running_gateway(keep_alive_s=0.1) as g:
        response = await g.raw(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert read(response)[0] == 200


async def test_a_connection_serves_one_request_after_the_other() -> None:
    async with running_gateway() as g:
        reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
        try:
            for _ in range(3):
                writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
                async with asyncio.timeout(PATIENCE_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 200")
                    await reader.readexactly(len(b'{"status":"ok"}'))
        finally:
            writer.close()


async def test_too_many_connections_with_requests_are_a_503() -> None:
    async with running_gateway(max_connections=2) as g:
        (fake,) = g.workers
        fake.hold()
        running = [asyncio.create_task(g.raw(post(json.dumps(HELLO).encode()))) for _ in range(2)]
        await until(lambda: len(fake.submits) == 2, "the worker has them")
        check_refusal(await g.raw(b""), 503, "not_ready")
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await until(lambda: g.gateway.server.connections == 0, "all are gone")
        fake.release()
        assert (await g.chat()).status_code == 200


async def test_connections_without_a_request_make_room_for_new_ones() -> None:
    async with running_gateway(max_connections=20) as g:
        silent = [await asyncio.open_connection("127.0.0.1", g.port) for _ in range(40)]
        slow = [await asyncio.open_connection("127.0.0.1", g.port) for _ in range(40)]
        try:
            for _, writer in slow:
                writer.write(b"GET /livez HTTP/1.1\r\nhost")
            assert (await g.chat()).status_code == 200
            assert g.gateway.server.connections <= 21
            async with asyncio.timeout(PATIENCE_S):
                assert await silent[0][0].read() == b""
        finally:
            for _, writer in [*silent, *slow]:
                writer.close()


async def test_1100_idle_connections_do_not_keep_others_out() -> None:
    async with running_gateway() as g:
        idle = [await asyncio.open_connection("127.0.0.1", g.port) for _ in range(1100)]
        try:
            assert (await g.chat()).status_code == 200
            assert g.gateway.server.connections <= 1025
        finally:
            for _, writer in idle:
                writer.close()


async def test_clients_that_send_a_byte_at_a_time_do_not_hold_up_another() -> None:
    async with running_gateway(header_timeout_s=2.0) as g:
        slow = []
        for _ in range(200):
            slow.append(await asyncio.open_connection("127.0.0.1", g.port))
            slow[-1][1].write(b"G")
        answers = [asyncio.create_task(reader.read()) for reader, _ in slow]
        head = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nlong: " + b"a" * 10_000

        async def drip() -> None:
            for i in range(1, len(head)):
                for answer, (_, writer) in zip(answers, slow, strict=True):
                    if not answer.done():
                        writer.write(head[i : i + 1])
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        try:
            for _ in range(10):
                assert (await g.chat()).status_code == 200
            async with asyncio.timeout(PATIENCE_S):
                for answer in answers:
                    check_refusal(await answer, 408, "request_timeout")
        finally:
            dripping.cancel()
            for _, writer in slow:
                writer.close()
            await asyncio.gather(dripping, *answers, return_exceptions=True)


async def test_a_refusal_before_the_body_closes_the_connection() -> None:
    async with running_gateway() as g:
        response = await g.raw(
            b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"
        )
        status, headers, _ = read(response)
        assert (status, headers["connection"]) == (404, "close"), "or it would be used again"


async def test_refused_clients_that_linger_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_S", 3600.0)
    async with running_gateway(max_connections=2) as g:
        writers = []
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
            writers.append(writer)
            writer.write(b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{")
            async with asyncio.timeout(PATIENCE_S):
                assert b" 404 " in await reader.readuntil(b"\r\n\r\n")
        assert g.gateway.server.connections == 2
        assert (await g.chat()).status_code == 200
        for writer in writers:
            writer.close()


async def test_a_refusal_can_be_read_by_a_client_that_sends_on_and_wants_to_close() -> None:
    """What a reverse proxy is that speaks HTTP/1.0, or closes after each request."""
    async with running_gateway(api_key="k" * 20) as g:
        body = b"x" * 3_000_000
        reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
        writer.write(post(b"", b"connection: close", length=len(body)))
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 401 " in head
            assert b"connection: close" in head
            writer.write(body)
            await writer.drain()
            assert json.loads(await reader.read())["error"]["code"] == "invalid_api_key"
        writer.close()
        await until(lambda: g.gateway.server.connections == 0, "it is closed")


async def test_a_client_that_stops_reading_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_transport, "WRITE_TIMEOUT_S", 0.2)
    flood = Script(answer=lambda _: ["x" * 8192] * 2000)
    async with running_gateway(script=flood) as g:
        reader, writer = await asyncio.open_connection("127.0.0.1", g.port, limit=1024)
        body = json.dumps({**HELLO, "stream": True}).encode()
        writer.write(post(body))
        await until(lambda: g.workers[0].submits, "the worker has it")
        await until(lambda: g.gateway.server.connections == 0, "it is dropped")
        await until(lambda: g.served.dispatcher.in_flight == 0, "its slot is free")
        writer.close()
        with contextlib.suppress(ConnectionError):
            await reader.read(10)


async def test_what_nobody_reads_takes_no_more_memory_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answer_transport, "WRITE_TIMEOUT_S", 3600.0)
    flood = Script(answer=lambda _: ["x" * 8192] * 2000)
    async with running_gateway(script=flood) as g:
        g.gateway.server.unread.limit = 1
        body = json.dumps({**HELLO, "stream": True}).encode()
        submits, writers = g.workers[0].submits, []
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", g.port, limit=1024)
            writer.write(post(body))
            writers.append(writer)
        await until(lambda: len(submits) == 3, "it has all")
        await until(lambda: g.gateway.server.connections == 1, "two are dropped")
        await until(lambda: g.served.dispatcher.in_flight <= 1, "their slots are free")
        for writer in writers:
            writer.close()


async def test_a_client_that_reads_slowly_is_not_dropped_while_it_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answer_transport, "WRITE_TIMEOUT_S", 3600.0)
    long = Script(answer=lambda _: ["x" * 4_000_000] * 4)
    async with running_gateway(script=long) as g:
        reader, writer = await asyncio.open_connection("127.0.0.1", g.port, limit=1024)
        try:
            writer.write(post(json.dumps(HELLO).encode()))
            shared = g.gateway.server.server_state.connections
            await until(lambda: shared, "it is connected")
            (connection,) = shared
            assert isinstance(connection, protocol.LimitedProtocol)
            watch = connection._reading
            assert watch is not None
            unsent = connection.transport.get_write_buffer_size
            await until(lambda: unsent() > 1 << 20, "the answer waits to be read")
            for _ in range(3):
                waiting = unsent()
                while unsent() > waiting - answer_transport.LEAST_READ_BYTES:
                    assert await reader.read(1 << 16)
                watch.look()
                assert not connection.transport.is_closing()
            before = unsent()
            await until(lambda: unsent() == before, "what the kernel holds is full again")
            watch.look()
            await until(lambda: g.gateway.server.connections == 0, "it is dropped")
        finally:
            writer.close()


@asynccontextmanager
async def full_budget(g: RunningGateway) -> AsyncIterator[None]:
    """All the memory for bodies is taken by clients that are still sending."""
    size = g.gateway.server.settings.max_body_bytes - 1
    held = [await asyncio.open_connection("127.0.0.1", g.port) for _ in range(budget.BODIES)]
    try:
        for _, writer in held:
            writer.write(post(b"x" * size, length=size + 1))
        total = g.gateway.server.budget
        await until(lambda: total.used >= budget.BODIES * size, "all are held")
        yield
    finally:
        for _, writer in held:
            writer.close()
    await until(lambda: total.used == 0, "all is given back")


async def test_bodies_share_a_memory_limit_that_small_ones_do_not_feel() -> None:
    async with running_gateway(max_body_bytes=100_000) as g:
        async with full_budget(g):
            check_refusal(await g.raw(post(b"x" * 99_999, length=100_000)), 503, "not_ready")
            assert (await g.chat()).status_code == 200
        assert (await g.chat()).status_code == 200


async def test_a_body_is_counted_only_until_intake_has_made_work_of_it() -> None:
    async with running_gateway(max_body_bytes=100_000, slots=4) as g:
        (fake,) = g.workers
        fake.hold()
        padded = {**HELLO, "user": "x" * 90_000}
        running = [asyncio.create_task(g.client.post(CHAT, json=padded)) for _ in range(6)]
        await until(lambda: g.served.dispatcher.active == 6, "all are queued or running")
        assert g.gateway.server.budget.used == 0
        fake.release()
        assert [r.status_code for r in await asyncio.gather(*running)] == [200] * 6


# --- descriptors and uvicorn ------------------------------------------------------------


CROWD = """
import socket, sys
crowd = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(200)]
print("there", flush=True)
sys.stdin.read()
"""


async def test_without_descriptors_it_waits_and_then_serves_again() -> None:
    async with running_gateway() as g:
        assert (await g.chat()).status_code == 200
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        crowd = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CROWD, str(g.port), stdin=PIPE, stdout=PIPE
        )
        assert crowd.stdin is not None
        assert crowd.stdout is not None
        try:
            there = len(list(Path("/proc/self/fd").iterdir()))
            resource.setrlimit(resource.RLIMIT_NOFILE, (there + 16, hard))
            async with asyncio.timeout(PATIENCE_S):
                await crowd.stdout.readline()
            assert (await g.chat()).status_code == 200
            await until(lambda: g.gateway.server.connections > 8, "they are let in")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            crowd.stdin.close()
            await crowd.wait()
        await until(lambda: g.gateway.server.connections <= 1, "they are gone")
        await g.client.aclose()
        answer = await g.raw(post(json.dumps(HELLO).encode(), b"connection: close"))
        assert read(answer)[0] == 200


def test_what_is_overridden_and_used_of_uvicorn_is_still_there() -> None:
    """Else an override is dead code, and a limit with it."""
    ours = {
        name
        for name, value in vars(protocol.LimitedProtocol).items()
        if callable(value) and not name.startswith("_")
    }
    assert ours - {"on_chunk_header"} <= set(dir(HttpToolsProtocol))
    assert {"_unset_keepalive_if_required", "send_400_response"} <= set(dir(HttpToolsProtocol))
    config = uvicorn.Config(app=lambda: None, http=HttpToolsProtocol)
    config.load()
    made = HttpToolsProtocol(config, ServerState(), {}, asyncio.new_event_loop())
    made.loop.close()
    for name in ("parser", "cycle", "headers", "scope", "connections", "server_state", "loop"):
        assert hasattr(made, name)
    cycle = inspect.signature(RequestResponseCycle.__init__).parameters
    assert {"scope", "transport", "keep_alive", "on_response", "message_event"} <= set(cycle)
    assert {"main_loop", "capture_signals", "shutdown"} <= set(dir(uvicorn.Server))
