"""Several models behind one gateway with fake workers: which gets a request, what they share."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fake_worker import Script
from lbhost import control, keys
from lbhost.board import Wanted, WorkerState
from lbhost.gateway.prompt.intake import INLINE_BYTES
from lbhost.purpose import GENERATES, ModelKind, Pooling, Purpose
from running_gateway import (
    CHAT,
    HELLO,
    MODEL,
    RunningGateway,
    refusal,
    running_gateway,
    said,
    until,
)

pytestmark = pytest.mark.anyio

EMBEDS = Purpose(ModelKind.EMBEDDING, Pooling.MEAN, 4)
MORE = {"second": GENERATES, "vectors": EMBEDS}
FIRST, SECOND, VECTORS = range(3)


@asynccontextmanager
async def three(**settings: Any) -> AsyncIterator[RunningGateway]:
    """Two chat models, which say who they are, and an embedding model; a worker each."""
    async with running_gateway(workers=0, more=MORE, aliases=("gpt", "a/b"), **settings) as g:
        for model, word in enumerate((MODEL, "second", "")):
            await g.add(model, model=model, script=says(word))
        yield g


def says(word: str) -> Script:
    return Script(answer=lambda submit: [word])


async def test_a_request_goes_to_the_model_that_it_names() -> None:
    async with three() as g:
        assert await said(g, model="second") == ("second", "second")
        assert await said(g, model=MODEL) == (MODEL, MODEL)
        assert await said(g, model="gpt") == (MODEL, MODEL), "an alias"
        assert await said(g, model="a/b") == (MODEL, MODEL)
        embedded = await g.client.post("/v1/embeddings", json={"model": "vectors", "input": "x"})
        assert embedded.json()["model"] == "vectors"


async def test_one_that_names_none_gets_the_first_that_suits_it() -> None:
    async with three() as g:
        assert await said(g) == (MODEL, MODEL)
        assert await said(g, model=None) == (MODEL, MODEL)
        embedded = await g.client.post("/v1/embeddings", json={"input": "x"})
        assert embedded.json()["model"] == "vectors"
        assert (await g.client.post("/tokenize", json={"content": "x"})).json() == {"tokens": [120]}
        error = refusal(
            await g.client.post("/v1/rerank", json={"query": "x", "documents": []}), 400
        )
        assert error["param"] == "model"


async def test_an_unknown_model_is_a_404_that_names_those_there_are() -> None:
    async with three() as g:
        for path in (CHAT, "/v1/embeddings", "/tokenize"):
            error = refusal(await g.client.post(path, json={"model": "third"}), 404)
            assert (error["code"], error["param"]) == ("model_not_found", "model")
            assert all(repr(name) in error["message"] for name in (MODEL, *MORE))
        error = refusal(await g.client.get("/v1/models/third"), 404)
        assert "'second'" in error["message"]


async def test_a_model_of_the_wrong_kind_is_a_400_in_the_dialects_shape() -> None:
    async with three() as g:
        error = refusal(await g.chat(model="vectors"), 400)
        assert error["param"] == "model"
        assert "/v1/embeddings" in error["message"]
        assert f"'{MODEL}', 'second'" in error["message"], "those that can"
        error = refusal(
            await g.client.post("/v1/embeddings", json={"model": "second", "input": "x"}), 400
        )
        assert "'vectors'" in error["message"]
        answer = await g.client.post("/v1/messages", json={**HELLO, "model": "vectors"})
        assert refusal(answer, 400)["type"] == "invalid_request_error"
        assert answer.json()["type"] == "error"


async def test_a_key_may_use_its_own_models_and_hears_of_no_others(tmp_path: Path) -> None:
    path, key = tmp_path / "keys.toml", "sk-of-somebody"
    digest = f"sha256:{keys.digest(key.encode()).hex()}"
    path.write_text(f'[[keys]]\nname = "anna"\nhash = "{digest}"\nmodels = ["second", "gpt"]\n')
    path.chmod(0o600)
    async with three(keys_file=str(path)) as g:
        g.client.headers["authorization"] = f"Bearer {key}"
        assert (await said(g, model="second"))[1] == "second"
        assert (await said(g, model=MODEL))[1] == MODEL, "by an alias"
        error = refusal(
            await g.client.post("/v1/embeddings", json={"model": "vectors", "input": "x"}), 403
        )
        assert error["code"] == "model_not_allowed"
        assert "vectors" not in refusal(await g.chat(model="third"), 404)["message"]
        # None was named, and none that suits may be used.
        refusal(await g.client.post("/v1/embeddings", json={"input": "x"}), 400)
        listed = (await g.client.get("/v1/models")).json()["data"]
        assert [card["id"] for card in listed] == [MODEL, "second"]
        assert (await g.client.get("/v1/models/vectors")).status_code == 403
        assert (await g.client.get("/props?model=vectors")).status_code == 403
        assert "vectors" not in json.dumps(await names_in_document(g))
        path.write_text(path.read_text().replace('["second", "gpt"]', '["elsewhere"]'))
        g.gateway.keyring.look()
        assert MODEL not in refusal(await g.chat(), 403)["message"]
        assert MODEL not in json.dumps(await names_in_document(g))
        del g.client.headers["authorization"]
        g.workers[VECTORS].set_state(WorkerState.STOPPED)
        await until(lambda: g.gateway.not_ready() is not None, "the gateway has seen it")
        health = await g.client.get("/readyz")
        assert health.status_code == 503
        assert "vectors" not in health.text, "nobody has to show a key to ask that"


async def test_where_nothing_generates_no_memory_is_for_states() -> None:
    async with running_gateway(purpose=EMBEDS, state_cache="1G") as g:
        await until(lambda: (row := g.page.gateway.read(0)) and row.heartbeat_ns, "it writes")
        row = g.page.gateway.read(0)
        assert row is not None
        assert row.state_limit == 0


async def names_in_document(g: RunningGateway) -> list[Any]:
    schemas = (await g.client.get("/openapi.json")).json()["components"]["schemas"]
    return [schema.get("properties", {}).get("model") for schema in schemas.values()]


async def post(g: RunningGateway, body: bytes) -> httpx2.Response:
    return await g.client.post(CHAT, content=body, headers={"content-type": "application/json"})


async def test_of_two_names_in_a_body_the_last_one_counts_everywhere() -> None:
    rest = json.dumps(HELLO).encode()[1:]
    async with three() as g:
        answer = await post(g, b'{"model":"toy","model":"second",' + rest)
        assert answer.json()["model"] == "second"
        answer = await post(g, rb'{"model":"toy","mod\u0065l":"second",' + rest)
        assert answer.json()["model"] == "second"
        refusal(await post(g, b'{"model":"second","model":"third",' + rest), 404)


async def test_long_bodies_are_prepared_by_their_own_models_helper() -> None:
    long = [{"role": "user", "content": "word " * INLINE_BYTES}]
    async with three() as g:
        refused = await g.chat(messages=long, model="second")
        assert refusal(refused, 400)["code"] == "context_length_exceeded"
        text = (await g.client.get("/metrics")).text
        jobs = {
            sample.labels["model"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "lbhost_prompt_helper_jobs_total"
        }
        assert jobs == {"second": 1.0}


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": 5}',
        b'{"model": ["toy"]}',
        b"[]",
        b"{",
        b'{"a": "\xff"}',
        b'{"a":' * 50_000,
        b'{"a": ' + b"[" * 100_000,
    ],
    ids=["number", "list", "no object", "cut off", "no UTF-8", "deep objects", "deep lists"],
)
async def test_a_body_whose_model_cannot_be_read_is_a_400(body: bytes) -> None:
    async with running_gateway(more={"second": GENERATES}) as g:
        error = refusal(await post(g, body), 400)
        assert error["type"] == "invalid_request_error"
        await asyncio.wait_for(g.client.get("/livez"), 60)


async def test_the_pages_tell_of_all_models() -> None:
    async with three() as g:
        listed = (await g.client.get("/v1/models")).json()["data"]
        assert [card["id"] for card in listed] == [MODEL, "second", "vectors"]
        assert listed[0]["meta"]["aliases"] == ["gpt", "a/b"]
        assert listed[2]["meta"]["kind"] == "embedding"
        assert (await g.client.get("/v1/models/a/b")).json() == listed[0]
        assert (await g.client.get("/props")).json()["model_alias"] == MODEL
        assert (await g.client.get("/props?model=second")).json()["model_alias"] == "second"
        assert (await g.client.get("/props?model=third")).status_code == 404
        slots = (await g.client.get("/slots")).json()
        assert [slot["id"] for slot in slots] == list(range(12))
        slots = (await g.client.get("/slots?model=second")).json()
        assert {slot["worker"] for slot in slots} == {SECOND}
        document = (await g.client.get("/openapi.json")).json()
        schemas = document["components"]["schemas"]
        chat = schemas["ChatRequest"]["properties"]["model"]["enum"]
        assert chat == [MODEL, "gpt", "a/b", "second", None]
        assert schemas["EmbeddingRequest"]["properties"]["model"]["enum"] == ["vectors", None]


async def test_series_say_whose_they_are() -> None:
    async with three() as g:
        await said(g, model="second")
        await g.chat(model="third")
        await g.client.post("/v1/nowhere")
        text = (await g.client.get("/metrics")).text
        assert 'lbhost_requests_total{model="second",outcome="ok"} 1.0' in text
        assert 'lbhost_requests_total{outcome="invalid"} 2.0' in text, "of no model"
        assert 'lbhost_queue_depth{model="vectors"} 0.0' in text
        assert 'lbhost_worker_slots{model="second",worker="1"} 4.0' in text
        assert 'vllm:num_requests_running{engine="0",model_name="second"} 0.0' in text
        names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(names) == len(set(names)), "a family is written once"


async def until_status(g: RunningGateway, status: int) -> None:
    async with asyncio.timeout(60.0):
        while (await g.client.get("/readyz")).status_code != status:
            await asyncio.sleep(0.01)


async def test_ready_is_when_every_model_has_a_worker() -> None:
    async with three() as g:
        assert (await g.client.get("/readyz")).status_code == 200
        g.workers[SECOND].set_state(WorkerState.STARTING)
        g.workers[SECOND].die()
        await until(lambda: g.model(SECOND).sessions.current(SECOND) is None, "it is gone")
        answer = await g.client.get("/readyz")
        assert answer.status_code == 503
        assert "'second'" in answer.json()["error"]["message"]
        assert (await said(g))[0] == MODEL, "the others serve"
        g.workers[SECOND].set_state(WorkerState.STOPPED, Wanted.DOWN)
        await until_status(g, 200)  # an operator wants it so
        for fake in g.workers:
            fake.set_state(WorkerState.STOPPED, Wanted.DOWN)
        await until_status(g, 503)


async def test_what_happens_to_one_model_is_nothing_to_the_others() -> None:
    async with three(queue_size=1, slots=1) as g:
        first, second = g.workers[FIRST], g.workers[SECOND]
        first.hold()
        second.hold()
        running = asyncio.create_task(g.chat(model="second"))
        held = [asyncio.create_task(g.chat()) for _ in range(5)]
        served = g.model(FIRST).dispatcher
        await until(lambda: served.in_flight == 4 and served.queue_depth == 1, "one queue is full")
        assert (await g.chat()).status_code == 429
        second.release()
        assert (await running).status_code == 200
        assert (await said(g, model="second"))[0] == "second", "the other's is not"
        helpers = g.model(FIRST).helpers.processes
        await until(lambda: helpers, "it has a helper")
        old = next(iter(helpers.values())).pid
        assert old is not None
        os.kill(old, signal.SIGKILL)
        assert (await said(g, model="second"))[0] == "second"
        first.die()
        new = await g.add(FIRST, epoch=2, script=says("again"))
        for one in held:
            assert (await one).json()["choices"][0]["message"]["content"] == "again"
        assert [len(new.submits), len(second.submits)] == [5, 3]


async def test_the_board_has_a_row_for_each_model_and_their_sum() -> None:
    async with three() as g:
        g.workers[SECOND].hold()
        waiting = asyncio.create_task(g.chat(model="second"))
        await said(g)
        await g.chat(model="third")

        def told() -> bool:
            rows = [g.page.models.read(model) for model in range(3)]
            whole = g.page.gateway.read(0)
            assert whole is not None
            each = [(row.name, row.kind, row.in_flight, row.requests) for row in rows if row]
            return each == [
                (MODEL, "chat", 0, 1),
                ("second", "chat", 1, 0),
                ("vectors", "embedding", 0, 0),
            ] and (whole.in_flight, whole.requests) == (1, 2)

        await until(told, "the rows say so")
        g.workers[SECOND].release()
        assert (await waiting).status_code == 200


async def test_all_models_drain_at_the_end() -> None:
    async with three() as g:
        g.workers[FIRST].hold()
        g.workers[SECOND].hold()
        waiting = [asyncio.create_task(g.chat(model=name)) for name in (MODEL, "second")]
        served = list(g.gateway.models)
        await until(lambda: all(one.dispatcher.in_flight for one in served[:2]), "both run")
        g.stop(60.0)
        await until(lambda: all(one.dispatcher.stopping for one in served), "all drain")
        g.workers[FIRST].release()
        g.workers[SECOND].release()
        assert [(await one).status_code for one in waiting] == [200, 200]


async def test_each_model_gets_its_own_settings() -> None:
    async with three() as g:
        before = g.served.settings
        other = type(before)(queue_size=7, prompt_helpers=1, embedding_cache=0)
        models = (before, other, before)
        control.send(g.supervisor, control.Reconfigure(1, before, models))
        second = g.model(SECOND)
        await until(lambda: second.queue_limit == 7, "they are in force")
        assert g.served.queue_limit == before.queue_size


async def test_one_that_retires_takes_other_settings_still() -> None:
    async with three() as g:
        g.workers[FIRST].hold()
        waiting = asyncio.create_task(g.chat())
        await until(lambda: g.served.dispatcher.in_flight, "it runs")
        control.send(g.supervisor, control.Retire(60.0))
        await until(lambda: g.gateway.closing, "it retires")
        settings = type(g.served.settings)(queue_size=7, prompt_helpers=1, embedding_cache=0)
        control.send(g.supervisor, control.Reconfigure(1, settings))
        await until(lambda: g.gateway.server.settings.queue_size == 7, "they are in force")
        g.workers[FIRST].release()
        assert (await waiting).status_code == 200


# --- a model that cannot be loaded ---------------------------------------------------------


async def test_a_model_that_cannot_be_loaded_is_a_503_and_nothing_to_the_others() -> None:
    async with running_gateway(workers=1, more={"second": GENERATES}, broken=["second"]) as g:
        answer = await g.chat(model="second")
        assert answer.status_code == 503
        assert "'second'" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"] == "5"
        assert (await said(g))[1] == MODEL
        assert (await g.client.get("/readyz")).status_code == 503
        ours, theirs = socket.socketpair()
        control.send(g.supervisor, control.Link(1, 1, SECOND), [theirs.fileno()])
        theirs.close()
        with ours:
            assert await asyncio.to_thread(ours.recv, 1) == b"", "its worker's link is closed"
