"""One real server with two chat models and an embedding model: together under load, and through
kills, drains and a reload."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

import tiny_bert
from greedy import check_stream, undisturbed
from lbhost.status import Status, WorkerStatus
from llama_cpp_vectors import SHARED
from serving import PATIENCE_S, Server

pytestmark = pytest.mark.e2e

CHATS = ("first", "second")
VECTORS = "vectors"
TEXTS = [f"text {i}: the cat sat on mat number {i * 7}." for i in range(20)]
PROMPTS = ("The history of Rome begins", "Once there was a fox that")
TOKENS = 150

Events = list[dict[str, Any]]


class Box:
    """The server and its lbhost.toml."""

    def __init__(self, server: Server, config: Path) -> None:
        self.server = server
        self.config = config
        fields = {"max_tokens": TOKENS, "ignore_eos": True}
        self.whole = {
            (name, prompt): undisturbed(server, prompt, model=name, **fields)
            for name in CHATS
            for prompt in PROMPTS
        }

    def load(self) -> Load:
        """A stream of each prompt on each chat model, and embeddings all the while."""
        server, fields = self.server, {"max_tokens": TOKENS, "ignore_eos": True}
        streams = {
            (name, prompt): server.later(server.stream, prompt, model=name, **fields)
            for name, prompt in self.whole
        }
        embedded = [server.later(self._embed_until, list(streams.values())) for _ in range(2)]
        load = Load(self, streams, embedded)
        server.wait(lambda s: busy(s, "first") and busy(s, "second"), "both chat models compute")
        return load

    def _embed_until(self, streams: list[Future[Events]]) -> list[httpx2.Response]:
        """One text after the other, for as long as a stream is on its way."""
        answers: list[httpx2.Response] = []
        while not answers or not all(stream.done() for stream in streams):
            answers.append(self.embed(TEXTS[len(answers) % len(TEXTS)]))
        return answers

    def embed(self, given: Any) -> httpx2.Response:
        return self.server.http.post("/v1/embeddings", json={"model": VECTORS, "input": given})


class Load:
    """Requests that are on their way."""

    def __init__(
        self,
        box: Box,
        streams: dict[tuple[str, str], Future[Events]],
        embedded: list[Future[list[httpx2.Response]]],
    ) -> None:
        self._box = box
        self._streams = streams
        self._embedded = embedded

    def check(self) -> None:
        """None has failed, and each stream says what it says when nobody disturbs it."""
        for key, future in self._streams.items():
            events = future.result(PATIENCE_S)
            check_stream(events, self._box.whole[key])
            assert {event["model"] for event in events if "model" in event} == {key[0]}
        for some in self._embedded:
            for answer in some.result(PATIENCE_S):
                assert answer.status_code == 200, answer.text
                assert answer.json()["model"] == VECTORS


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("several")
    vectors = SHARED if SHARED.exists() else tiny_bert.write(folder / "tiny.gguf")
    config = folder / "lbhost.toml"
    config.write_text(
        f"""
ctx_size = 512
embedding_cache = 0
[[models]]
name = "first"
aliases = ["gpt"]
path = "starter"
workers = 2
[[models]]
name = "second"
path = "starter"
workers = 1
[[models]]
name = "{VECTORS}"
path = "{vectors}"
workers = 1
ctx_size = 256
"""
    )
    with Server(folder / "run", "--config", str(config)) as server:
        yield Box(server, config)


def workers_of(status: Status, model: str) -> list[WorkerStatus]:
    return [worker for worker in status.workers if worker.model == model]


def busy(status: Status, model: str) -> int:
    return sum(worker.slots_busy for worker in workers_of(status, model))


def replaced(status: Status, pid: int, model: str) -> bool:
    """Whether the worker of that pid has a successor."""
    found = workers_of(status, model)
    return all(worker.state == "ready" and worker.pid not in (pid, None) for worker in found)


def test_the_official_client_uses_each_by_its_name(shared: Box) -> None:
    with openai.OpenAI(
        base_url=f"{shared.server.endpoint}/v1", api_key="x", max_retries=0, timeout=PATIENCE_S
    ) as client:
        assert [one.id for one in client.models.list()] == [*CHATS, VECTORS]
        for name in (*CHATS, "gpt"):
            said = client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": "hello"}], max_tokens=4
            )
            assert said.model == {"gpt": "first"}.get(name, name)
        vectors = client.embeddings.create(model=VECTORS, input=["hello", "hello", "world"]).data
        assert vectors[0].embedding == vectors[1].embedding != vectors[2].embedding
        with pytest.raises(openai.NotFoundError, match="'second'"):
            client.embeddings.create(model="third", input="hello")
        with pytest.raises(openai.BadRequestError, match="/v1/embeddings"):
            client.chat.completions.create(
                model=VECTORS, messages=[{"role": "user", "content": "hello"}]
            )


def test_a_killed_worker_of_each_model_costs_nobody_anything(shared: Box) -> None:
    load = shared.load()
    for model in (*CHATS, VECTORS):
        (victim, *_) = workers_of(shared.server.status(), model)
        assert victim.pid is not None
        pid = victim.pid
        os.kill(pid, signal.SIGKILL)
        shared.server.wait(lambda s, pid=pid, of=model: replaced(s, pid, of), "it is replaced")  # type: ignore[misc]
    load.check()
    assert shared.server.status().traffic.errors == 0


def test_a_drain_and_a_rolling_restart_cost_nobody_anything(shared: Box) -> None:
    server = shared.server
    load = shared.load()
    victim = workers_of(server.status(), "first")[0].id
    assert server.admin.post(f"/workers/{victim}/drain").status_code == 200
    assert server.worker(victim).state == "stopped"
    assert server.admin.post(f"/workers/{victim}/resume").status_code == 200
    before = {worker.pid for worker in server.status().workers}
    assert server.admin.post("/workers/restart").status_code == 200
    assert not before & {worker.pid for worker in server.status().workers}
    load.check()


def test_a_reload_changes_the_limits_of_all_under_load(shared: Box) -> None:
    load = shared.load()
    pids = {worker.pid for worker in shared.server.status().workers}
    shared.config.write_text("queue_size = 77\n" + shared.config.read_text())
    answer = shared.server.cli("reload")
    assert answer.returncode == 0, answer.stderr
    load.check()
    assert {worker.pid for worker in shared.server.status().workers} == pids
    text = shared.server.http.get("/metrics").text
    assert [f'lbhost_queue_limit{{model="{name}"}} 77.0' in text for name in CHATS] == [True, True]


def test_another_server_takes_over_under_load(shared: Box) -> None:
    load = shared.load()
    before = {worker.pid for worker in shared.server.status().workers}
    shared.config.write_text("slots = 3\n" + shared.config.read_text())
    answer = shared.server.cli("reload")
    assert answer.returncode == 0, answer.stderr
    load.check()
    status = shared.server.status()
    assert not before & {worker.pid for worker in status.workers}
    assert [model.slots for model in status.models[:2]] == [3, 3]


def test_status_tells_of_all_models(shared: Box) -> None:
    status = shared.server.status()
    assert [model.name for model in status.models] == [*CHATS, VECTORS]
    assert [len(workers_of(status, name)) for name in (*CHATS, VECTORS)] == [2, 1, 1]
    assert shared.server.cli("status").returncode == 0
