"""Bodies and heads that could be read in two ways: trailers, chunks, upgrades."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from http_bytes import check_refusal, post, read
from running_gateway import CHAT, HELLO, PATIENCE_S, running_gateway, until

pytestmark = [pytest.mark.anyio, pytest.mark.uvloop]


CHUNKED = (
    f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    "transfer-encoding: chunked\r\n"
).encode()


def chunks(body: bytes, size: int) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


@pytest.mark.parametrize("streaming", [True, False])
async def test_http_1_0_gets_no_chunks_and_the_end_of_the_connection(streaming: bool) -> None:
    """RFC 9112, 6.1: a client that has not said HTTP/1.1 must not get a transfer coding."""
    async with running_gateway() as g:
        body = json.dumps({**HELLO, "stream": streaming}).encode()
        old = post(body, b"connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        head, _, said = (await g.raw(old)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"transfer-encoding" not in head
        assert b"\r\nconnection: close" in head
        if streaming:
            lines = said.split(b"\n\n")
            assert all(line.startswith(b"data: ") for line in lines[:-1])
            assert lines[-2:] == [b"data: [DONE]", b""]
        else:
            assert b"\r\ncontent-length: %d\r\n" % len(said) in head + b"\r\n"
            assert json.loads(said)["choices"]


async def test_a_trailer_is_refused_and_authenticates_nobody() -> None:
    async with running_gateway(api_key="secret-key") as g:
        body = json.dumps(HELLO).encode()
        trailer = b"0\r\nauthorization: Bearer secret-key\r\n\r\n"
        answer = await g.raw(CHUNKED + b"\r\n" + chunks(body, 1000) + trailer)
        check_refusal(answer, 400, None)
        assert not g.workers[0].submits


async def test_an_endless_trailer_ends_at_its_first_bytes() -> None:
    async with running_gateway() as g:
        reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
        try:
            writer.write(CHUNKED + b"\r\n" + chunks(json.dumps(HELLO).encode(), 1000) + b"0\r\n")
            await until(lambda: g.gateway.server.budget.used, "the body has come")
            writer.write(b"x" * 100)
            async with asyncio.timeout(PATIENCE_S):
                check_refusal(await reader.read(), 400, None)
        finally:
            writer.close()


@pytest.mark.parametrize(
    "flood",
    [b"1\r\na\r\n" * 20_000, b"5;" + b"x" * 100_000, b"1;" + b"x" * 9000 + b"\r\na\r\n"],
    ids=["tiny chunks", "endless extension", "long extensions"],
)
async def test_a_body_that_is_mostly_framing_is_refused(flood: bytes) -> None:
    async with running_gateway() as g:
        reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
        try:
            writer.write(CHUNKED + b"\r\n")
            with contextlib.suppress(ConnectionError):
                for _ in range(20):
                    writer.write(flood)
                    await writer.drain()
            async with asyncio.timeout(PATIENCE_S):
                check_refusal(await reader.read(), 400, None)
        finally:
            writer.close()


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_chunked_bodies_are_read_in_whatever_pieces_they_come(size: int) -> None:
    async with running_gateway() as g:
        reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
        data = CHUNKED + b"connection: close\r\n\r\n"
        data += chunks(json.dumps(HELLO).encode(), 50) + b"0\r\n\r\n"
        try:
            for i in range(0, len(data), size):
                writer.write(data[i : i + size])
                await asyncio.sleep(0)
            async with asyncio.timeout(PATIENCE_S):
                assert (await reader.read()).startswith(b"HTTP/1.1 200")
        finally:
            writer.close()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_with_an_upgrade_is_read_as_plain_http(chunked: bool) -> None:
    body = json.dumps(HELLO).encode()
    asked = (
        b"connection: Upgrade, HTTP2-Settings, close",
        b"upgrade: h2c",
        b"http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    )
    async with running_gateway() as g:
        if chunked:
            request = CHUNKED + b"\r\n".join([*asked, b"", b""]) + chunks(body, 9) + b"0\r\n\r\n"
        else:
            request = post(body, *asked)
        status, _, answer = read(await g.raw(request))
        assert (status, answer["choices"][0]["finish_reason"]) == (200, "stop")


async def test_connect_is_a_405() -> None:
    async with running_gateway() as g:
        asked = b"CONNECT example.com:443 HTTP/1.1\r\nhost: localhost\r\n\r\n"
        check_refusal(await g.raw(asked), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "lines",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nG",
        b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\nG",
        b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
        b"content-length: +5\r\n\r\nhello",
        b"content-length: 99999999999999999999999\r\n\r\n",
        b"transfer-encoding: identity, chunked, x\r\n\r\n0\r\n\r\n",
        b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        b"x: a\r\n folded\r\ncontent-length: 0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"transfer-encoding: chunked\r\n\r\n-1\r\n",
        b"transfer-encoding: chunked\r\n\r\n5\nhello",
    ],
)
async def test_requests_that_two_servers_could_read_in_two_ways_are_refused(lines: bytes) -> None:
    async with running_gateway() as g:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        check_refusal(await g.raw(head.encode() + lines), 400, None)


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
