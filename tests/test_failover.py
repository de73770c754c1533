"""Nothing lost: workers are killed, drained and restarted under streams, with the real model."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Server, finished, text_of

pytestmark = pytest.mark.e2e

SMALL = ("--ctx-size", "1024", "--workers", "2")

PROMPTS = ("The history of Rome begins", "To bake bread you need", "Once there was a fox that")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "run", *SMALL) as server:
        yield server


def all_ready(server: Server) -> None:
    server.wait(lambda s: all(w.state == "ready" for w in s.workers), "all workers are ready")


def test_streams_go_on_when_their_worker_is_killed(own: Server) -> None:
    whole = {prompt: text_of(own.stream(prompt, max_tokens=150)) for prompt in PROMPTS}
    streams = [own.later(own.stream, prompt, max_tokens=150) for prompt in PROMPTS]
    for worker in (0, 1, 0):
        all_ready(own)
        own.wait(lambda s: sum(w.slots_busy for w in s.workers) == 3, "all streams run")
        time.sleep(0.4)
        pid = own.worker(worker).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    for prompt, stream in zip(PROMPTS, streams, strict=True):
        events = stream.result()
        assert finished(events)
        assert text_of(events) == whole[prompt]
