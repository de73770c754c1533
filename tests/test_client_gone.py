"""Clients that hang up before the work for their request begins, and waits that are too long."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from lbhost.errors import DeadlineError, QueueFullError
from lbhost.gateway.api.answer import ClientGoneError
from lbhost.gateway.api.client_watch import Client
from lbhost.gateway.api.endpoint import Completions
from lbhost.gateway.api.replies import Kind
from running_gateway import until

pytestmark = pytest.mark.anyio


class _Visitor:
    """Stays until `left` is set."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.client = Client(self._receive)

    async def _receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}


def _endpoint() -> Completions:
    nobody: Any = None
    return Completions(Kind.EMBEDDINGS, nobody, nobody, nobody, time_limit_s=600, most_answers=1)


def _exchange(age_s: float = 0.0) -> Any:
    body = SimpleNamespace(release=lambda: None)
    return SimpleNamespace(client="", began=time.monotonic() - age_s, body=body)


async def test_who_leaves_once_a_request_is_prepared_ends_nothing_that_is_over() -> None:
    async def take(body: bytes, kind: Kind, client: str) -> bytes:
        return body

    model: Any = SimpleNamespace(
        preparing=Counter(),
        dispatcher=SimpleNamespace(check_open=lambda *_: None),
        intake=SimpleNamespace(take=take),
    )
    visitor = _Visitor()
    prepared: Any = await _endpoint()._prepare(model, b"{}", visitor.client, _exchange())
    assert prepared == b"{}"
    visitor.left.set()
    await visitor.client._task  # raised RuntimeError: the time limit is over already
    assert visitor.client.gone


@pytest.mark.parametrize("limit", ["queue timeout", "time limit"])
async def test_the_turn_of_a_large_request_for_vectors_is_not_waited_for_for_ever(
    limit: str,
) -> None:
    endpoint, visitor = _endpoint(), _Visitor()
    await endpoint._large.acquire()
    more = {"wait_s": 0.0} if limit == "queue timeout" else {}
    exchange = _exchange(601 if limit == "time limit" else 0)
    async with contextlib.AsyncExitStack() as turn:
        with pytest.raises(DeadlineError) as refused:
            await endpoint._take_turn(turn, visitor.client, exchange, **more)
    assert refused.value.retry_after_s
    assert endpoint._waiting == 0
    endpoint._large.release()
    async with contextlib.AsyncExitStack() as turn:
        await endpoint._take_turn(turn, visitor.client, _exchange())
        assert endpoint._large.locked()
    assert not endpoint._large.locked()
    visitor.client.forget()


async def test_who_leaves_while_it_waits_for_its_turn_gives_its_place_back() -> None:
    endpoint, visitor, other = _endpoint(), _Visitor(), _Visitor()
    await endpoint._large.acquire()
    async with contextlib.AsyncExitStack() as turn:
        waits = asyncio.create_task(endpoint._take_turn(turn, visitor.client, _exchange(), 1))
        await until(lambda: endpoint._waiting == 1, "it waits")
        with pytest.raises(QueueFullError):
            await endpoint._take_turn(turn, other.client, _exchange(), 1)
        visitor.left.set()
        with pytest.raises(ClientGoneError):
            await waits
        assert endpoint._waiting == 0
        endpoint._large.release()
        await endpoint._take_turn(turn, other.client, _exchange(), 1)
        with pytest.raises(ClientGoneError):  # which is free for nobody who has left
            await endpoint._take_turn(turn, visitor.client, _exchange(), 1)
    assert not endpoint._large.locked()
    other.client.forget()
