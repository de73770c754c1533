"""The real server with the real model: real processes, real signals, real requests.

Needs the starter extra and two CPUs.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import NotFoundError, OpenAI

import trees
from lbhost.gateway.scheduling.worker_view import UNDISTURBED
from lbhost.status import Status
from serving import (
    Server,
    cpu_affinity,
    finished,
    spinning,
    text_of,
    wait_for,
)

pytestmark = pytest.mark.e2e

SMALL = ("--ctx-size", "1024", "--workers", "2")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # A test is no bad night: what several of them kill together is within the budget.
    flags = (*SMALL, "--restart-budget", "20")
    with Server(tmp_path_factory.mktemp("shared") / "run", *flags) as server:
        yield server


@pytest.fixture
def shared(running: Server) -> Server:
    """A server that has recovered from whatever the test before did to it."""
    recovered(running)
    return running


def both_ready(server: Server) -> None:
    server.wait(
        lambda status: [w.state for w in status.workers] == ["ready", "ready"],
        "both workers are ready",
    )


def recovered(server: Server) -> None:
    both_ready(server)
    server.wait(
        lambda status: (
            status.gateway.state == "ready"
            and status.template is not None
            and status.template.state == "ready"
            and status.traffic.in_flight == 0
        ),
        "gateway and fork server are ready, too, and nothing runs",
    )
    wait_for(lambda: server.http.get("/readyz").status_code == 200, "it is ready for work")


# --- the main job -----------------------------------------------------------------------


def test_two_workers_serve_each_from_its_own_core(shared: Server) -> None:
    workers = shared.status().workers
    assert [w.id for w in workers] == [0, 1]
    assert len({tuple(w.cores) for w in workers}) == 2
    for worker in workers:
        assert worker.pid is not None
        assert cpu_affinity(worker.pid) == set(worker.cores)
    answers = [shared.later(shared.complete, f"Number {i} is", max_tokens=24) for i in range(8)]
    served = Counter(answer.result().headers["x-lbhost-worker"] for answer in answers)
    assert set(served) == {"0", "1"}


def test_the_answer_is_the_same_from_every_worker_streamed_or_not(shared: Server) -> None:
    prompt = "The capital of France is"
    whole = shared.complete(prompt, max_tokens=8)  # among the next ones are near-ties
    assert whole.status_code == 200
    text = whole.json()["choices"][0]["text"]
    assert "Paris" in text
    for _ in range(4):
        events = shared.stream(prompt, max_tokens=8)
        assert finished(events)
        assert text_of(events) == text


def test_the_official_client_chats(shared: Server) -> None:
    with OpenAI(base_url=f"{shared.endpoint}/v1", api_key="none", max_retries=0) as client:
        model = client.models.list().data[0].id
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Say hello."}],
            temperature=0,
            max_tokens=12,
        )
        said = answer.choices[0].message.content
        assert said
        assert answer.usage is not None
        assert 0 < answer.usage.completion_tokens <= 12
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Say hello."}],
            temperature=0,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == said
        assert chunks[-1].usage is not None
        with pytest.raises(NotFoundError):
            client.completions.create(model="no-such-model", prompt="hi")


def test_a_client_that_leaves_frees_its_slot(shared: Server) -> None:
    host, port = shared.endpoint.removeprefix("http://").split(":")
    body = b'{"prompt": "Tell me a long story", "max_tokens": 900, "ignore_eos": true}'
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        shared.wait(lambda s: sum(w.slots_busy for w in s.workers) > 0, "it runs")
    shared.wait(
        lambda s: s.traffic.in_flight == 0 and all(w.slots_busy == 0 for w in s.workers),
        "the slot is free again",
    )


def test_metrics_and_health_say_what_runs(shared: Server) -> None:
    for path in ("/livez", "/readyz", "/health"):
        assert shared.http.get(path).status_code == 200
    text = shared.http.get("/metrics").text
    assert 'lbhost_worker_state{state="ready",worker="0"} 1.0' in text
    assert "lbhost_time_to_first_token_seconds_bucket" in text


def test_a_prompt_longer_than_the_context_is_refused(shared: Server) -> None:
    answer = shared.complete("word " * 3000)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


# --- what it survives -------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_no_plain_request_fails(shared: Server) -> None:
    answers = [
        shared.later(shared.complete, f"Story {i}:", max_tokens=120, ignore_eos=True)
        for i in range(6)
    ]
    shared.wait(lambda s: s.workers[0].slots_busy > 0, "worker 0 works")
    victim = shared.worker(0)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    shared.wait(
        lambda s: s.workers[0].state == "ready" and s.workers[0].epoch > victim.epoch,
        "a new worker 0",
    )
    for answer in answers:
        assert answer.result().status_code == 200
        assert answer.result().json()["usage"]["completion_tokens"] == 120


def test_a_stopped_worker_is_taken_for_hung_and_replaced(shared: Server) -> None:
    answers = [
        shared.later(shared.complete, f"Story {i}:", max_tokens=120, ignore_eos=True)
        for i in range(6)
    ]
    shared.wait(lambda s: s.workers[1].slots_busy > 0, "worker 1 works")
    victim = shared.worker(1)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGSTOP)
    status = shared.wait(
        lambda s: s.workers[1].state == "ready" and s.workers[1].epoch > victim.epoch,
        "a new worker 1",
    )
    assert status.workers[1].health_kills == victim.health_kills + 1
    for answer in answers:
        assert answer.result().status_code == 200


def test_a_killed_gateway_comes_back_on_the_same_port(shared: Server) -> None:
    before = shared.status()
    assert before.gateway.pid is not None
    os.kill(before.gateway.pid, signal.SIGKILL)
    shared.wait(
        lambda s: s.gateway.state == "ready" and s.gateway.pid != before.gateway.pid,
        "a new gateway",
    )
    wait_for(lambda: shared.http.get("/readyz").status_code == 200, "it is ready for work")
    assert shared.complete().status_code == 200
    assert [w.pid for w in shared.status().workers] == [w.pid for w in before.workers]


def test_a_killed_fork_server_leaves_the_workers_serving_and_comes_back(shared: Server) -> None:
    before = shared.status()
    assert before.template is not None
    assert before.template.pid is not None
    os.kill(before.template.pid, signal.SIGKILL)
    assert shared.complete().status_code == 200
    assert [w.pid for w in shared.status().workers] == [w.pid for w in before.workers]
    worker = before.workers[0]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    shared.wait(
        lambda s: s.workers[0].state == "ready" and s.workers[0].pid != worker.pid,
        "the new fork server forks a new worker",
    )


def test_drain_resume_and_restarts_under_streaming_load_fail_no_request(shared: Server) -> None:
    stop = False

    def load(client: int) -> list[bool]:
        results = []
        while not stop:
            events = shared.stream(f"Client {client} says", max_tokens=24, ignore_eos=True)
            results.append(finished(events))
        return results

    clients = [shared.later(load, client) for client in range(6)]
    try:
        shared.wait(lambda s: s.traffic.in_flight > 0, "load runs")
        epochs = [w.epoch for w in shared.status().workers]
        assert shared.cli("drain", "0").returncode == 0
        assert shared.worker(0).state == "stopped"
        assert shared.cli("resume", "0").returncode == 0
        assert shared.worker(0).state == "ready"
        assert shared.cli("restart", "1").returncode == 0
        assert shared.worker(1).state == "ready"
        assert shared.cli("restart", "all").returncode == 0
        both_ready(shared)
        after = [w.epoch for w in shared.status().workers]
        assert all(new >= old + 2 for old, new in zip(epochs, after, strict=True))
        scaled = shared.admin.post("/scale", json={"workers": 1})
        assert scaled.status_code == 200
        assert [w.id for w in shared.status().workers] == [0]
        assert shared.admin.post("/scale", json={"workers": 2}).status_code == 200
        both_ready(shared)
    finally:
        stop = True
    results = [ok for client in clients for ok in client.result()]
    assert len(results) > 6
    assert all(results)


# --- the hardware decides ---------------------------------------------------------------


def test_another_program_on_a_core_is_seen(shared: Server) -> None:
    worker = shared.worker(0)
    with spinning(worker.cores[0]):
        shared.wait(seen, "the sensors see it")


@contextmanager
def taken(tree: trees.Tree, cpu: int) -> Iterator[None]:
    """As the tree has it, another program uses all of that CPU, and nobody the others."""
    over = threading.Event()

    def passes() -> None:
        told_s = time.monotonic()
        while not over.wait(0.1):
            ticks = int(100 * (time.monotonic() - told_s))  # as many as have passed, on a slow box
            told_s += ticks / 100
            tree.run({cpu: (ticks, 0, 0)}, ticks=ticks)

    clock = threading.Thread(target=passes)
    clock.start()
    try:
        yield
    finally:
        over.set()
        clock.join()


def seen(status: Status) -> bool:
    """Whether the sensors see what takes the first worker's core."""
    return (status.workers[0].share or 1.0) < UNDISTURBED


def test_a_busy_core_loses_its_traffic(tmp_path: Path) -> None:
    # Not a real program: what else the machine of this test runs would count, too.
    tree = trees.bare_vm(tmp_path / "box", max(os.sched_getaffinity(0)) + 1)
    roots = {
        "LBHOST_SYSFS_ROOT": str(tree.roots.sysfs),
        "LBHOST_PROCFS_ROOT": str(tree.roots.procfs),
    }
    with Server(tmp_path / "run", *SMALL, environ=roots) as server:

        def served_by(tokens: int = 4) -> str:
            answer = server.complete("A busy core is", max_tokens=tokens)
            return answer.headers["x-lbhost-worker"]

        with taken(tree, server.worker(0).cores[0]):
            server.wait(seen, "the sensors see it")
            served_by(tokens=64)  # and the gateway's copy of what they see grows old
            served: Counter[str] = Counter()
            while served.total() < 10:
                server.wait(seen, "the sensors see it")
                worker = served_by()
                if seen(server.status()):  # no tick for half a second, and nobody knows anything
                    served[worker] += 1
            assert served["1"] >= 9


def test_the_doctor_knows_a_running_lbhost(shared: Server) -> None:
    found = shared.cli("doctor").stdout
    assert f"lbhost is running here (pid {shared.process.pid})" in found
