"""What lbhost costs, how fast it heals and wakes; no peer.

Sections `recovery`, `memory`, `idle`, `sensors` and `wake`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine, servers
from benchmarks.bench import Bench, BenchError
from benchmarks.figures import Figure, at_most
from benchmarks.load import Job, LoadError, Plan, send
from benchmarks.servers import Server
from benchmarks.stats import spread
from lbhost.llama import inspect

DEADLINE_S = 30.0
_MB = 1e6


def _workers(server: Server) -> list[dict[str, Any]]:
    workers: list[dict[str, Any]] = servers.ask(server, "GET", "/status")["workers"]
    return workers


def recovery(bench: Bench) -> list[Figure]:
    """SIGKILL of a worker until its replacement is READY, each time as the first crash."""
    times: list[float] = []
    # The restart window is short so that no try counts as a crash loop, whose backoff doubles.
    with servers.lbhost(bench.q4_0, ctx_size=256, flags=("--restart-window", "1")) as server:
        for attempt in range(bench.scaled(10)):
            time.sleep(1.5)
            workers = _workers(server)
            victim = workers[attempt % len(workers)]
            started = time.monotonic()
            os.kill(victim["pid"], signal.SIGKILL)
            while not _replaced(server, victim):
                if time.monotonic() > started + DEADLINE_S:
                    raise BenchError(f"worker {victim['id']} was not replaced")
                time.sleep(0.005)
            times.append((time.monotonic() - started) * 1000)
    name = "SIGKILL of a worker to READY again"
    return [Figure("recovery", name, spread(times), "ms", at_most(300))]


def _replaced(server: Server, victim: dict[str, Any]) -> bool:
    return any(
        worker["id"] == victim["id"]
        and worker["epoch"] > victim["epoch"]
        and worker["state"] == "ready"
        for worker in _workers(server)
    )


WAKING_TOKENS = 8
"""Of the prompt that wakes a model: next to nothing to compute."""


def wake(bench: Bench) -> list[Figure]:
    """From a request for a sleeping model, whose weights were kept, to a READY worker and to its
    first text."""
    ready_ms: list[float] = []
    first_ms: list[float] = []
    flags = ("--idle-timeout", "0.5", "--no-probe")
    with servers.lbhost(bench.q4_0, ctx_size=256, flags=flags) as server:
        for _ in range(bench.scaled(16)):
            deadline = time.monotonic() + DEADLINE_S
            while servers.ask(server, "GET", "/status")["models"][0]["state"] != "sleeping":
                if time.monotonic() > deadline:
                    raise BenchError("the model does not go to sleep")
                time.sleep(0.05)
            ready_s, first_s = asyncio.run(_woken(bench, server))
            ready_ms.append(1000 * ready_s)
            first_ms.append(1000 * first_s)
    behind = f"{WAKING_TOKENS}-token prompts"
    return [
        Figure("wake", "request to a READY worker", spread(ready_ms), "ms", at_most(300)),
        Figure("wake", "request to its first text", spread(first_ms), "ms", None, behind),
    ]


async def _woken(bench: Bench, server: Server) -> tuple[float, float]:
    """Seconds to a READY worker, as the admin API tells it, and to the first text."""
    plan = Plan(server.host, server.port, servers.ALIAS, [], 1, DEADLINE_S)
    job = Job(bench.prompts.write(WAKING_TOKENS), WAKING_TOKENS, 1)
    began = time.monotonic()

    def until_ready() -> float:
        while not any(worker["state"] == "ready" for worker in _workers(server)):
            if time.monotonic() > began + DEADLINE_S:
                raise BenchError("the model does not wake")
            time.sleep(0.005)
        return time.monotonic() - began

    try:
        ready_s, (request, _) = await asyncio.gather(
            asyncio.to_thread(until_ready), send(plan, job)
        )
    except LoadError as error:
        raise BenchError(f"the request that wakes: {error}") from error
    return ready_s, request.ttft


_COMPUTE_BUFFERS = """
import sys, re
from lbhost.llama import Model, api
lines = []
@api.llama_log_callback
def keep(level, text, user):
    lines.append(text.decode(errors="replace"))
model = Model(sys.argv[1])
api.llama_log_set(keep, None)
from lbhost.worker.context import Context
Context(model, slots=int(sys.argv[2]), n_ctx=int(sys.argv[3]), threads=1)
found = re.findall(r"(?:compute|output) buffer size = +([0-9.]+) MiB", "".join(lines))
print(sum(map(float, found)))
"""


def memory(bench: Bench) -> list[Figure]:
    """What one more worker adds to the PSS of all processes, less its KV and compute buffers."""
    added: list[float] = []
    with servers.lbhost(bench.q4_0, ctx_size=1024, flags=("--workers", "1")) as server:
        for _ in range(bench.scaled(6)):
            before = machine.pss_bytes(machine.tree(server.pid))
            servers.ask(server, "POST", "/scale", {"workers": 2})
            added.append((machine.pss_bytes(machine.tree(server.pid)) - before) / _MB)
            worker = _workers(server)[-1]
            servers.ask(server, "POST", "/scale", {"workers": 1})
    kv = worker["kv_total"] * inspect(bench.q4_0).kv_bytes_per_token / _MB
    slots, ctx = worker["slots"], worker["ctx_size"]
    command = [sys.executable, "-c", _COMPUTE_BUFFERS, str(bench.q4_0), str(slots), str(ctx)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    compute = float(answer.stdout.split()[-1]) * 1024 * 1024 / _MB
    beyond = [value - kv - compute for value in added]
    note = f"added {spread(added).median:.0f} MB, KV {kv:.0f} MB, compute buffers {compute:.0f} MB"
    name = "an added worker beyond its KV and compute buffers"
    return [Figure("memory", name, spread(beyond), "MB", at_most(25), note)]


def idle(bench: Bench) -> list[Figure]:
    """CPU of all processes together while nothing is asked of them."""
    with servers.lbhost(bench.q4_0, ctx_size=256) as server:
        time.sleep(3)
        pids = machine.tree(server.pid)
        seconds = bench.scaled(20)
        before, started = machine.cpu_s(pids), time.monotonic()
        time.sleep(seconds)
        used = (machine.cpu_s(pids) - before) / (time.monotonic() - started)
    names = f"{len(pids)} processes over {seconds} s"
    return [Figure("idle", "CPU, of one core", spread([used * 100]), "%", at_most(1), names)]


def sensors(bench: Bench) -> list[Figure]:
    """The hardware sampler on a generated box of 64 cores."""
    script = Path(__file__).parent.parent / "bench_sensors.py"
    command = [sys.executable, str(script), "--json", "--samples", str(bench.scaled(240))]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        result = json.loads(answer.stdout)
    except ValueError as error:
        raise BenchError(f"{script.name}: {answer.stderr.strip()[-300:]}") from error
    part = spread([result["core_fraction_at_4_hz"] * 100])
    note = f"{result['sample_p50_ms']} ms a sample at p50"
    return [Figure("sensors", "64 cores at 4 Hz, of one core", part, "%", at_most(1), note)]
