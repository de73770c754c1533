"""Nothing lost: workers are killed, drained and restarted under streams, with the real model."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from greedy import check_stream, undisturbed
from serving import Server

pytestmark = pytest.mark.e2e

SMALL = ("--ctx-size", "1024", "--workers", "2")

PROMPTS = (
    "The history of Rome begins",
    "To bake bread you need",
    "Once there was a fox that",
    "The three largest rivers are",
)

Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Streams]:
    flags = (*SMALL, "--restart-budget", "20")
    with Server(tmp_path_factory.mktemp("failover") / "run", *flags) as server:
        yield Streams(server, 300)


@pytest.fixture
def shared(running: Streams) -> Streams:
    """Streams of a server that has recovered from whatever the test before did to it."""
    running.server.wait(
        lambda s: [w.state for w in s.workers] == ["ready", "ready"] and s.traffic.in_flight == 0,
        "both workers are ready and have nothing to do",
    )
    return running


class Streams:
    """Greedy streams, and what they say when nobody disturbs them."""

    def __init__(self, server: Server, tokens: int) -> None:
        self.server = server
        self._fields = {"max_tokens": tokens, "ignore_eos": True}
        asked = [server.later(undisturbed, server, prompt, **self._fields) for prompt in PROMPTS]
        self._whole = {prompt: one.result() for prompt, one in zip(PROMPTS, asked, strict=True)}

    def start(self) -> list[Future[Events]]:
        """All of them at once; returns when all have begun to be computed."""
        server = self.server
        futures = [server.later(server.stream, prompt, **self._fields) for prompt in PROMPTS]
        server.wait(
            lambda s: sum(w.slots_busy for w in s.workers) == len(PROMPTS), "all streams run"
        )
        return futures

    def check(self, futures: list[Future[Events]]) -> None:
        """All have ended as they should, with the text of the undisturbed ones; see greedy.py."""
        for prompt, future in zip(PROMPTS, futures, strict=True):
            check_stream(future.result(), self._whole[prompt])


def kill(server: Server, worker: int) -> None:
    """Returns when another process is there in its place."""
    pid = server.worker(worker).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    server.wait(
        lambda s: any(
            w.id == worker and w.state == "ready" and w.pid not in (pid, None) for w in s.workers
        ),
        "it is replaced",
    )


def test_streams_go_on_when_their_worker_is_killed(shared: Streams) -> None:
    server = shared.server
    errors = server.status().traffic.errors
    futures = shared.start()
    for worker in (0, 1, 0):
        kill(server, worker)
        server.wait(
            # On a slow box some may have come to their end meanwhile.
            lambda s: sum(w.slots_busy for w in s.workers) == sum(not f.done() for f in futures),
            "all go on",
        )
    shared.check(futures)
    assert server.status().traffic.errors == errors


def test_a_drain_moves_running_streams_at_once(shared: Streams) -> None:
    server = shared.server
    futures = shared.start()
    busiest = max(server.status().workers, key=lambda worker: worker.slots_busy).id
    assert server.admin.post(f"/workers/{busiest}/drain").status_code == 200
    assert server.worker(busiest).state == "stopped"
    assert not any(future.done() for future in futures), "it waited for an answer"
    shared.check(futures)
    assert 'lbhost_moved_total{reason="drain"}' in server.http.get("/metrics").text
    assert server.admin.post(f"/workers/{busiest}/resume").status_code == 200


def test_a_rolling_restart_interrupts_no_stream(shared: Streams) -> None:
    futures = shared.start()
    assert shared.server.cli("restart", "all").returncode == 0
    shared.check(futures)


def test_a_request_whose_workers_crash_twice_is_not_tried_again(shared: Streams) -> None:
    own = shared.server
    asked = own.later(own.complete, "Tell me everything", max_tokens=900, ignore_eos=True)
    crashed: list[int] = []
    while len(crashed) < 2:
        busy = own.wait(lambda s: any(w.slots_busy for w in s.workers), "it runs")
        pids = [w.pid for w in busy.workers if w.slots_busy and w.pid and w.pid not in crashed]
        for pid in pids[:1]:
            os.kill(pid, signal.SIGSEGV)
            crashed.append(pid)
    answer = asked.result()
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "query_of_death"
    assert answer.headers["x-should-retry"] == "false"
    again = own.complete("Tell me everything", max_tokens=900, ignore_eos=True)
    assert again.json()["error"]["code"] == "query_of_death"
    assert own.complete("Tell me something", max_tokens=5).status_code == 200
    assert "query of death" in own.log.read_text()
