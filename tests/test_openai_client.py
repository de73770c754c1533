"""The official client against the gateway."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from fake_worker import Script
from http_answers import ENDLESS
from lbhost.board import Wanted, WorkerState
from running_gateway import MODEL, PATIENCE_S, running_gateway, until

pytestmark = [pytest.mark.anyio, pytest.mark.uvloop]


async def test_the_openai_client_chats_streams_and_understands_errors() -> None:
    async with running_gateway(script=Script(cached_tokens=1)) as g:
        base = f"http://127.0.0.1:{g.port}/v1"

        def use() -> None:
            with openai.OpenAI(base_url=base, api_key="x", max_retries=0) as client:
                messages: Any = [{"role": "user", "content": "hello"}]
                answer = client.chat.completions.create(model=MODEL, messages=messages)
                assert answer.choices[0].message.content == "one two three four five"
                assert answer.usage is not None
                assert answer.usage.prompt_tokens_details is not None
                assert answer.usage.prompt_tokens_details.cached_tokens == 1
                with client.chat.completions.create(
                    model=MODEL,
                    messages=messages,
                    stream=True,
                    stream_options={"include_usage": True},
                ) as chunks:
                    pieces = list(chunks)
                assert pieces[-1].usage is not None
                text = "".join(c.choices[0].delta.content or "" for c in pieces if c.choices)
                assert text == "one two three four five"
                plain = client.completions.create(model=MODEL, prompt="x", max_tokens=2)
                assert plain.choices[0].text == "one two"
                assert [model.id for model in client.models.list()] == [MODEL]
                with pytest.raises(openai.NotFoundError) as missing:
                    client.models.retrieve("gpt")
                assert missing.value.code == "model_not_found"
                with pytest.raises(openai.BadRequestError) as bad:
                    client.chat.completions.create(model=MODEL, messages=messages, temperature=9)
                assert bad.value.param == "temperature"

        await asyncio.to_thread(use)


async def test_the_openai_client_raises_when_a_stream_is_cut() -> None:
    async with running_gateway(script=ENDLESS) as g:
        base = f"http://127.0.0.1:{g.port}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="x", max_retries=0) as client:
            chunks = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "x"}], stream=True
            )

            async def read_on() -> None:
                async for chunk in chunks:
                    if chunk.choices[0].delta.content:
                        g.workers[0].set_state(WorkerState.FAILED, Wanted.DOWN)
                        g.workers[0].die()

            with pytest.raises(openai.APIError, match="no worker is ready"):
                await read_on()


async def test_the_openai_client_comes_back_after_a_429() -> None:
    async with running_gateway(slots=4, queue_size=1) as g:
        (fake,) = g.workers
        fake.hold()
        waiting = [asyncio.create_task(g.chat()) for _ in range(5)]
        await until(lambda: g.served.dispatcher.queue_depth == 1, "the queue is full")
        base = f"http://127.0.0.1:{g.port}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="x", max_retries=2) as client:
            late = asyncio.create_task(
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "x"}]
                )
            )

            async def refused() -> bool:
                text = (await g.client.get("/metrics")).text
                return 'lbhost_requests_total{outcome="queue_full"}' in text

            async with asyncio.timeout(PATIENCE_S):
                while not await refused():
                    await asyncio.sleep(0.05)
            fake.release()
            answer = await late
        assert answer.choices[0].message.content == "one two three four five"
        await asyncio.gather(*waiting)
