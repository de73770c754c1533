"""Section `overhead`: what gateway and links add to a request, and what choosing a worker costs."""

from __future__ import annotations

import asyncio
import random
import time

from benchmarks import servers
from benchmarks.alone import Alone, Ask, alone
from benchmarks.bench import Bench, BenchError
from benchmarks.figures import Figure, at_most, number
from benchmarks.load import Job, LoadError, Plan, send
from benchmarks.servers import Server
from benchmarks.stats import spread
from lbhost.choices import Policy
from lbhost.config import Settings
from lbhost.gateway.scheduling.policy import Need, choose
from lbhost.gateway.scheduling.worker_view import WorkerView

PROMPT_TOKENS = 16
"""Few, so that the drift of the box between two requests is small beside 2 ms."""

VIEWS = 64


def overhead(bench: Bench) -> list[Figure]:
    """TTFT through the whole server less TTFT of the engine alone, request by request."""
    flags = ("--workers", "1")
    with servers.lbhost(bench.q4_0, ctx_size=256, flags=flags) as server:
        worker = servers.ask(server, "GET", "/status")["workers"][0]
        with alone(bench.q4_0, worker["cores"][0], Settings().nice) as engine:
            added, ours, theirs = asyncio.run(_in_turn(bench, server, engine))
    behind = f"{number(ours)} ms - {number(theirs)} ms, {PROMPT_TOKENS}-token prompts"
    name = "TTFT added by gateway and links, p50"
    return [
        Figure("overhead", name, spread([added]), "ms", at_most(2), behind),
        Figure(
            "overhead", f"policy.choose, {VIEWS} workers", spread(_choosing()), "us", at_most(50)
        ),
    ]


async def _in_turn(bench: Bench, server: Server, engine: Alone) -> tuple[float, float, float]:
    """Medians in ms: of the differences, of the server's TTFT, of the engine's."""
    plan = Plan(server.host, server.port, servers.ALIAS, [], 1, 60.0)
    through: list[float] = []
    direct: list[float] = []
    for turn in range(bench.scaled(240)):
        direct.append(engine.ask(Ask("ttft", 1, PROMPT_TOKENS)) * 1000)
        job = Job(bench.prompts.write(PROMPT_TOKENS), PROMPT_TOKENS, 1)
        try:
            request, _ = await send(plan, job)
        except LoadError as error:
            raise BenchError(f"request {turn}: {error}") from error
        through.append(request.ttft * 1000)
    added = [a - b for a, b in zip(through, direct, strict=True)]
    return spread(added).median, spread(through).median, spread(direct).median


def _choosing() -> list[float]:
    """Microseconds a choice among busy workers, the mean of each of 20 rounds."""
    rng = random.Random(1)
    views = [
        WorkerView(
            worker=i,
            epoch=1,
            slots=4,
            in_flight=rng.randrange(5),
            prefills=tuple(rng.randrange(1, 2000) for _ in range(rng.randrange(3))),
            cached=rng.randrange(64),
            speeds=(rng.uniform(300, 500), rng.uniform(0.003, 0.005), rng.uniform(0.004, 0.008)),
            share=rng.uniform(0.1, 1.0),
            idle=rng.random(),
        )
        for i in range(VIEWS)
    ]
    need = Need(prompt_tokens=128, expected_tokens=64)
    rounds: list[float] = []
    for _ in range(20):
        began = time.perf_counter()
        for turn in range(200):
            choose(Policy.COST, need, views, rng, turn)
        rounds.append((time.perf_counter() - began) / 200 * 1e6)
    return rounds
