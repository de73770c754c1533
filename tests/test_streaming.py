"""Answers on their way to clients that are slow, ended by whatever happens meanwhile. Pure."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lbhost import wire
from lbhost.errors import LbhostError, WorkerLostError
from lbhost.gateway.api.answer import EVENT_BYTES, Answer
from lbhost.gateway.api.chat_reply import ChatReply
from lbhost.gateway.api.generation import Style
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


class Client:
    """Takes all at once."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def send(self, message: Any) -> None:
        self.bodies.append(message.get("body", b""))


class Telling(ChatReply):
    """Says which thread wrote the answer."""

    wrote = 0

    def whole(self, answers: Any, costs: Any) -> bytes:
        self.wrote = threading.get_ident()
        return super().whole(answers, costs)


SCORE = wire.TokenLogprob(5, -1.0, tuple((token, -1.0) for token in range(20)))


def scored(tokens: int) -> TextDelta:
    return TextDelta("x", (5,) * tokens, (SCORE,) * tokens)


@pytest.mark.parametrize(("tokens", "aside"), [(2, False), (100, True)])
async def test_an_answer_with_many_logprobs_is_written_beside_the_event_loop(
    tokens: int, aside: bool
) -> None:
    made = Job(1, Work(wire.pack_tokens([1]), 1, 8, wire.Sampling(), logprobs=20), 0.0)
    made.put(scored(tokens))
    made.end(STOPPED)
    client = Client()
    reply = Telling("id", "toy", Style(logprobs=True), pieces=lambda token: b"%d" % token)
    async with asyncio.timeout(60):
        await Answer(Exchange(NoCounter(), NoBody()), client.send).whole(Group([made]), reply)
    assert (reply.wrote != threading.get_ident()) is aside
    body = json.loads(b"".join(client.bodies))
    assert len(body["choices"][0]["logprobs"]["content"]) == tokens


async def test_a_stream_of_many_answers_is_written_in_parts_that_let_others_work() -> None:
    jobs = [job() for _ in range(20)]
    for made in jobs:
        made.put(scored(20))
        made.end(STOPPED)
    client = Client()
    reply = ChatReply("id", "toy", Style(logprobs=True), pieces=lambda token: b"%d" % token)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    async with asyncio.timeout(60):
        await Answer(Exchange(NoCounter(), NoBody()), client.send).stream(Group(jobs), reply)
    other.cancel()
    assert max(len(body) for body in client.bodies) < 2 * EVENT_BYTES
    assert turns >= len(client.bodies) // 2
    text = b"".join(client.bodies)
    assert text.count(b'"finish_reason":"stop"') == len(jobs)
    assert text.endswith(b"data: [DONE]\n\n")
