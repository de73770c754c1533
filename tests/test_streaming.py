"""Answers on their way to clients that are slow, ended by whatever happens meanwhile. Pure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from lbhost import wire
from lbhost.errors import LbhostError, WorkerLostError
from lbhost.gateway.api.answer import Answer
from lbhost.gateway.api.chat import ChatReply
from lbhost.gateway.exchange import Exchange
from lbhost.gateway.scheduling.deltas import TextDelta
from lbhost.gateway.scheduling.group import Group
from lbhost.gateway.scheduling.job import Job, Work

pytestmark = pytest.mark.anyio

STOPPED = wire.Finish(wire.FinishReason.STOP, completion_tokens=2)


class NoCounter:
    def count(self, what: str) -> None: ...
    def refused(self, error: LbhostError) -> None: ...


class NoBody:
    def release(self) -> None: ...


class SlowClient:
    """What it was sent; something happens to the job while it keeps one message waiting."""

    def __init__(self, at: int, meanwhile: Callable[[], None]) -> None:
        self.messages: list[dict[str, Any]] = []
        self._at = at
        self._meanwhile = meanwhile

    async def send(self, message: Any) -> None:
        if len(self.messages) == self._at:
            self._meanwhile()
        self.messages.append(message)

    @property
    def text(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


def job() -> Job:
    made = Job(1, Work(wire.pack_tokens([1]), 1, 8, wire.Sampling(), stream=True), 0.0)
    made.put(TextDelta("one", (7,)))
    return made


@pytest.mark.parametrize("at", [0, 1], ids=["headers", "first event"])
@pytest.mark.parametrize("last", ["", " two"])
async def test_a_stream_that_ends_while_the_client_is_slow_still_says_so(
    at: int, last: str
) -> None:
    running = job()

    def finish() -> None:
        running.put(TextDelta(last, (8,)))
        running.end(STOPPED)

    client = SlowClient(at, finish)
    async with asyncio.timeout(60):
        await Answer(Exchange(NoCounter(), NoBody()), client.send).stream(
            Group([running]), ChatReply("id", "toy")
        )
    assert client.text.endswith(b"data: [DONE]\n\n")
    assert b'"finish_reason":"stop"' in client.text
    assert b"one" in client.text
    assert last.encode() in client.text
    more = [message["more_body"] for message in client.messages[1:]]
    assert more == [True] * (len(more) - 1) + [False]


@pytest.mark.parametrize("at", [0, 1], ids=["headers", "first event"])
async def test_a_stream_that_fails_while_the_client_is_slow_still_says_so(at: int) -> None:
    running = job()
    client = SlowClient(at, lambda: running.end(error=WorkerLostError("it died")))
    async with asyncio.timeout(60):
        await Answer(Exchange(NoCounter(), NoBody()), client.send).stream(
            Group([running]), ChatReply("id", "toy")
        )
    assert b"worker_lost" in client.text.rpartition(b"data: ")[2]
    assert client.messages[-1]["more_body"] is False
