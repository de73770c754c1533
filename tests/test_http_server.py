"""What the server does to clients that are too slow, too big, too many or plain wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from fake_worker import Script
from lbhost.gateway.http import server
from running_gateway import CHAT, HELLO, PATIENCE_S, running_gateway, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


def post(body: bytes, *headers: bytes, length: int | None = None) -> bytes:
    lines = [
        f"POST {CHAT} HTTP/1.1".encode(),
        b"host: localhost",
        b"content-type: application/json",
        b"content-length: %d" % (len(body) if length is None else length),
        *headers,
        b"",
        body,
    ]
    return b"\r\n".join(lines)


def read(response: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON body of one response."""
    head, _, body = response.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, json.loads(body)


def check_refusal(response: bytes, status: int, code: str | None) -> None:
    got, headers, body = read(response)
    assert got == status
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert headers["x-request-id"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == code


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


async def test_too_many_connections_are_a_503() -> None:
    async with running_gateway(max_connections=2) as g:
        open_ones = [await asyncio.open_connection("127.0.0.1", g.port) for _ in range(2)]
        try:
            await until(lambda: g.gateway.server.connections == 2, "both are counted")
            check_refusal(await g.raw(b""), 503, "not_ready")
        finally:
            for _, writer in open_ones:
                writer.close()
        await until(lambda: g.gateway.server.connections == 0, "all are gone")
        assert (await g.chat()).status_code == 200


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"rubbish\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_not_http_is_a_400(garbage: bytes) -> None:
    async with running_gateway() as g:
        check_refusal(await g.raw(garbage), 400, None)


async def test_an_upgrade_is_answered_as_if_not_asked_for() -> None:
    async with running_gateway(keep_alive_s=0.1) as g:
        asked = (
            b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
        )
        assert read(await g.raw(asked))[0] == 200


async def test_a_second_request_before_the_first_is_answered_is_dropped() -> None:
    async with running_gateway() as g:
        (fake,) = g.workers
        fake.hold()
        body = json.dumps(HELLO).encode()
        both = asyncio.create_task(g.raw(post(body) + post(body)))
        await until(lambda: fake.submits, "the worker has it")
        fake.release()
        status, headers, _ = read(await both)
        assert (status, headers["connection"]) == (200, "close")
        assert len(fake.submits) == 1


async def test_pipelining_does_not_hide_that_a_client_has_gone() -> None:
    async with running_gateway() as g:
        (fake,) = g.workers
        fake.hold()
        body = json.dumps(HELLO).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", g.port)
        writer.write(post(body) + post(body))
        await until(lambda: fake.submits, "the worker has it")
        writer.close()
        await until(lambda: fake.cancels, "the worker is told")


async def test_a_refusal_before_the_body_closes_the_connection() -> None:
    async with running_gateway() as g:
        response = await g.raw(
            b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"
        )
        assert read(response)[0] == 404


async def test_a_client_that_stops_reading_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WRITE_TIMEOUT_S", 0.2)
    flood = Script(answer=lambda _: ["x" * 8192] * 2000)
    async with running_gateway(script=flood) as g:
        reader, writer = await asyncio.open_connection("127.0.0.1", g.port, limit=1024)
        body = json.dumps({**HELLO, "stream": True}).encode()
        writer.write(post(body))
        await until(lambda: g.workers[0].submits, "the worker has it")
        await until(lambda: g.gateway.server.connections == 0, "it is dropped")
        await until(lambda: g.gateway.dispatcher.in_flight == 0, "its slot is free")
        writer.close()
        with contextlib.suppress(ConnectionError):
            await reader.read(10)


async def test_bodies_share_a_memory_limit() -> None:
    async with running_gateway(max_body_bytes=100_000) as g:
        held = [await asyncio.open_connection("127.0.0.1", g.port) for _ in range(server.BODIES)]
        try:
            for _, writer in held:
                writer.write(post(b"x" * 99_999, length=100_000))
            budget = g.gateway.server.budget
            await until(lambda: budget.used >= server.BODIES * 99_999, "all are held")
            check_refusal(await g.raw(post(b"x" * 99_999, length=100_000)), 503, "not_ready")
        finally:
            for _, writer in held:
                writer.close()
        await until(lambda: budget.used == 0, "all is given back")
        assert (await g.chat()).status_code == 200
