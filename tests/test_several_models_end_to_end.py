"""One real server with two chat models and an embedding model: together under load, and through
kills, drains and a reload."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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


class Box:
    """The server and its lbhost.toml."""

    def __init__(self, server: Server, config: Path) -> None:
        self.server = server
        self.config = config
        self.whole = {
            (name, prompt): undisturbed(
                server, prompt, model=name, max_tokens=TOKENS, ignore_eos=True
            )
            for name in CHATS
            for prompt in PROMPTS
        }

    @contextmanager
    def load(self) -> Iterator[None]:
        """Streams of each prompt on each chat model, and embeddings, all the while.

        None fails, and each stream says what it says when nobody disturbs it. They are asked
        again and again: a server that has just been taken over from answers one more request on
        each connection that it has kept, and this one's workers do nothing meanwhile.
        """
        server, over = self.server, threading.Event()
        asked = [server.later(self._streams, *key, over) for key in self.whole]
        asked += [server.later(self._texts, over) for _ in range(2)]
        try:
            server.wait(
                lambda s: all(busy(s, name) for name in CHATS) or any(one.done() for one in asked),
                "both chat models compute",  # or one has failed, which is told below
            )
            yield
        finally:
            over.set()
        for future in asked:
            future.result(PATIENCE_S)

    def _streams(self, model: str, prompt: str, over: threading.Event) -> None:
        while not over.is_set():
            events = self.server.stream(prompt, model=model, max_tokens=TOKENS, ignore_eos=True)
            check_stream(events, self.whole[model, prompt])
            assert {event["model"] for event in events if "model" in event} == {model}

    def _texts(self, over: threading.Event) -> None:
        """One text after the other."""
        for i in itertools.count():
            if over.is_set():
                break
            answer = self.embed(TEXTS[i % len(TEXTS)])
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == VECTORS

    def embed(self, given: Any) -> httpx2.Response:
        return self.server.http.post("/v1/embeddings", json={"model": VECTORS, "input": given})


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
    with shared.load():
        for model in (*CHATS, VECTORS):
            (victim, *_) = workers_of(shared.server.status(), model)
            assert victim.pid is not None
            pid = victim.pid
            os.kill(pid, signal.SIGKILL)
            shared.server.wait(lambda s, pid=pid, of=model: replaced(s, pid, of), "it is replaced")  # type: ignore[misc]
    assert shared.server.status().traffic.errors == 0


def test_a_drain_and_a_rolling_restart_cost_nobody_anything(shared: Box) -> None:
    server = shared.server
    with shared.load():
        victim = workers_of(server.status(), "first")[0].id
        assert server.admin.post(f"/workers/{victim}/drain").status_code == 200
        assert server.worker(victim).state == "stopped"
        assert server.admin.post(f"/workers/{victim}/resume").status_code == 200
        before = {worker.pid for worker in server.status().workers}
        assert server.admin.post("/workers/restart").status_code == 200
        assert not before & {worker.pid for worker in server.status().workers}


def test_a_reload_changes_the_limits_of_all_under_load(shared: Box) -> None:
    with shared.load():
        pids = {worker.pid for worker in shared.server.status().workers}
        shared.config.write_text("queue_size = 77\n" + shared.config.read_text())
        answer = shared.server.cli("reload")
        assert answer.returncode == 0, answer.stderr
    assert {worker.pid for worker in shared.server.status().workers} == pids
    text = shared.server.http.get("/metrics").text
    assert [f'lbhost_queue_limit{{model="{name}"}} 77.0' in text for name in CHATS] == [True, True]


def test_another_server_takes_over_under_load(shared: Box) -> None:
    with shared.load():
        before = {worker.pid for worker in shared.server.status().workers}
        shared.config.write_text("slots = 3\n" + shared.config.read_text())
        answer = shared.server.cli("reload")
        assert answer.returncode == 0, answer.stderr
    status = shared.server.status()
    assert not before & {worker.pid for worker in status.workers}
    assert [model.slots for model in status.models[:2]] == [3, 3]


def test_status_tells_of_all_models(shared: Box) -> None:
    status = shared.server.status()
    assert [model.name for model in status.models] == [*CHATS, VECTORS]
    assert [len(workers_of(status, name)) for name in (*CHATS, VECTORS)] == [2, 1, 1]
    assert shared.server.cli("status").returncode == 0
