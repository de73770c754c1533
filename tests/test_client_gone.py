"""A client that hangs up between the preparation of its request and the work for it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from lbhost.gateway.api.endpoint import Completions, _Client
from lbhost.gateway.api.replies import Kind

pytestmark = pytest.mark.anyio


async def test_who_leaves_once_a_request_is_prepared_ends_nothing_that_is_over() -> None:
    left = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def take(body: bytes, kind: Kind, client: str) -> bytes:
        return body

    nobody: Any = None
    endpoint = Completions(
        Kind.EMBEDDINGS, nobody, nobody, nobody, time_limit_s=600, most_answers=1
    )
    model: Any = SimpleNamespace(
        preparing=Counter(),
        dispatcher=SimpleNamespace(check_open=lambda *_: None),
        intake=SimpleNamespace(take=take),
    )
    exchange: Any = SimpleNamespace(
        client="", began=time.monotonic(), body=SimpleNamespace(release=lambda: None)
    )
    client = _Client(receive)
    prepared: Any = await endpoint._prepare(model, b"{}", client, exchange)
    assert prepared == b"{}"
    left.set()
    await client._task  # raised RuntimeError: the time limit is over already
    assert client.gone
