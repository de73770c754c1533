"""The gateway over HTTP: answers, streams, errors."""

from __future__ import annotations

import asyncio

import pytest

from fake_worker import Script
from http_answers import check_error, events, stream
from lbhost.board import WorkerState
from lbhost.gateway.api import answer
from running_gateway import CHAT, HELLO, MODEL, PATIENCE_S, running_gateway, until
from toy_vocab import ToyVocab

pytestmark = [pytest.mark.anyio, pytest.mark.uvloop]


# --- answers ----------------------------------------------------------------------------


async def test_a_chat_answer_has_openais_shape() -> None:
    async with running_gateway(script=Script(cached_tokens=3)) as g:
        response = await g.chat(model=MODEL)
        body = response.json()
        assert response.status_code == 200
        assert response.headers["x-lbhost-worker"] == "0"
        assert body.pop("id").startswith("chatcmpl-")
        assert body.pop("created") > 1_700_000_000
        assert body.pop("system_fingerprint").startswith("lbhost-")
        timings = body.pop("timings")
        assert (timings["cache_n"], timings["predicted_n"]) == (3, 5)
        prompt = len("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n") - 3 * 12 + 3 + 2
        assert body == {
            "object": "chat.completion",
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": "one two three four five",
                        "refusal": None,
                    },
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": 5,
                "total_tokens": prompt + 5,
                "prompt_tokens_details": {"cached_tokens": 3},
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
        }


async def test_a_plain_completion_has_openais_shape() -> None:
    async with running_gateway() as g:
        response = await g.client.post("/v1/completions", json={"prompt": "x", "max_tokens": 3})
        body = response.json()
        assert body["id"].startswith("cmpl-")
        assert body["object"] == "text_completion"
        assert body["choices"] == [
            {"index": 0, "text": "one two three", "logprobs": None, "finish_reason": "length"}
        ]


async def test_a_chat_stream_says_role_text_reason_usage_and_done_in_that_order() -> None:
    async with running_gateway() as g:
        got, response = await stream(g, stream_options={"include_usage": True})
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["x-lbhost-worker"] == "0"
        *chunks, usage, done = got
        assert done == "data: [DONE]"
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == 5
        assert {chunk["id"] for chunk in [*chunks, usage]} == {chunks[0]["id"]}
        assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
        assert all(chunk["usage"] is None for chunk in chunks)
        choices = [chunk["choices"][0] for chunk in chunks]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
        assert choices[-1]["finish_reason"] == "stop"
        assert choices[-1]["delta"] == {}
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        assert text == "one two three four five"


async def test_without_include_usage_there_is_none() -> None:
    async with running_gateway() as g:
        got, _ = await stream(g)
        assert all("usage" not in chunk for chunk in got[:-1])
        assert all(chunk["choices"] for chunk in got[:-1])


async def test_an_answer_without_text_is_a_proper_stream_too() -> None:
    async with running_gateway(script=Script(answer=lambda _: [""])) as g:
        got, _ = await stream(g)
        assert [chunk["choices"][0]["delta"] for chunk in got[:-1]] == [
            {"role": "assistant", "content": ""},
            {},
        ]
        assert got[-1] == "data: [DONE]"


async def test_pings_come_while_a_prompt_is_prefilled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "PING_S", 0.02)
    async with running_gateway() as g:
        (fake,) = g.workers
        fake.hold()
        body = {**HELLO, "stream": True}
        async with g.client.stream("POST", CHAT, json=body) as response:
            lines = response.aiter_lines()
            assert await anext(lines) == ": ping"
            fake.release()
            got = await events(lines)
        assert [line for line in got if line != ": ping"][-1] == "data: [DONE]"


async def test_request_ids_are_made_or_taken_over() -> None:
    async with running_gateway() as g:
        one, two = await g.chat(), await g.chat()
        assert one.headers["x-request-id"] != two.headers["x-request-id"]
        own = await g.client.post(CHAT, json=HELLO, headers={"x-request-id": "mine-1"})
        assert own.headers["x-request-id"] == "mine-1"
        again = await g.client.post(CHAT, json=HELLO, headers={"x-request-id": "mine-1"})
        # What answers and calls are named by is the server's: clients may send an id twice.
        assert own.json()["id"] != again.json()["id"]
        odd = await g.client.post(CHAT, json=HELLO, headers={"x-request-id": "a b" + "c" * 200})
        assert odd.headers["x-request-id"].startswith("req_")


async def test_pages_answer_get_and_head() -> None:
    async with running_gateway() as g:
        for path in ("/v1/models", f"/v1/models/{MODEL}", "/livez", "/readyz", "/health"):
            response = await g.client.get(path)
            head = await g.client.head(path)
            assert (response.status_code, head.status_code) == (200, 200)
            assert head.content == b""
            assert "x-request-id" in response.headers
        assert (await g.client.get("/v1/models")).json()["data"][0]["id"] == MODEL
        assert (await g.client.get("/health")).json() == {"status": "ok"}


# --- errors -----------------------------------------------------------------------------


async def test_errors_have_openais_shape() -> None:
    async with running_gateway() as g:
        check_error(await g.chat(temperature=5), 400, None, "temperature")
        check_error(await g.chat(model="gpt"), 404, "model_not_found", "model")
        check_error(await g.chat(max_tokens=5000), 400, "context_length_exceeded", "max_tokens")
        check_error(await g.client.get("/v1/models/gpt"), 404, "model_not_found", "model")
        check_error(await g.client.get("/nowhere"), 404, "not_found")
        check_error(await g.client.get("/v1/models/"), 404, "model_not_found", "model")
        wrong_method = await g.client.get(CHAT)
        check_error(wrong_method, 405, "method_not_allowed")
        assert wrong_method.headers["allow"] == "POST"
        for kind in ("text/plain", "application/json; charset=utf-16", "multipart/form-data"):
            headers = {"content-type": kind}
            response = await g.client.post(CHAT, content=b"{}", headers=headers)
            check_error(response, 415, "unsupported_media_type")
        zipped = await g.client.post(CHAT, json=HELLO, headers={"content-encoding": "gzip"})
        check_error(zipped, 415, "unsupported_media_type")


async def test_a_template_that_refuses_is_a_422() -> None:
    async with running_gateway(vocab=ToyVocab("{{ raise_exception('no') }}")) as g:
        check_error(await g.chat(), 422, None, "messages")


async def test_an_engine_error_is_a_500_that_is_not_retried() -> None:
    async with running_gateway(script=Script(fail="no KV room")) as g:
        whole = await g.chat()
        check_error(whole, 500, "engine_error")
        assert whole.headers["x-lbhost-worker"] == "0"
        _, response = await stream(g)
        assert response.status_code == 500


async def test_the_api_key_guards_all_but_health() -> None:
    async with running_gateway(api_key="secret-key") as g:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret-key"}):
            for path in ("/v1/models", "/metrics", "/nowhere"):
                response = await g.client.get(path, headers=headers)
                check_error(response, 401, "invalid_api_key")
            check_error(
                await g.client.post(CHAT, json=HELLO, headers=headers), 401, "invalid_api_key"
            )
        right = {"authorization": "Bearer secret-key"}
        assert (await g.client.post(CHAT, json=HELLO, headers=right)).status_code == 200
        for path in ("/livez", "/readyz", "/health"):
            assert (await g.client.get(path)).status_code == 200


async def test_a_full_queue_is_a_429_with_retry_after() -> None:
    async with running_gateway(slots=4, queue_size=1) as g:
        (fake,) = g.workers
        fake.hold()
        waiting = [asyncio.create_task(g.chat()) for _ in range(5)]
        await until(lambda: g.served.dispatcher.queue_depth == 1, "the queue is full")
        check_error(await g.chat(), 429, "queue_full")
        fake.release()
        assert [r.status_code for r in await asyncio.gather(*waiting)] == [200] * 5


async def test_without_a_worker_requests_are_a_503_and_the_server_is_alive() -> None:
    async with running_gateway(workers=0) as g:
        check_error(await g.chat(), 503, "not_ready")
        check_error(await g.client.get("/readyz"), 503, "not_ready")
        check_error(await g.client.get("/health"), 503, "not_ready")
        assert (await g.client.get("/livez")).status_code == 200


async def test_readiness_follows_the_workers() -> None:
    async with running_gateway() as g:
        g.workers[0].set_state(WorkerState.DRAINING)

        async def status() -> int:
            return (await g.client.get("/readyz")).status_code

        async with asyncio.timeout(PATIENCE_S):
            while await status() != 503:
                pass
            g.workers[0].set_state(WorkerState.READY)
            while await status() != 200:
                pass
