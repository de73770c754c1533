"""Section `failover`: how long the streams of a killed worker pause.

Four streams on two workers, with contexts of some 256 tokens; one worker is killed, and each of its
streams goes on in the other one. No peer does that.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import servers
from benchmarks.bench import Bench, BenchError
from benchmarks.figures import Figure, at_most
from benchmarks.servers import Server
from benchmarks.stats import quantile, spread

STREAMS = 4
PROMPT_TOKENS = 192
LEAST_TOKENS, MOST_TOKENS = 48, 80
"""That each stream has had when a worker is killed."""
ON_THE_WAY_S = 0.02
"""What comes so soon after the kill was sent before it: nobody goes on so fast."""
REST_S = 1.5
"""A worker has been up so long when it is killed, and its successor is there."""
PATIENCE_S = 60.0

_FLAGS = ("--workers", "2", "--no-probe", "--restart-budget", "1000")


class Stream:
    """One answer on its way."""

    def __init__(self) -> None:
        self.worker: int | None = None
        """Where it began."""
        self.texts: list[float] = []
        """When each piece of text came."""
        self.error: str | None = None


def failover(bench: Bench) -> list[Figure]:
    """SIGKILL of a worker to the next text of each of its streams."""
    pauses: list[float] = []
    with servers.lbhost(bench.q4_0, ctx_size=1024, flags=_FLAGS) as server:
        for attempt in range(bench.scaled(16)):
            pauses += asyncio.run(_kill(bench, server, attempt))
            time.sleep(REST_S)
    if not pauses:
        raise BenchError("no worker that was killed had a stream")
    ms = [1000 * pause for pause in pauses]
    behind = f"{len(ms)} streams; p99 {quantile(ms, 0.99):.0f} ms, wanted 1500"
    name = "SIGKILL of a worker to its streams' next text"
    return [Figure("failover", name, spread(ms), "ms", at_most(300), behind)]


async def _kill(bench: Bench, server: Server, attempt: int) -> list[float]:
    """Seconds that the streams of one worker paused.

    Raises:
        BenchError: a stream failed, or did not get on.
    """
    streams = [Stream() for _ in range(STREAMS)]
    tasks = [
        asyncio.create_task(_read(server, bench.prompts.write(PROMPT_TOKENS), stream))
        for stream in streams
    ]
    try:
        tokens = bench.rng.randint(LEAST_TOKENS, MOST_TOKENS)
        await _until(streams, lambda stream: len(stream.texts) >= tokens)
        workers: list[dict[str, Any]] = servers.ask(server, "GET", "/status")["workers"]
        ready = [worker for worker in workers if worker["state"] == "ready"]
        if len(ready) < len(workers):
            raise BenchError("a worker is not up again")
        victim = ready[attempt % len(ready)]
        began = time.monotonic()
        os.kill(victim["pid"], signal.SIGKILL)
        hit = [stream for stream in streams if stream.worker == victim["id"]]
        await _until(hit, lambda stream: paused_s(stream.texts, began) is not None)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    paused = (paused_s(stream.texts, began) for stream in hit)
    return [pause for pause in paused if pause is not None]


def paused_s(texts: Sequence[float], killed: float) -> float | None:
    """Seconds from a kill to the first text after it; None: none has come yet."""
    after = (at - killed for at in texts if at > killed + ON_THE_WAY_S)
    return next(after, None)


async def _until(streams: list[Stream], reached: Callable[[Stream], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not all(reached(stream) for stream in streams):
        for stream in streams:
            if stream.error is not None:
                raise BenchError(f"a stream failed: {stream.error}")
        if time.monotonic() > deadline:
            raise BenchError("a stream does not get on")
        await asyncio.sleep(0.005)


async def _read(server: Server, prompt: str, stream: Stream) -> None:
    body = {"prompt": prompt, "max_tokens": 600, "temperature": 0, "stream": True}
    body |= {"ignore_eos": True, "model": servers.ALIAS}
    sent = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {server.host}:{server.port}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(sent)}\r\n\r\n"
        writer.write(head.encode() + sent)
        while line := await reader.readline():
            if line.lower().startswith(b"x-lbhost-worker:"):
                stream.worker = int(line.split(b":")[1])
            elif line.startswith(b'data: {"error"'):
                stream.error = line.decode().strip()
            elif line.startswith(b"data: {"):
                stream.texts.append(time.monotonic())
        stream.error = stream.error or "it ended"
    except OSError as error:
        stream.error = str(error)
    finally:
        writer.close()
