"""Section `streams`: how many tokens a second one gateway on one core streams to its clients.

The gateway is the real process. Workers without a model and raw clients share another core: a
token's text is the time at which its worker sent it, so that each arrival tells how late it is.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.bench import Bench, BenchError
from benchmarks.figures import Figure, at_least, at_most, number
from benchmarks.machine import cpu_s
from benchmarks.stats import quantile, spread
from lbhost import board, control, wire
from lbhost.config import Settings

WORKERS, SLOTS = 8, 8
N_CTX = 1 << 17
PROMISED = 15_000
"""Tokens a second."""

_TIMES = re.compile(rb"(\d{12,20});")
_PATIENCE_S = 60.0


def streams(bench: Bench) -> list[Figure]:
    """Delivered tokens/s of 15,000 offered, and what half of that is late by."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise BenchError("one CPU is not enough: the gateway takes a whole one")
    seconds = bench.scaled(8)
    os.sched_setaffinity(0, cpus[1:])
    try:
        full = [_run(bench.shipped, cpus[0], PROMISED, seconds) for _ in range(bench.pairs)]
        half = [_run(bench.shipped, cpus[0], PROMISED / 2, seconds) for _ in range(bench.pairs)]
    finally:
        os.sched_setaffinity(0, cpus)
    behind = f"{number(spread([run.cpu_us for run in full]).median)} us of CPU a token"
    fast = spread([run.tokens_s for run in full])
    late = spread([run.late_ms for run in half])
    middle = number(spread([run.middle_ms for run in half]).median)
    half_name = f"lateness at {PROMISED // 2} tokens/s, p99"
    name = f"tokens/s of {PROMISED} offered to {WORKERS * SLOTS} streams"
    return [
        # The last tokens of a run that keeps up come a little late.
        Figure("streams", name, fast, "tokens/s", at_least(0.98 * PROMISED), behind),
        Figure("streams", half_name, late, "ms", at_most(5), f"p50 {middle} ms"),
    ]


class Run:
    """What one load came to."""

    def __init__(self, tokens_s: float, late_s: list[float], cpu_us: float) -> None:
        self.tokens_s = tokens_s
        self.late_ms = 1000 * quantile(late_s, 0.99)
        self.middle_ms = 1000 * quantile(late_s, 0.5)
        self.cpu_us = cpu_us


def _run(model: Path, cpu: int, rate: float, seconds: float) -> Run:
    with closing(board.Board.create(workers=WORKERS, cores=1, gpus=0)) as page:
        listener = socket.create_server(("127.0.0.1", 0))
        with _gateway(model, cpu, page, listener) as (link, pid):
            address = listener.getsockname()
            listener.close()
            return asyncio.run(_load(page, link, address, pid, rate, seconds))


@contextmanager
def _gateway(
    model: Path, cpu: int, page: board.Board, listener: socket.socket
) -> Iterator[tuple[socket.socket, int]]:
    ours, theirs = control.socketpair()
    command = [sys.executable, "-m", "lbhost.gateway", "--control-fd", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
    try:
        os.sched_setaffinity(process.pid, {cpu})
        theirs.close()
        settings = Settings(slots=SLOTS, prompt_helpers=1)
        configure = control.Configure(settings, str(model), "toy", N_CTX)
        control.send(ours, control.Serve(settings, (configure,)), [page.fd, listener.fileno()])
        yield ours, process.pid
    finally:
        process.kill()
        process.wait()
        ours.close()


async def _load(
    page: board.Board,
    link: socket.socket,
    address: tuple[str, int],
    pid: int,
    rate: float,
    seconds: float,
) -> Run:
    workers = [_Worker(page, link, number) for number in range(WORKERS)]
    try:
        async with asyncio.timeout(_PATIENCE_S + seconds):
            await _ready(address)
            each = int(rate * seconds / (WORKERS * SLOTS))
            clients = [asyncio.create_task(_client(address, each)) for _ in range(WORKERS * SLOTS)]
            while sum(len(worker.running) for worker in workers) < len(clients):
                for worker in workers:
                    worker.tell()  # a silent one gets nothing more after a second
                await asyncio.sleep(0.01)
            used = cpu_s([pid])
            began = time.monotonic()
            period = WORKERS * SLOTS / rate
            await asyncio.gather(
                *(w.play(began + i * period / WORKERS, period) for i, w in enumerate(workers))
            )
            late = [one for client in clients for one in await client]
            took = time.monotonic() - began
            used = cpu_s([pid]) - used
    finally:
        for worker in workers:
            worker.close()
    if len(late) != each * len(clients):
        raise BenchError(f"{len(late)} tokens came of {each * len(clients)}")
    return Run(len(late) / took, late, 1e6 * used / len(late))


class _Worker:
    """The other end of a data link: as many sequences as it is given, a token each a step."""

    def __init__(self, page: board.Board, link: socket.socket, number: int) -> None:
        self._page, self._number = page, number
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        self._frames = wire.Frames()
        self.running: dict[int, wire.Submit] = {}
        self._done = 0
        self._steps = 0
        page.identity.write(
            number,
            board.IdentityRow(
                present=True,
                epoch=1,
                state=board.WorkerState.READY,
                wanted=board.Wanted.UP,
                pid=1,
                cpus=(0,),
                slots=SLOTS,
                n_ctx=N_CTX,
                started_ns=1,
            ),
        )
        self.tell()
        control.send(link, control.Link(number, 1), [theirs.fileno()])
        theirs.close()
        asyncio.get_running_loop().add_reader(self._socket, self._take)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()

    async def play(self, at: float, period: float) -> None:
        """A step each period, until all that it has is done."""
        loop = asyncio.get_running_loop()
        while self.running:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            at += period
            await loop.sock_sendall(self._socket, wire.encode(self._step()))

    def _step(self) -> wire.Step:
        self._done += 1
        self._steps += 1
        if self._steps % 16 == 0:
            self.tell()
        text = f"{time.monotonic_ns()};"
        deltas: list[wire.Delta] = []
        for request, submit in list(self.running.items()):
            finish = None
            if self._done == submit.max_tokens:
                del self.running[request]
                finish = wire.Finish(
                    wire.FinishReason.LENGTH, 9, completion_tokens=submit.max_tokens
                )
            deltas.append(wire.Delta(request, (7,), text, finish))
        return wire.Step(tuple(deltas), 0)

    def _take(self) -> None:
        for body in self._frames.feed(self._socket.recv(1 << 16)):
            message = wire.decode_to_worker(body)
            if isinstance(message, wire.Submit):
                self.running[message.request] = message

    def tell(self) -> None:
        """What it does, and that it is alive."""
        row = board.ProgressRow(
            epoch=1,
            heartbeat_ns=time.monotonic_ns(),
            steps=self._steps,
            slots_busy=len(self.running),
            kv_total=SLOTS * N_CTX,
        )
        self._page.progress.write(self._number, row)


async def _ready(address: tuple[str, int]) -> None:
    while True:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        if answer.startswith(b"HTTP/1.1 200"):
            return
        await asyncio.sleep(0.05)


async def _client(address: tuple[str, int], tokens: int) -> list[float]:
    """How late each token of one stream came, in seconds."""
    reader, writer = await asyncio.open_connection(*address)
    asked = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "ignore_eos": True}
    body = json.dumps({**asked, "max_tokens": tokens}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    late: list[float] = []
    rest = b""
    while data := await reader.read(1 << 16):
        now = time.monotonic_ns()
        rest += data
        found = None
        for found in _TIMES.finditer(rest):
            late.append((now - int(found[1])) / 1e9)
        rest = rest[found.end() :] if found is not None else rest
    writer.close()
    if b"[DONE]" not in rest:
        raise BenchError(f"a stream ended with {rest[-200:]!r}")
    return late
