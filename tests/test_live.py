"""The live requests of a gateway: what is told of them, and their end at an operator's word."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from fake_admin import live_request
from fake_worker import Script
from lbhost import control
from lbhost.gateway.live import PAGE
from lbhost.status import RequestStatus
from running_gateway import RunningGateway, running_gateway, until

pytestmark = pytest.mark.anyio

SPEEDS = (1000.0, 0.001, 0.001)


async def ask(running: RunningGateway, message: control.Control) -> Any:
    control.send(running.supervisor, message)
    running.supervisor.setblocking(False)
    loop = asyncio.get_running_loop()
    while True:
        arrived = asyncio.Event()
        loop.add_reader(running.supervisor.fileno(), arrived.set)
        async with asyncio.timeout(60.0):
            await arrived.wait()
        loop.remove_reader(running.supervisor.fileno())
        packet = control.receive(running.supervisor)
        assert packet is not None
        if not isinstance(packet[0], control.Ready):
            return packet[0]


async def rows(running: RunningGateway) -> list[RequestStatus]:
    found: list[RequestStatus] = []
    after: int | None = 0
    while after is not None:
        page = await ask(running, control.AskRequests(1, after))
        assert isinstance(page, control.ToldRequests)
        found += page.requests
        after = page.next
    assert page.total == len(found)
    return found


async def state_of(running: RunningGateway, request: str) -> str:
    return next((row.state for row in await rows(running) if row.id == request), "gone")


async def until_state(running: RunningGateway, request: str, state: str) -> None:
    async with asyncio.timeout(60.0):
        while await state_of(running, request) != state:
            await asyncio.sleep(0.01)


def later(running: RunningGateway, request: str, **fields: Any) -> asyncio.Task[Any]:
    body = {"prompt": "a secret of words", "max_tokens": 400, "ignore_eos": True, **fields}
    return asyncio.create_task(
        running.client.post("/v1/completions", json=body, headers={"x-request-id": request})
    )


async def test_a_request_is_told_from_the_queue_to_its_end_and_no_text_of_it() -> None:
    script = Script(prefill_s=60.0, step_s=0.01, speeds=SPEEDS)
    async with running_gateway(workers=0) as running:
        fake = await running.add(slots=1, script=script)
        first = later(running, "first", service_tier="priority")
        await until_state(running, "first", "prefill")
        second = later(running, "second")
        await until_state(running, "second", "queued")
        oldest, waiting = await rows(running)
        assert (oldest.id, oldest.tier, oldest.workers) == ("first", "priority", [0])
        assert (oldest.prompt_tokens > 0, oldest.prompt_done, oldest.tokens_out) == (True, 0, 0)
        assert oldest.ends_in_s is not None
        assert oldest.starts_in_s is None
        assert (waiting.workers, waiting.model, waiting.max_tokens) == ([], "toy", 400)
        assert waiting.starts_in_s is not None
        assert waiting.ends_in_s is not None
        assert waiting.ends_in_s >= waiting.starts_in_s
        assert b"secret" not in msgspec.json.encode([oldest, waiting])
        assert (await ask(running, control.CancelRequest(7, "first"))) == control.Cancelled(7, 1)
        answer = await first
        assert answer.status_code == 410
        assert answer.json()["error"]["code"] == "request_cancelled"
        assert answer.headers["x-should-retry"] == "false"
        fake.script.prefill_s = 0.0
        second.cancel()
        await until(lambda: not len(running.gateway.live), "the one whose client left is gone, too")


async def test_a_stream_that_is_cancelled_ends_with_an_error_event() -> None:
    async with running_gateway(script=Script(step_s=0.005, speeds=SPEEDS)) as running:
        streaming = later(running, "stream", stream=True)
        await until_state(running, "stream", "decode")

        async def goes_on() -> RequestStatus:
            while True:
                found = await rows(running)
                if found[0].tokens_out > 8:
                    return found[0]
                await asyncio.sleep(0.01)

        row = await asyncio.wait_for(goes_on(), 60.0)
        assert row.prompt_done == row.prompt_tokens
        assert row.tokens_s is not None
        assert row.ends_in_s is not None
        assert row.stream
        await ask(running, control.CancelRequest(1, "stream"))
        answer = await streaming
        assert answer.status_code == 200
        assert '"code":"request_cancelled"' in answer.text
        assert "[DONE]" not in answer.text
        assert not len(running.gateway.live)


async def test_a_queued_one_of_several_answers_ends_with_all_of_them() -> None:
    async with running_gateway(workers=0) as running:
        await running.add(slots=1, script=Script(prefill_s=60.0, speeds=SPEEDS))
        waiting = later(running, "many", n=3)
        await until_state(running, "many", "prefill")
        (row,) = await rows(running)
        assert (row.answers, row.max_tokens) == (3, 1200)
        await ask(running, control.CancelRequest(1, "many"))
        assert (await waiting).status_code == 410
        assert running.served.dispatcher.queue_depth == 0


async def test_an_unknown_id_ends_nothing() -> None:
    async with running_gateway() as running:
        assert (await ask(running, control.CancelRequest(3, "no"))) == control.Cancelled(3, 0)


async def test_more_requests_than_a_packet_holds_come_in_pages() -> None:
    async with running_gateway(workers=0, queue_size=256) as running:
        await running.add(slots=1, script=Script(prefill_s=60.0, speeds=SPEEDS))
        tasks = [later(running, f"r{number}") for number in range(PAGE + 5)]
        await until(lambda: len(running.gateway.live) == PAGE + 5, "all are there")
        page = await ask(running, control.AskRequests(1))
        assert (len(page.requests), page.total) == (PAGE, PAGE + 5)
        assert len(await rows(running)) == PAGE + 5
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_the_largest_page_fits_a_packet() -> None:
    row = live_request(
        "r" * 128,
        model="\U0001f600" * 64,
        key="\U0001f600" * 64,
        workers=list(range(1000, 1016)),
        prompt_tokens=1 << 40,
        prompt_done=1 << 40,
        tokens_out=1 << 40,
        starts_in_s=1.0,
        ends_in_s=1.0,
        tokens_s=1.0,
    )
    page = control.ToldRequests(1 << 40, (row,) * PAGE, 1 << 40, 1 << 40)
    assert len(msgspec.msgpack.encode(page)) < control.MAX_PACKET
