"""Requests for embeddings and ranks against a gateway with fake workers."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fake_worker import vector_of
from lbhost import keys, wire
from lbhost.board import WorkerState
from lbhost.gateway.api import vectors as vectors_module
from lbhost.gateway.api.embeddings import MOST_INPUTS
from lbhost.gateway.api.endpoint import LARGE_INPUTS, Completions
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.prompt.inputs import PATHS, Inputs
from lbhost.gateway.scheduling.parts import MOST_PARTS, cut
from lbhost.gateway.vector_cache import FILE
from lbhost.purpose import ModelKind, Pooling, Purpose
from lbhost.wire import pack_tokens
from running_gateway import HELLO, MODEL, N_CTX, RunningGateway, refusal, running_gateway, until

pytestmark = pytest.mark.anyio

EMBEDS = Purpose(ModelKind.EMBEDDING, Pooling.MEAN, 4)
RANKS = Purpose(ModelKind.RERANK, Pooling.RANK, 1)


@asynccontextmanager
async def embedding_gateway(**settings: Any) -> AsyncIterator[RunningGateway]:
    async with running_gateway(**{"purpose": EMBEDS, **settings}) as g:
        yield g


async def embed(g: RunningGateway, given: Any, **fields: Any) -> httpx2.Response:
    return await g.client.post("/v1/embeddings", json={"input": given, **fields})


def vectors(answer: httpx2.Response) -> list[list[float]]:
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    return [one["embedding"] for one in data]


def expected(text: str) -> Any:
    return pytest.approx(vector_of(list(text.encode())), abs=1e-6)


async def test_texts_and_tokens_become_vectors_in_their_order() -> None:
    async with embedding_gateway() as g:
        one = await embed(g, "hello")
        assert vectors(one) == [expected("hello")]
        assert one.json()["model"] == MODEL
        assert one.json()["object"] == "list"
        assert one.json()["usage"]["prompt_tokens"] == 5
        assert one.json()["usage"]["total_tokens"] == 5
        assert one.headers["x-lbhost-worker"] == "0"
        texts = ["hello", "world wide", "x"]
        assert vectors(await embed(g, texts)) == [expected(text) for text in texts]
        assert vectors(await embed(g, list(b"hello"))) == [expected("hello")]
        lists = [list(text.encode()) for text in texts]
        assert vectors(await embed(g, lists)) == [expected(text) for text in texts]
        assert vectors(await embed(g, ["hello", list(b"x")])) == [expected("hello"), expected("x")]


async def test_base64_is_the_same_numbers() -> None:
    async with embedding_gateway() as g:
        answer = await embed(g, "hello", encoding_format="base64")
        packed = base64.b64decode(vectors(answer)[0])  # type: ignore[arg-type]
        assert list(struct.unpack("<4f", packed)) == expected("hello")


async def test_fewer_dimensions_are_brought_to_length_one_again() -> None:
    async with embedding_gateway() as g:
        a, b, *_ = vector_of(list(b"hello"))
        length = (a * a + b * b) ** 0.5
        short = vectors(await embed(g, "hello", dimensions=2))
        assert short == [pytest.approx([a / length, b / length], abs=1e-6)]
        assert vectors(await embed(g, "hello", dimensions=4)) == [expected("hello")]
        error = refusal(await embed(g, "hello", dimensions=5))
        assert error["param"] == "dimensions"
        assert "4" in error["message"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "input: must not be empty"),
        ([], "input: must not be empty"),
        ([[]], "input[0]: must not be empty"),
        (["a", "b", ""], "input[2]: must not be empty"),
        ([1, 2, 9999], "input: token ids are whole numbers"),
        (["a", [1, -2]], "input[1]: token ids are whole numbers"),
        (["a", 5], "input[1]: a text or a list"),
        ([["a"]], "input"),
        (["x"] * (MOST_INPUTS + 1), f"at most {MOST_INPUTS} inputs"),
        (None, "input"),
        ({"text": "x"}, "input"),
    ],
)
async def test_bad_input_is_named(given: Any, says: str) -> None:
    async with embedding_gateway() as g:
        error = refusal(await embed(g, given))
        assert error["param"] == "input"
        assert says in error["message"]
        assert not g.workers[0].embeds


@pytest.mark.parametrize("where", ["inline", "helper"])
async def test_an_input_that_is_too_long_is_named(where: str) -> None:
    async with embedding_gateway() as g:
        long = "x" * (N_CTX + 1)
        given = ["short", long] if where == "inline" else ["short", "y" * N_CTX, long * 3, "z"]
        error = refusal(await embed(g, given))
        index = 1 if where == "inline" else 2
        assert f"input[{index}]: " in error["message"]
        assert f"at most {N_CTX} tokens" in error["message"]
        assert error["code"] == "context_length_exceeded"
        error = refusal(await embed(g, [[1], [1] * (N_CTX + 1)]))
        assert (
            f"input[1]: an input has at most {N_CTX} tokens here; it has {N_CTX + 1}"
            in (error["message"])
        )


async def test_a_long_body_is_prepared_in_a_helper() -> None:
    async with embedding_gateway() as g:
        texts = [f"text number {i} " * 10 for i in range(200)]
        assert vectors(await embed(g, texts)) == [expected(text) for text in texts]
        metrics = (await g.client.get("/metrics")).text
        assert 'lbhost_prompt_helper_jobs_total{outcome="prepared"} 1.0' in metrics


async def test_a_list_is_split_over_the_workers_and_comes_back_in_order() -> None:
    async with embedding_gateway(workers=3) as g:
        texts = [f"{i} " * (i % 50 + 1) for i in range(100)]
        assert vectors(await embed(g, texts)) == [expected(text) for text in texts]
        shares = [sum(len(one.lengths) for one in fake.embeds) for fake in g.workers]
        assert sum(shares) == len(texts)
        assert min(shares) > 0
        assert sum(len(fake.embeds) for fake in g.workers) <= MOST_PARTS + 1


async def test_vectors_that_fill_many_frames_come_back_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "VECTORS_BYTES", 10)  # amid a number
    async with embedding_gateway(workers=1) as g:
        texts = [f"text {i}" for i in range(30)]
        assert vectors(await embed(g, texts)) == [expected(text) for text in texts]


async def test_large_answers_are_written_one_at_a_time_and_small_ones_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written, goes_on = vectors_module.body, asyncio.Event()
    at_once, most = 0, 0

    async def body(kind: Kind, inputs: Inputs, *args: Any, **more: Any) -> bytes:
        nonlocal at_once, most
        if len(inputs.each()) <= LARGE_INPUTS:
            return await written(kind, inputs, *args, **more)
        at_once += 1
        most = max(most, at_once)
        await goes_on.wait()
        at_once -= 1
        return await written(kind, inputs, *args, **more)

    turn, waiting = Completions._take_turn, 0

    async def take_turn(endpoint: Completions, *args: Any) -> None:
        nonlocal waiting
        waiting += 1
        await turn(endpoint, *args)
        waiting -= 1

    monkeypatch.setattr(vectors_module, "body", body)
    monkeypatch.setattr(Completions, "_take_turn", take_turn)
    texts = [f"text {i}" for i in range(LARGE_INPUTS + 1)]
    async with embedding_gateway() as g:
        large = [asyncio.create_task(embed(g, texts)) for _ in range(3)]
        await until(lambda: at_once, "one is being written")
        assert vectors(await embed(g, "hello")) == [expected("hello")]
        await until(lambda: waiting == 2, "the others wait, to look theirs up or to write them")
        goes_on.set()
        for answer in await asyncio.gather(*large):
            assert vectors(answer) == [expected(text) for text in texts]
    assert most == 1


async def test_large_requests_that_wait_for_their_turn_are_as_many_as_may_wait_in_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written, goes_on = vectors_module.body, asyncio.Event()
    asked: list[tuple[float, ...]] = []

    async def body(*args: Any, **more: Any) -> bytes:
        await goes_on.wait()
        return await written(*args, **more)

    turn = Completions._take_turn

    async def take_turn(endpoint: Completions, *args: Any) -> None:
        asked.append(args[3:])
        await turn(endpoint, *args)

    monkeypatch.setattr(vectors_module, "body", body)
    monkeypatch.setattr(Completions, "_take_turn", take_turn)
    texts = [f"text {i}" for i in range(LARGE_INPUTS + 1)]
    async with embedding_gateway(queue_size=1, queue_timeout_s=55) as g:
        large = [asyncio.create_task(embed(g, texts))]
        await until(lambda: len(asked) == 2, "it is being written")
        large.append(asyncio.create_task(embed(g, texts)))
        await until(lambda: len(asked) == 3, "another waits for its turn")
        refused = await embed(g, texts)
        assert refusal(refused, 429)["code"] == "queue_full"
        assert refused.headers["retry-after"] == "1"
        goes_on.set()
        for answer in await asyncio.gather(*large):
            assert len(vectors(answer)) == len(texts)
        flex = await embed(g, texts, service_tier="flex")
        assert len(vectors(flex)) == len(texts)
    usual = (1, 55)
    # What was computed waits to be written for as long as its time limit lets it.
    assert asked == [usual, (), usual, usual, (), (1, math.inf), ()]


async def test_what_a_lost_worker_had_is_computed_elsewhere() -> None:
    async with embedding_gateway(workers=2) as g:
        first, second = g.workers
        first.hold()
        second.hold()
        texts = [f"text {i} " * 20 for i in range(30)]
        asked = asyncio.create_task(embed(g, texts))
        await until(lambda: first.embeds and second.embeds, "both have a part")
        first.set_state(WorkerState.STARTING)
        first.die()
        second.release()
        assert vectors(await asked) == [expected(text) for text in texts]


async def test_a_client_that_leaves_is_computed_for_no_more() -> None:
    async with embedding_gateway() as g:
        (fake,) = g.workers
        fake.hold()
        asked = asyncio.create_task(embed(g, "hello"))
        await until(lambda: fake.embeds, "the worker has it")
        asked.cancel()
        await until(lambda: fake.cancels, "it is cancelled")


async def test_other_kinds_of_requests_are_told_which_route_to_take() -> None:
    async with embedding_gateway() as g:
        for path, body in (
            ("/v1/chat/completions", HELLO),
            ("/v1/completions", {"prompt": "x"}),
            ("/v1/responses", {"input": "x"}),
            ("/completion", {"prompt": "x"}),
            ("/v1/rerank", {"query": "q", "documents": ["d"]}),
        ):
            error = refusal(await g.client.post(path, json=body))
            assert "/v1/embeddings" in error["message"], path
            assert "'embedding'" in error["message"]
            other = await g.client.post(path, json={**body, "model": "other"})
            assert refusal(other, 404)["code"] == "model_not_found"
        assert refusal(await embed(g, "x", model="other"), 404)["param"] == "model"
        told = await g.client.post("/tokenize", json={"content": "abc"})
        assert told.json() == {"tokens": [97, 98, 99]}


async def test_a_model_that_chats_embeds_nothing() -> None:
    async with running_gateway() as g:
        for path in (path for paths in PATHS.values() for path in paths):
            body = {"input": "x", "query": "q", "documents": ["d"]}
            error = refusal(await g.client.post(path, json=body))
            assert "'chat'" in error["message"]
            assert "/v1/chat/completions" in error["message"]


async def test_they_are_counted_as_any_request() -> None:
    async with embedding_gateway() as g:
        await embed(g, ["hello", "you"])
        metrics = (await g.client.get("/metrics")).text
        assert "lbhost_inputs_total 2.0" in metrics
        assert "lbhost_prompt_tokens_total 8.0" in metrics
        assert 'lbhost_requests_total{outcome="ok"} 1.0' in metrics


async def test_documents_are_ranked_by_their_scores() -> None:
    async with running_gateway(purpose=RANKS) as g:
        body: dict[str, Any] = {"query": "q", "documents": ["aaaa", {"text": "b"}, "cc"]}
        answer = (await g.client.post("/v1/rerank", json=body)).json()
        # the first number of the fake's vector falls with the length
        assert [one["index"] for one in answer["results"]] == [1, 2, 0]
        scores = [one["relevance_score"] for one in answer["results"]]
        assert scores == sorted(scores, reverse=True)
        assert all(0 < score < 1 for score in scores)
        assert "document" not in answer["results"][0]
        assert answer["model"] == MODEL
        assert answer["usage"]["prompt_tokens"] == 4 + 1 + 2 + 3 * 2
        (embedded,) = g.workers[0].embeds
        assert embedded.tokens.startswith(pack_tokens(list(b"q\naaaa")))
        body |= {"top_n": 1, "return_documents": True}
        best = (await g.client.post("/rerank", json=body)).json()["results"]
        assert [(one["index"], one["document"]) for one in best] == [(1, {"text": "b"})]


async def test_a_tier_above_the_keys_is_refused_though_the_vectors_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "keys.toml"
    keys.add(file, "alice", "sk-alice")
    async with embedding_gateway(embedding_cache="16M", keys_file=str(file)) as g:
        g.client.headers["authorization"] = "Bearer sk-alice"
        assert vectors(await embed(g, "hello")) == [expected("hello")]
        refused = refusal(await embed(g, "hello", service_tier="priority"), 403)
        assert refused["param"] == "service_tier"


async def test_what_was_asked_before_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for first in (True, False):  # the second gateway finds what the first one has kept
        async with embedding_gateway(embedding_cache="16M") as g:
            (fake,) = g.workers
            answer = await embed(g, ["hello", "you", "hello"])
            assert vectors(answer) == [expected("hello"), expected("you"), expected("hello")]
            usage = answer.json()["usage"]
            assert usage["prompt_tokens"] == 13
            cached = {"cached_tokens": 0, "cached_inputs": 0}
            if not first:
                cached = {"cached_tokens": 13, "cached_inputs": 3}
            assert usage["prompt_tokens_details"] == cached
            assert [one.lengths for one in fake.embeds] == ([(5, 3)] if first else [])
            answer = await embed(g, ["you", "new"], encoding_format="base64", dimensions=3)
            assert answer.json()["usage"]["prompt_tokens_details"]["cached_inputs"] == 1 + (
                not first
            )
            metrics = (await g.client.get("/metrics")).text
            hits = 1 if first else 5
            assert f"lbhost_embedding_cache_hits_total {hits}.0" in metrics
            assert 'lbhost_requests_total{outcome="ok"} 2.0' in metrics
    assert (tmp_path / "lbhost" / FILE).exists()


@pytest.mark.parametrize(
    ("changed", "param", "says"),
    [
        ({"query": ""}, "query", "length"),
        ({"query": None}, "query", "expected str"),
        ({"documents": []}, "documents", "length"),
        ({"documents": ["a", ""]}, "documents", "documents[1]: must not be empty"),
        ({"documents": ["a", "b" * 4000]}, "documents", "documents[1]: "),
        ({"query": "q" * 8000}, "query", "query: "),
        ({"top_n": 0}, "top_n", ">= 1"),
    ],
)
async def test_bad_documents_are_named(changed: dict[str, Any], param: str, says: str) -> None:
    async with running_gateway(purpose=RANKS) as g:
        body = {"query": "q", "documents": ["d"], **changed}
        error = refusal(await g.client.post("/v1/rerank", json=body))
        assert error["param"] == param
        assert says in error["message"]


def test_parts_are_even_whole_and_no_more_than_there_may_be() -> None:
    inputs = [pack_tokens([i] * (i % 40 + 1)) for i in range(300)]
    for workers, most in ((1, 128), (2, 128), (40, 128), (2, 1)):
        works = cut(inputs, rank=1, scope=3, workers=workers, most=most)
        assert b"".join(work.prompt for work in works) == b"".join(inputs)
        assert [n for work in works for n in work.inputs] == [len(one) // 4 for one in inputs]
        assert len(works) <= min(most, max(MOST_PARTS, 2 * workers))
        tokens = [work.prompt_tokens for work in works]
        assert max(tokens) <= sum(tokens) / len(works) + 41
    assert len(cut(inputs[:3], rank=1, scope=0, workers=2, most=128)) == 1
    assert len(cut([pack_tokens([1] * 64)] * 2, rank=1, scope=0, workers=2, most=128)) == 2
