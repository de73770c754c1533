"""A real server with a real embedding model: the official client, kills, drains, wrong routes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import httpx2
import numpy as np
import openai
import pytest

import tiny_bert
from lbhost.status import Status
from llama_cpp_vectors import SHARED, Reference, Vector, cosine
from serving import PATIENCE_S, Server

pytestmark = pytest.mark.e2e

NAME = "embedder"
TEXTS = [f"text {i}: the cat sat on mat number {i * 7}." for i in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM where it lies beside the checkout, else a tiny one."""
    if SHARED.exists():
        return SHARED
    return tiny_bert.write(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def reference(model: Path) -> Iterator[list[Vector]]:
    """llama.cpp's own vectors of TEXTS."""
    made = Reference(model)
    yield [made.vector(made.tokens(text)) for text in TEXTS]
    made.close()


@pytest.fixture(scope="module")
def shared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("run")
    flags = ("--model", str(model), "--alias", NAME, "--workers", "2")
    with Server(folder / "lbhost", *flags) as server:
        yield server


def embed(server: Server, given: Any, **fields: Any) -> httpx2.Response:
    return server.http.post("/v1/embeddings", json={"input": given, **fields})


def like(answer: httpx2.Response, reference: list[Vector]) -> bool:
    """Whether these are the reference's vectors, each in its place."""
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    vectors = [np.array(one["embedding"], np.float32) for one in data]
    for vector in vectors:
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
    return all(
        cosine(mine, theirs) > 0.999 for mine, theirs in zip(vectors, reference, strict=True)
    )


def test_the_official_client_gets_the_vectors_that_llama_cpp_computes(
    shared: Server, reference: list[Vector]
) -> None:
    with openai.OpenAI(
        base_url=f"{shared.endpoint}/v1", api_key="x", max_retries=0, timeout=PATIENCE_S
    ) as client:
        answer = client.embeddings.create(model=NAME, input=TEXTS)  # in base64: its default
        assert [one.index for one in answer.data] == list(range(len(TEXTS)))
        for one, theirs in zip(answer.data, reference, strict=True):
            assert cosine(np.array(one.embedding, np.float32), theirs) > 0.999
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS)
        short = client.embeddings.create(model=NAME, input="hello", dimensions=8)
        assert len(short.data[0].embedding) == 8
        with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
            client.chat.completions.create(
                model=NAME, messages=[{"role": "user", "content": "hello"}]
            )
        with pytest.raises(openai.NotFoundError, match=NAME):
            client.embeddings.create(model="other", input="hello")


def test_many_clients_at_once_get_their_own_vectors(
    shared: Server, reference: list[Vector]
) -> None:
    asked = [shared.later(embed, shared, text) for text in TEXTS]
    for one, theirs in zip(asked, reference, strict=True):
        assert like(one.result(PATIENCE_S), [theirs])


def test_status_metrics_and_pages_are_true_for_an_embedding_server(shared: Server) -> None:
    embed(shared, TEXTS)
    status = shared.wait(
        lambda status: status.traffic.prompt_tokens_s > 0, "the tokens of the inputs are counted"
    )
    assert status.kind == "embedding"

    def each_has_computed(status: Status) -> bool:
        for one in [shared.later(embed, shared, TEXTS) for _ in range(8)]:
            one.result(PATIENCE_S)
        return all(worker.prefill_tok_s for worker in status.workers)

    shared.wait(each_has_computed, "each worker's speed is measured")
    assert all(worker.kv_total == 0 for worker in status.workers)
    assert status.states.entries == 0
    metrics = shared.http.get("/metrics").text
    assert "lbhost_inputs_total" in metrics
    assert shared.cli("status").returncode == 0


def test_a_killed_worker_costs_no_vector(shared: Server, reference: list[Vector]) -> None:
    asked = [shared.later(embed, shared, TEXTS) for _ in range(8)]
    pid = shared.worker(0).pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    for one in asked:
        assert like(one.result(PATIENCE_S), reference)
    shared.wait(lambda s: s.state == "ready" and s.workers[0].pid != pid, "it is replaced")


def test_a_drain_under_load_fails_nothing(shared: Server, reference: list[Vector]) -> None:
    asked = [shared.later(embed, shared, TEXTS) for _ in range(8)]
    assert shared.cli("drain", "1").returncode == 0
    assert shared.cli("resume", "1").returncode == 0
    for one in asked:
        assert like(one.result(PATIENCE_S), reference)


def test_a_reranker_orders_documents_as_llama_cpp_scores_them(tmp_path: Path) -> None:
    path = tiny_bert.write(tmp_path / "rank.gguf", gguf.PoolingType.RANK)
    query, documents = "a cat", ["the cat sat", "dogs", "a mat, a cat", "zebra 9"]
    reference = Reference(path)
    asked = [one for one in reference.tokens(query) if one != tiny_bert.SEP]
    scores: list[float] = []
    for document in documents:
        told = [one for one in reference.tokens(document) if one != tiny_bert.CLS]
        scores.append(float(reference.vector([*asked, tiny_bert.SEP, *told], 1)[0]))
    reference.close()
    best_first = sorted(range(len(documents)), key=lambda i: -scores[i])
    flags = ("--model", str(path), "--alias", NAME, "--workers", "1")
    with Server(tmp_path / "lbhost", *flags) as server:
        body = {"query": query, "documents": documents, "return_documents": True}
        answer = server.http.post("/v1/rerank", json=body)
        assert answer.status_code == 200, answer.text
        results = answer.json()["results"]
        assert [one["index"] for one in results] == best_first
        assert [one["document"]["text"] for one in results] == [documents[i] for i in best_first]
        for one in results:
            logistic = 1 / (1 + np.exp(-scores[one["index"]]))
            assert one["relevance_score"] == pytest.approx(logistic, abs=0.01)
        refused = embed(server, "x")
        assert refused.status_code == 400
        assert "/v1/rerank" in json.dumps(refused.json())
