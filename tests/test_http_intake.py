"""What the gateway does with a request before it has a place: long bodies, time, the queue."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from http_answers import check_error
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.prompt.intake import INLINE_BYTES
from lbhost.gateway.prompt.preparation import Preparation, Taken
from running_gateway import CHAT, HELLO, PATIENCE_S, running_gateway, until
from toy_vocab import ToyVocab

pytestmark = [pytest.mark.anyio, pytest.mark.uvloop]


class SlowVocab(ToyVocab):
    """Takes its time for long texts: until a file appears."""

    def __init__(self, go_on: Path) -> None:
        super().__init__()
        self._go_on = go_on

    def tokenize(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]:
        deadline = time.monotonic() + PATIENCE_S
        while len(text) > 10_000 and not self._go_on.exists():
            assert time.monotonic() < deadline, "nothing else went on meanwhile"
            time.sleep(0.01)
        return super().tokenize(text, add_bos=add_bos, parse_special=parse_special)


async def test_a_long_body_is_worked_on_beside_the_event_loop(tmp_path: Path) -> None:
    go_on = tmp_path / "go on"
    async with running_gateway(vocab=SlowVocab(go_on)) as g:
        long = asyncio.create_task(g.chat(messages=[{"role": "user", "content": "x" * 30_000}]))
        await until(lambda: g.gateway.server.connections, "it has come")
        for _ in range(3):
            assert (await g.chat()).status_code == 200
        assert not long.done()
        go_on.touch()
        check_error(await long, 400, "context_length_exceeded", "messages")


async def test_a_long_body_is_not_even_parsed_in_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However little there is to tokenise: helpers are processes, so what is seen here is ours."""
    parsed: list[int] = []
    prepare = Preparation.prepare

    def seen(self: Preparation, body: bytes, kind: Kind) -> Any:
        parsed.append(len(body))
        return prepare(self, body, kind)

    monkeypatch.setattr(Preparation, "prepare", seen)
    async with running_gateway() as g:
        for padding in ("", "x" * INLINE_BYTES):
            assert (await g.chat(padding=padding)).status_code == 200
    assert len(parsed) == 1
    assert parsed[0] <= INLINE_BYTES


class StuckIntake:
    """In place of Intake.take: never done, and knows how often it was given up."""

    def __init__(self) -> None:
        self.taken = 0
        self.given_up = 0

    async def take(self, body: bytes, kind: Kind, client: str = "") -> Taken:
        self.taken += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        raise AssertionError("nobody sets it")


async def test_intake_of_clients_that_leave_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_gateway() as g:
        stuck = StuckIntake()
        with monkeypatch.context() as patch:
            patch.setattr(g.served.intake, "take", stuck.take)
            gone = [asyncio.create_task(g.chat()) for _ in range(20)]
            await until(lambda: stuck.taken == 20, "all are being read")
            for task in gone:
                task.cancel()
            await until(lambda: stuck.given_up == 20, "all are given up")
        assert g.gateway.server.budget.used == 0
        assert (await g.chat()).status_code == 200


async def test_intake_ends_with_the_requests_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_gateway(request_timeout_s=0.2) as g:
        stuck = StuckIntake()
        monkeypatch.setattr(g.served.intake, "take", stuck.take)
        check_error(await g.chat(), 503, "deadline_exceeded")
        assert stuck.given_up == 1
        assert g.gateway.server.budget.used == 0


async def test_a_requests_time_begins_with_its_head_not_with_its_body() -> None:
    async with running_gateway() as g:
        reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
        body = json.dumps(HELLO).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        try:
            with capture_logs() as lines:
                writer.write(head.encode())
                await until(lambda: g.gateway.server.server_state.tasks, "its head is there")
                began = time.monotonic()
                await until(lambda: time.monotonic() > began + 0.3, "a slow body takes a while")
                writer.write(body)
                async with asyncio.timeout(PATIENCE_S):
                    await reader.read()
                await until(lambda: [x for x in lines if x["event"] == "request"], "it is logged")
        finally:
            writer.close()
        (line,) = [x for x in lines if x["event"] == "request"]
        assert line["ttft_ms"] >= 300
        assert line["duration_ms"] >= line["ttft_ms"]


async def test_nobody_gets_ahead_in_the_queue_by_sending_slowly() -> None:
    async with running_gateway(workers=0) as g:
        fake = await g.add(slots=1)
        fake.hold()
        first = asyncio.create_task(g.chat(max_tokens=1))
        await until(lambda: fake.submits, "the slot is taken")
        reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
        body = json.dumps({**HELLO, "max_tokens": 2, "seed": 2}).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        try:
            writer.write(head.encode() + body[:5])
            tasks = g.gateway.server.server_state.tasks
            await until(lambda: len(tasks) == 2, "the slow one's head is there")
            quick = asyncio.create_task(g.chat(max_tokens=2, seed=1))
            await until(lambda: g.served.dispatcher.queue_depth == 1, "a quick one waits")
            writer.write(body[5:])
            await until(lambda: g.served.dispatcher.queue_depth == 2, "both wait")
            fake.release()
            await asyncio.gather(first, quick)
            async with asyncio.timeout(PATIENCE_S):
                await reader.read()
        finally:
            writer.close()
        assert [submit.sampling.seed for submit in fake.submits[1:]] == [1, 2]
