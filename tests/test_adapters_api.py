"""LoRA adapters at the gateway, with fake workers: asked for by name, and nobody else's KV."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fake_worker import FakeWorker, Script
from lbhost import keys, wire
from lbhost.adapters import AdapterFile
from lbhost.gateway.prompt.intake import INLINE_BYTES
from lbhost.purpose import GENERATES
from lbhost.weights import FilePart
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

PIRATE, POET = (
    AdapterFile(name, 1.0, FilePart(f"/a/{name}.gguf", 1, number, 3, 4))
    for number, name in enumerate(("pirate", "poet"))
)


@asynccontextmanager
async def adapted(**more: Any) -> AsyncIterator[RunningGateway]:
    """One model with two adapters and a worker, which says with which it computes."""
    script = Script(answer=lambda submit: [f"adapter {submit.adapter}"])
    async with running_gateway(adapters=(PIRATE, POET), script=script, **more) as g:
        yield g


def scopes(worker: FakeWorker) -> list[int]:
    return [submit.scope for submit in worker.submits]


async def test_an_adapter_is_asked_for_as_a_model_is() -> None:
    async with adapted() as g:
        assert await said(g) == ("adapter 0", MODEL)
        assert await said(g, model=MODEL) == ("adapter 0", MODEL)
        assert await said(g, model="pirate") == ("adapter 1", "pirate")
        assert await said(g, model="poet") == ("adapter 2", "poet")
        error = refusal(await g.chat(model="painter"), 404)
        assert error["code"] == "model_not_found"
        assert f"'{MODEL}', 'pirate', 'poet' are" in error["message"]


async def test_every_dialect_knows_them_and_long_bodies_too() -> None:
    async with adapted() as g:
        for path, body in (
            ("/v1/completions", {"prompt": "x"}),
            ("/v1/responses", {"input": "x"}),
            ("/v1/messages", {**HELLO, "max_tokens": 5}),
            (CHAT, {"messages": [{"role": "user", "content": "x"}], "user": "x" * INLINE_BYTES}),
        ):
            answer = await g.client.post(path, json={**body, "model": "poet"})
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == "poet"
            assert "adapter 2" in answer.text
        assert (await g.client.post("/tokenize", json={"model": "poet", "content": "x"})).json()
        refusal(await g.client.post("/v1/embeddings", json={"model": "poet", "input": "x"}), 400)


async def test_each_has_a_scope_of_its_own_whoever_asks(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    names = {f"sk-of-{name}": name for name in ("anna", "bert")}
    tables = [
        f'[[keys]]\nname = "{name}"\nhash = "sha256:{keys.digest(key.encode()).hex()}"\n'
        for key, name in names.items()
    ]
    path.write_text("".join(tables))
    path.chmod(0o600)
    async with adapted() as g:
        for model in (MODEL, "pirate", "poet", "pirate"):
            await said(g, model=model)
        plain, pirate, poet, again = scopes(g.workers[0])
        assert (plain, again) == (0, pirate)
        assert len({plain, pirate, poet}) == 3
    async with adapted(keys_file=str(path)) as g:
        for key in names:
            for model in (MODEL, "pirate", "poet"):
                g.client.headers["authorization"] = f"Bearer {key}"
                await said(g, model=model)
        assert len({0, pirate, poet, *scopes(g.workers[0])}) == 9


async def test_a_key_may_use_those_that_its_table_names(tmp_path: Path) -> None:
    path, key = tmp_path / "keys.toml", "sk-of-somebody"
    digest = f"sha256:{keys.digest(key.encode()).hex()}"
    path.write_text(f'[[keys]]\nname = "anna"\nhash = "{digest}"\nmodels = ["poet"]\n')
    path.chmod(0o600)
    async with adapted(keys_file=str(path)) as g:
        g.client.headers["authorization"] = f"Bearer {key}"
        assert await said(g) == ("adapter 2", "poet"), "the only one that it may use"
        assert await said(g, model="poet") == ("adapter 2", "poet")
        for other in (MODEL, "pirate"):
            assert refusal(await g.chat(model=other), 403)["code"] == "model_not_allowed"
        assert "pirate" not in refusal(await g.chat(model="painter"), 404)["message"]
        listed = (await g.client.get("/v1/models")).json()["data"]
        assert [card["id"] for card in listed] == ["poet"]
        schemas = (await g.client.get("/openapi.json")).json()["components"]["schemas"]
        assert "pirate" not in json.dumps([s.get("properties") for s in schemas.values()])
        metrics = (await g.client.get("/metrics")).text
        assert 'lbhost_adapter_answers_total{adapter="poet"} 2.0' in metrics
        assert "pirate" not in metrics


async def test_the_pages_tell_of_them() -> None:
    async with adapted() as g:
        listed = (await g.client.get("/v1/models")).json()["data"]
        assert [card["id"] for card in listed] == [MODEL, "pirate", "poet"]
        assert [card["meta"].get("base") for card in listed] == [None, MODEL, MODEL]
        assert (await g.client.get("/v1/models/poet")).json() == listed[2]
        assert (await g.client.get("/props?model=poet")).json()["model_alias"] == "poet"
        assert len((await g.client.get("/slots?model=poet")).json()) == 4
        assert len((await g.client.get("/slots")).json()) == 4
        schemas = (await g.client.get("/openapi.json")).json()["components"]["schemas"]
        assert schemas["ChatRequest"]["properties"]["model"]["enum"] == [
            *(MODEL, "pirate", "poet"),
            None,
        ]


async def test_answers_are_counted_by_adapter() -> None:
    async with adapted() as g:
        for model in (MODEL, "poet", "poet"):
            await said(g, model=model)
        text = (await g.client.get("/metrics")).text
        assert 'lbhost_adapter_answers_total{adapter="poet"} 2.0' in text
        assert 'lbhost_adapter_completion_tokens_total{adapter="poet"} 2.0' in text
        assert 'lbhost_requests_total{outcome="ok"} 3.0' in text
        names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(names) == len(set(names))


async def test_two_names_of_one_file_are_one_adapter_and_counted_apart() -> None:
    buccaneer = msgspec.structs.replace(PIRATE, name="buccaneer")
    faint = msgspec.structs.replace(PIRATE, name="faint", scale=0.5)
    script = Script(answer=lambda submit: [f"adapter {submit.adapter}"])
    async with running_gateway(adapters=(PIRATE, POET, buccaneer, faint), script=script) as g:
        said_by = [(await said(g, model=one.name))[0] for one in (PIRATE, buccaneer, POET, faint)]
        assert said_by == ["adapter 1", "adapter 1", "adapter 2", "adapter 3"]
        pirate, same, poet, other = scopes(g.workers[0])
        assert pirate == same
        assert len({pirate, poet, other}) == 3
        text = (await g.client.get("/metrics")).text
        for name in ("pirate", "buccaneer", "faint"):
            assert f'lbhost_adapter_answers_total{{adapter="{name}"}} 1.0' in text


async def test_an_answer_that_nobody_waited_for_is_none() -> None:
    async with running_gateway(adapters=(PIRATE, POET)) as g:
        fake = g.workers[0]
        fake.hold()
        gone = asyncio.create_task(g.chat(model="poet"))
        await until(lambda: bool(fake.submits), "the worker has it")
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await until(lambda: bool(fake.cancels), "the worker is told")
        fake.release()
        await until(lambda: not fake.busy, "it is over")
        await said(g, model="pirate")
        text = (await g.client.get("/metrics")).text
        assert 'lbhost_adapter_answers_total{adapter="pirate"} 1.0' in text
        assert 'adapter="poet"' not in text
        assert 'lbhost_requests_total{outcome="cancelled"} 1.0' in text


async def test_a_request_that_loses_its_worker_goes_on_with_its_adapter() -> None:
    async with running_gateway(adapters=(PIRATE, POET), workers=2) as g:
        for worker in g.workers:
            worker.script.step_s = 0.05
        body = {"model": "poet", "prompt": "x", "ignore_eos": True, "max_tokens": 40}
        running = asyncio.create_task(g.client.post("/v1/completions", json=body))
        await until(lambda: any(w.submits and w.busy for w in g.workers), "a worker has it")
        victim = next(worker for worker in g.workers if worker.submits)
        page = g.page.progress
        await until(lambda: (row := page.read(victim.worker)) and row.tokens_out > 3, "it runs")
        victim.die()
        answer = await running
        assert answer.status_code == 200
        other = next(worker for worker in g.workers if worker is not victim)
        first, then = victim.submits[0], other.submits[0]
        assert (then.adapter, then.scope) == (first.adapter, first.scope) == (2, POET.scope(0))
        assert wire.unpack_tokens(then.done)


async def test_a_broken_models_adapters_are_broken_as_well() -> None:
    more = {"second": GENERATES}
    async with running_gateway(workers=0, adapters=(PIRATE,), more=more, broken=(MODEL,)) as g:
        await g.add(model=1)
        assert (await said(g))[1] == "second"
        for name in (MODEL, "pirate"):
            assert "cannot be loaded" in refusal(await g.chat(model=name), 503)["message"]
