"""One key floods a real server: another key's single request is served all the same."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx2
import pytest

from lbhost import keys
from running_gateway import until
from serving import PATIENCE_S, Server

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.uvloop]

FLOOD = 200


async def test_a_key_that_floods_does_not_keep_another_waiting(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    for name in ("flood", "single"):
        keys.add(path, name, f"key of {name}")
    flags = ("--ctx-size", "512", "--workers", "2", "--slots", "2", "--keys-file", str(path))
    with Server(tmp_path / "run", *flags) as server:
        async with httpx2.AsyncClient(
            base_url=server.endpoint,
            timeout=PATIENCE_S,
            limits=httpx2.Limits(max_connections=FLOOD + 1),
        ) as client:
            statuses: list[int] = []

            async def ask(key: str, prompt: str, tokens: int) -> int:
                answer = await client.post(
                    "/v1/completions",
                    json={"prompt": prompt, "max_tokens": tokens, "ignore_eos": True},
                    headers={"x-api-key": f"key of {key}"},
                )
                return answer.status_code

            async def flood(number: int) -> None:
                """Again and again, as a client does that takes no answer for a no."""
                while True:
                    statuses.append(await ask("flood", f"Number {number}", 48))
                    await asyncio.sleep(2.0)

            tasks = [asyncio.create_task(flood(i)) for i in range(FLOOD)]
            try:
                await until(
                    lambda: statuses.count(200) >= 4 and _queued(server) >= 20, "it is flooded"
                )
                began, before = time.monotonic(), statuses.count(200)
                assert await ask("single", "Alone", 4) == 200
                took_s, meanwhile = time.monotonic() - began, statuses.count(200) - before
                # Behind those that ran already, and beside others; not behind the queue.
                assert meanwhile <= 12, f"{meanwhile} others in {took_s:.1f} s"
                assert _queued(server) >= 12
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def _queued(server: Server) -> int:
    return server.status().traffic.queue_depth
