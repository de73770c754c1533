"""The gateway over HTTP: answers, streams, errors, disconnects, stopping, the openai client."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from structlog.testing import capture_logs

from fake_worker import Script
from lbhost.board import Wanted, WorkerState
from lbhost.gateway.api import endpoint as completions
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.prompt.preparation import Taken
from running_gateway import CHAT, HELLO, MODEL, PATIENCE_S, RunningGateway, running_gateway, until
from toy_vocab import ToyVocab

pytestmark = pytest.mark.anyio

ENDLESS = Script(answer=lambda _: ["a"] * 2000, step_s=0.005)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Served on uvloop, debugged on asyncio: both must do."""
    return "asyncio", {"use_uvloop": request.param}


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
    monkeypatch.setattr(completions, "PING_S", 0.02)
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
        await until(lambda: g.gateway.dispatcher.queue_depth == 1, "the queue is full")
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


# --- long bodies ------------------------------------------------------------------------


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


class StuckIntake:
    """In place of Intake.take: never done, and knows how often it was given up."""

    def __init__(self) -> None:
        self.taken = 0
        self.given_up = 0

    async def take(self, body: bytes, kind: Kind) -> Taken:
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
            patch.setattr(g.gateway.intake, "take", stuck.take)
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
        monkeypatch.setattr(g.gateway.intake, "take", stuck.take)
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
            await until(lambda: g.gateway.dispatcher.queue_depth == 1, "a quick one waits")
            writer.write(body[5:])
            await until(lambda: g.gateway.dispatcher.queue_depth == 2, "both wait")
            fake.release()
            await asyncio.gather(first, quick)
            async with asyncio.timeout(PATIENCE_S):
                await reader.read()
        finally:
            writer.close()
        assert [submit.sampling.seed for submit in fake.submits[1:]] == [1, 2]


# --- clients that leave -----------------------------------------------------------------


async def test_a_client_that_leaves_a_stream_frees_its_slot() -> None:
    async with running_gateway(script=ENDLESS) as g:
        body = {**HELLO, "stream": True}
        async with g.client.stream("POST", CHAT, json=body) as response:
            async for _ in response.aiter_raw():
                break
        await until(lambda: g.workers[0].cancels, "the worker is told")
        await until(lambda: g.gateway.dispatcher.in_flight == 0, "its slot is free")


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_client_that_leaves_before_the_first_token_frees_its_slot(streaming: bool) -> None:
    async with running_gateway() as g:
        (fake,) = g.workers
        fake.hold()
        request = asyncio.create_task(g.chat(stream=streaming))
        await until(lambda: fake.submits, "the worker has it")
        request.cancel()
        await until(lambda: fake.cancels, "the worker is told")
        await until(lambda: g.gateway.dispatcher.in_flight == 0, "its slot is free")


async def test_a_client_that_leaves_the_queue_never_reaches_a_worker() -> None:
    async with running_gateway(slots=4) as g:
        (fake,) = g.workers
        fake.hold()
        running = [asyncio.create_task(g.chat()) for _ in range(4)]
        await until(lambda: len(fake.submits) == 4, "all slots are taken")
        queued = asyncio.create_task(g.chat())
        await until(lambda: g.gateway.dispatcher.queue_depth == 1, "it is queued")
        queued.cancel()
        await until(lambda: g.gateway.dispatcher.queue_depth == 0, "it has left the queue")
        fake.release()
        await asyncio.gather(*running)
        assert len(fake.submits) == 4


# --- workers that die -------------------------------------------------------------------


async def test_a_stream_whose_worker_dies_goes_on_elsewhere() -> None:
    words = [f"{i} " for i in range(300)]
    script = Script(answer=lambda _: words, step_s=0.002)
    async with running_gateway(workers=2, script=script) as g:
        body = {**HELLO, "stream": True, "stream_options": {"include_usage": True}}
        async with g.client.stream("POST", CHAT, json=body) as response:
            lines = response.aiter_lines()
            first = json.loads((await anext(lines))[6:])
            next(fake for fake in g.workers if fake.submits).die()
            got = [first, *await events(lines)]
        assert got[-1] == "data: [DONE]"
        deltas = [event["choices"][0]["delta"] for event in got[:-2]]
        assert "".join(delta.get("content") or "" for delta in deltas) == "".join(words)
        assert [delta["role"] for delta in deltas if "role" in delta] == ["assistant"]
        assert got[-2]["usage"]["completion_tokens"] == 300
        assert all(len(fake.submits) == 1 for fake in g.workers)


async def test_a_stream_whose_worker_dies_ends_with_an_error_event_when_none_is_left() -> None:
    async with running_gateway(script=ENDLESS) as g:
        body = {**HELLO, "stream": True}
        async with g.client.stream("POST", CHAT, json=body) as response:
            lines = response.aiter_lines()
            await anext(lines)
            g.workers[0].set_state(WorkerState.FAILED, Wanted.DOWN)
            g.workers[0].die()
            got = await events(lines)
        assert got[-1]["error"]["code"] == "not_ready"
        assert "data: [DONE]" not in got


async def test_answers_not_yet_begun_move_to_another_worker() -> None:
    async with running_gateway(workers=2) as g:
        for fake in g.workers:
            fake.hold()
        requests = [asyncio.create_task(g.chat(stream=i % 2 == 0)) for i in range(6)]
        await until(lambda: sum(len(f.submits) for f in g.workers) == 6, "the workers have them")
        g.workers[0].hang()
        g.workers[0].die()
        g.workers[1].release()
        for response in await asyncio.gather(*requests):
            assert response.status_code == 200
            assert response.headers["x-lbhost-worker"] == "1"
        text = (await g.client.get("/metrics")).text
        assert "lbhost_retries_total 3.0" in text


# --- stopping ---------------------------------------------------------------------------


async def test_stopping_lets_streams_finish_and_refuses_new_requests() -> None:
    async with running_gateway(script=Script(answer=lambda _: ["a"] * 50)) as g:
        (fake,) = g.workers
        fake.hold()
        running = asyncio.create_task(stream(g))
        await until(lambda: fake.submits, "the worker has it")
        g.stop(PATIENCE_S)
        await until(lambda: g.gateway.dispatcher.stopping, "it stops")
        refused = await g.chat()
        check_error(refused, 503, "not_ready")
        assert refused.headers["connection"] == "close"
        check_error(await g.client.get("/readyz"), 503, "not_ready")
        assert (await g.client.get("/livez")).status_code == 200
        fake.release()
        got, _ = await running
        assert got[-1] == "data: [DONE]"
        async with asyncio.timeout(PATIENCE_S):
            await g.task


async def test_streams_still_open_after_the_grace_get_an_error_event() -> None:
    async with running_gateway(script=ENDLESS) as g:
        body = {**HELLO, "stream": True}
        async with g.client.stream("POST", CHAT, json=body) as response:
            lines = response.aiter_lines()
            await anext(lines)
            g.stop(0.0)
            got = await events(lines)
        assert got[-1]["error"]["code"] == "not_ready"
        async with asyncio.timeout(PATIENCE_S):
            await g.task


async def test_the_end_of_the_control_link_is_told() -> None:
    async with running_gateway() as g:
        g.supervisor.shutdown(2)
        async with asyncio.timeout(PATIENCE_S):
            await g.orphaned.wait()
        g.gateway.server.stop()
        async with asyncio.timeout(PATIENCE_S):
            await g.task


# --- the official client ----------------------------------------------------------------


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
                        g.workers[0].die()

            with pytest.raises(openai.APIError, match="died"):
                await read_on()


async def test_the_openai_client_comes_back_after_a_429() -> None:
    async with running_gateway(slots=4, queue_size=1) as g:
        (fake,) = g.workers
        fake.hold()
        waiting = [asyncio.create_task(g.chat()) for _ in range(5)]
        await until(lambda: g.gateway.dispatcher.queue_depth == 1, "the queue is full")
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
