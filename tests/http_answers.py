"""What tests of the HTTP interface read and check of its answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fake_worker import Script
from running_gateway import CHAT, HELLO, RunningGateway

ENDLESS = Script(answer=lambda _: ["a"] * 2000, step_s=0.005)


async def events(lines: AsyncIterator[str]) -> list[Any]:
    """The payloads of a stream; comments as they are."""
    found: list[Any] = []
    async for line in lines:
        if line.startswith("data: {"):
            found.append(json.loads(line[6:]))
        elif line:
            found.append(line)
    return found


async def stream(gateway: RunningGateway, **fields: Any) -> tuple[list[Any], Any]:
    body = {**HELLO, "stream": True, **fields}
    async with gateway.client.stream("POST", CHAT, json=body) as response:
        return await events(response.aiter_lines()), response


def check_error(response: Any, status: int, code: str | None, param: str | None = None) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    assert (error["code"], error["param"]) == (code, param)
    retryable = status in (429, 503)
    assert ("retry-after" in response.headers) == retryable
    assert response.headers.get("x-should-retry") == (None if retryable else "false")
