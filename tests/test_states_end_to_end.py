"""The store through the real server: what one worker has computed, no other computes again."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lbhost.gateway import exposition
from lbhost.worker.saving import LEAST, Doing
from serving import KV_BYTES, Server, wait_for

pytestmark = pytest.mark.e2e

UNSAVED = LEAST[Doing.NOTHING]
STORY = " ".join(f"The number {i} is followed by {i + 1}." for i in range(16))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("states")
    with Server(folder / "run", "--workers", "2", "--ctx-size", "512") as server:
        yield server


def ask(server: Server, prompt: str, tokens: int = 12) -> tuple[str, int, int]:
    """Text, prompt tokens, cached tokens."""
    answer: dict[str, Any] = server.complete(prompt, max_tokens=tokens).json()
    usage = answer["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return answer["choices"][0]["text"], usage["prompt_tokens"], cached


def metric(server: Server, name: str) -> float:
    lines = server.http.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"lbhost_{name} "))


def held(server: Server) -> float:
    """Tokens that the store holds."""
    return metric(server, "state_bytes") / KV_BYTES


def settled(server: Server) -> float:
    """The same once it stays: what the test before has left to be saved is in it by then, and
    /metrics is no older."""
    since_s, tokens = time.monotonic(), held(server)

    def stays() -> bool:
        nonlocal since_s, tokens
        if (now := held(server)) != tokens:
            since_s, tokens = time.monotonic(), now
        return time.monotonic() - since_s > 1.2 * exposition.TEXT_FRESH_S

    wait_for(stays, "nothing more is saved")
    return tokens


def saved(server: Server, tokens: float) -> None:
    """Wait until the store holds so many, but for those that are not worth a save of their own.

    Their number tells more than that of the states: where prefill is slow the first one is saved
    in the middle of the prompt.
    """
    wait_for(lambda: held(server) >= tokens - UNSAVED, f"{tokens} tokens are saved")


def taken_over(server: Server, states: float) -> None:
    """Wait until so many states were used: /metrics may be a moment old, and on a slow box a
    request may move once more."""
    wait_for(lambda: metric(server, "state_hits_total") >= states, f"{states} states were used")


def test_a_restarted_worker_is_warm_at_once(shared: Server) -> None:
    before = settled(shared)
    text, count, _ = ask(shared, STORY)
    saved(shared, before + count)
    assert shared.cli("restart", "all").returncode == 0
    again, _, cached = ask(shared, STORY)
    assert again == text
    assert cached >= count - UNSAVED


def test_what_a_killed_worker_knew_is_not_lost(shared: Server) -> None:
    prompt = "Once there was a king. " + STORY
    before = settled(shared)
    text, count, _ = ask(shared, prompt)
    saved(shared, before + count)
    for worker in shared.status().workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
    shared.wait(
        lambda status: all(w.state == "ready" and w.restarts for w in status.workers),
        "both are replaced",
    )
    again, _, cached = ask(shared, prompt)
    assert again == text
    assert cached >= count - UNSAVED


def test_a_conversation_that_goes_on_elsewhere_computes_its_new_part(shared: Server) -> None:
    prompt = "Once there was a queen. " + STORY
    before = settled(shared)
    text, count, _ = ask(shared, prompt)
    saved(shared, before + count)
    assert shared.cli("restart", "all").returncode == 0
    hits = metric(shared, "state_hits_total")
    _, longer, cached = ask(shared, prompt + text + " And then? " + "Tell me more. " * 10)
    assert longer > count + 30
    assert cached >= count - UNSAVED
    taken_over(shared, hits + 1)


def test_a_stream_whose_worker_is_killed_goes_on_from_its_last_state(shared: Server) -> None:
    prompt = "Once there was a thief. " + STORY
    before = settled(shared)
    # Long enough that the kill comes before the last token, however late the reader is.
    undisturbed, count, _ = ask(shared, prompt, 160)
    saved(shared, before + count)
    assert shared.cli("restart", "all").returncode == 0
    hits = metric(shared, "state_hits_total")
    body = {"prompt": prompt, "max_tokens": 160, "temperature": 0, "stream": True}
    text, lines = "", list[str]()
    with shared.http.stream("POST", "/v1/completions", json=body) as answer:
        worker = int(answer.headers["x-lbhost-worker"])
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                text += "".join(choice["text"] for choice in json.loads(line[6:])["choices"])
            if text and not lines:
                pid = shared.worker(worker).pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
            if text:
                lines.append(line)
    assert text == undisturbed
    assert "data: [DONE]" in lines
    # Once when it was first sent, and once when it went on.
    taken_over(shared, hits + 2)


def test_a_new_gateway_learns_what_the_workers_hold(shared: Server) -> None:
    prompt = "Once there was a fool. " + STORY
    ask(shared, prompt)
    gateway = shared.status().gateway.pid
    assert gateway is not None
    os.kill(gateway, signal.SIGKILL)
    shared.wait(
        lambda status: status.gateway.state == "ready" and status.gateway.pid != gateway,
        "the gateway is back",
    )
    wait_for(lambda: metric(shared, "state_entries") >= 1, "it knows of a state")


def test_without_room_nothing_is_kept(tmp_path: Path) -> None:
    with Server(tmp_path / "run", "--workers", "1", "--state-cache", "0") as server:
        text, _, _ = ask(server, STORY)
        assert server.cli("restart", "0").returncode == 0
        again, _, cached = ask(server, STORY)
        assert (again, cached) == (text, 0)
        assert metric(server, "state_entries") == 0
