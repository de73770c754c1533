"""Requests that do not end as they should: clients that leave, workers that die, stopping."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from fake_worker import Script
from http_answers import ENDLESS, check_error, events, stream
from http_bytes import post
from lbhost.board import Wanted, WorkerState
from running_gateway import CHAT, HELLO, PATIENCE_S, running_gateway, until

pytestmark = [pytest.mark.anyio, pytest.mark.uvloop]


# --- clients that leave -----------------------------------------------------------------


async def test_a_client_that_leaves_a_stream_frees_its_slot() -> None:
    async with running_gateway(script=ENDLESS) as g:
        body = {**HELLO, "stream": True}
        async with g.client.stream("POST", CHAT, json=body) as response:
            async for _ in response.aiter_raw():
                break
        await until(lambda: g.workers[0].cancels, "the worker is told")
        await until(lambda: g.served.dispatcher.in_flight == 0, "its slot is free")


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_client_that_leaves_before_the_first_token_frees_its_slot(streaming: bool) -> None:
    async with running_gateway() as g:
        (fake,) = g.workers
        fake.hold()
        request = asyncio.create_task(g.chat(stream=streaming))
        await until(lambda: fake.submits, "the worker has it")
        request.cancel()
        await until(lambda: fake.cancels, "the worker is told")
        await until(lambda: g.served.dispatcher.in_flight == 0, "its slot is free")


async def test_a_client_that_half_closes_has_left_but_gets_pages() -> None:
    async def ask(request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
        writer.write(request)
        writer.write_eof()
        try:
            return await reader.read()
        finally:
            writer.close()

    async with running_gateway() as g:
        (fake,) = g.workers
        for path in ("/health", "/v1/models"):  # as some health checkers ask
            page = await ask(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            assert page.startswith(b"HTTP/1.1 200 ")
            assert page.endswith(b"}")
        fake.hold()
        assert await ask(post(msgspec.json.encode(HELLO))) == b""
        await until(lambda: g.served.dispatcher.active == 0, "nothing waits for it")
        await until(lambda: g.served.dispatcher.in_flight == 0, "its slot is free")


async def test_a_client_that_leaves_the_queue_never_reaches_a_worker() -> None:
    async with running_gateway(slots=4) as g:
        (fake,) = g.workers
        fake.hold()
        running = [asyncio.create_task(g.chat()) for _ in range(4)]
        await until(lambda: len(fake.submits) == 4, "all slots are taken")
        queued = asyncio.create_task(g.chat())
        await until(lambda: g.served.dispatcher.queue_depth == 1, "it is queued")
        queued.cancel()
        await until(lambda: g.served.dispatcher.queue_depth == 0, "it has left the queue")
        fake.release()
        await asyncio.gather(*running)
        assert len(fake.submits) == 4


# --- workers that die -------------------------------------------------------------------


async def test_a_stream_whose_worker_dies_goes_on_elsewhere() -> None:
    words = [f"{i} " for i in range(1500)]
    script = Script(answer=lambda _: words, step_s=0.002)
    async with running_gateway(workers=2, script=script) as g:
        body = {**HELLO, "stream": True, "stream_options": {"include_usage": True}}
        async with g.client.stream("POST", CHAT, json=body) as response:
            lines = response.aiter_lines()
            first = json.loads((await anext(lines))[6:])
            dies, goes_on = sorted(g.workers, key=lambda fake: -len(fake.submits))
            goes_on.script = msgspec.structs.replace(script, step_s=0.0)
            dies.die()
            got = [first, *await events(lines)]
        assert got[-1] == "data: [DONE]"
        deltas = [event["choices"][0]["delta"] for event in got[:-2]]
        assert "".join(delta.get("content") or "" for delta in deltas) == "".join(words)
        assert [delta["role"] for delta in deltas if "role" in delta] == ["assistant"]
        assert got[-2]["usage"]["completion_tokens"] == 1500
        assert all(len(fake.submits) == 1 for fake in g.workers)


async def test_a_stream_whose_worker_dies_ends_with_an_error_event_when_none_is_left() -> None:
    async with running_gateway(script=ENDLESS) as g:
        body = {**HELLO, "stream": True}
        async with g.client.stream("POST", CHAT, json=body) as response:
            lines = response.aiter_lines()
            await anext(lines)
            g.workers[0].set_state(WorkerState.FAILED, Wanted.DOWN)
            g.workers[0].die()
            got = await events(lines)
        assert got[-1]["error"]["code"] == "not_ready"
        assert "data: [DONE]" not in got


async def test_answers_not_yet_begun_move_to_another_worker() -> None:
    async with running_gateway(workers=2) as g:
        for fake in g.workers:
            fake.hold()
        requests = [asyncio.create_task(g.chat(stream=i % 2 == 0)) for i in range(6)]
        await until(lambda: sum(len(f.submits) for f in g.workers) == 6, "the workers have them")
        g.workers[0].hang()
        g.workers[0].die()
        g.workers[1].release()
        for response in await asyncio.gather(*requests):
            assert response.status_code == 200
            assert response.headers["x-lbhost-worker"] == "1"
        text = (await g.client.get("/metrics")).text
        assert "lbhost_retries_total 3.0" in text


# --- stopping ---------------------------------------------------------------------------


async def test_stopping_lets_streams_finish_and_refuses_new_requests() -> None:
    async with running_gateway(script=Script(answer=lambda _: ["a"] * 50)) as g:
        (fake,) = g.workers
        fake.hold()
        running = asyncio.create_task(stream(g))
        await until(lambda: fake.submits, "the worker has it")
        g.stop(PATIENCE_S)
        await until(lambda: g.served.dispatcher.stopping, "it stops")
        refused = await g.chat()
        check_error(refused, 503, "not_ready")
        assert refused.headers["connection"] == "close"
        check_error(await g.client.get("/readyz"), 503, "not_ready")
        assert (await g.client.get("/livez")).status_code == 200
        fake.release()
        got, _ = await running
        assert got[-1] == "data: [DONE]"
        async with asyncio.timeout(PATIENCE_S):
            await g.task


async def test_streams_still_open_after_the_grace_get_an_error_event() -> None:
    async with running_gateway(script=ENDLESS) as g:
        body = {**HELLO, "stream": True}
        async with g.client.stream("POST", CHAT, json=body) as response:
            lines = response.aiter_lines()
            await anext(lines)
            g.stop(0.0)
            got = await events(lines)
        assert got[-1]["error"]["code"] == "not_ready"
        async with asyncio.timeout(PATIENCE_S):
            await g.task


async def test_the_end_of_the_control_link_is_told() -> None:
    async with running_gateway() as g:
        g.supervisor.shutdown(2)
        async with asyncio.timeout(PATIENCE_S):
            await g.orphaned.wait()
        g.gateway.server.stop()
        async with asyncio.timeout(PATIENCE_S):
            await g.task
