"""Section `two-models`: a chat and an embedding model in one server, both loaded at once.

Beside that, in turn: each model alone in a server that has half of the cores. Sharing a box may not
make either worse than halving it would.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import embeddings, machine, servers, serving
from benchmarks.bench import Bench, BenchError
from benchmarks.embeddings import Turn
from benchmarks.figures import Figure, at_most, number
from benchmarks.load import Job, Outcome, Plan
from benchmarks.servers import Server
from benchmarks.stats import paired_ratios, quantile, spread, throughput

CHAT, VECTORS = "chat", "vectors"
CHAT_CLIENTS, PROMPT_TOKENS, OUTPUT_TOKENS = 4, 64, 32
EMBED_CLIENTS, INPUTS = 2, 8
CTX_SIZE = 256
SECONDS = 8
"""Of a turn."""
TEXTS = 512
MOST_CHATS_S, MOST_TEXTS_S = 40, 1500
"""More than is answered in a second: the load's time ends it."""


class Both(NamedTuple):
    """One turn of both models, together or each alone."""

    chat: Outcome
    vectors: Turn


def two_models(bench: Bench) -> list[Figure]:
    """Latencies p95 of both, together over each on half of the box."""
    cores = machine.cores()
    if len(cores) < 2:
        raise BenchError("one CPU is not enough: there is no half of it")
    half = len(cores) // 2
    paths = {CHAT: bench.q4_0, VECTORS: bench.embedding_model}
    # the same texts again and again: no vector is kept here
    texts = embeddings.writer(bench, paths[VECTORS])(TEXTS)
    together: list[Both] = []
    apart: list[Both] = []
    with (
        _serving(paths) as whole,
        _serving({CHAT: paths[CHAT]}, cores[:half]) as chat,
        _serving({VECTORS: paths[VECTORS]}, cores[half:]) as vectors,
    ):
        _at_once(bench, texts, whole, 2)
        _one_by_one(bench, texts, chat, vectors, 1)
        seconds = bench.scaled(SECONDS)
        for _ in range(bench.pairs):
            together.append(_at_once(bench, texts, whole, seconds))
            apart.append(_one_by_one(bench, texts, chat, vectors, seconds))
    figures = [
        _figure(name, [of(both) for both in together], [of(both) for both in apart], unit)
        for name, of, unit in MEASURES
    ]
    return [
        figure._replace(target=at_most(1.3) if "p95" in figure.name else None) for figure in figures
    ]


def _latency_p95_ms(both: Both) -> float:
    took = [request.texts[-1] - request.sent for request in both.chat.requests]
    return 1000 * quantile(took, 0.95)


def _ttft_p95_ms(both: Both) -> float:
    return 1000 * quantile([request.ttft for request in both.chat.requests], 0.95)


MEASURES: tuple[tuple[str, Callable[[Both], float], str], ...] = (
    ("chat: latency p95", _latency_p95_ms, "ms"),
    ("chat: TTFT p95", _ttft_p95_ms, "ms"),
    ("vectors: latency p95", lambda both: 1000 * both.vectors.p95_s, "ms"),
    ("chat: tok/s", lambda both: throughput(both.chat.requests, both.chat.dry_s), "tok/s"),
    ("vectors: texts/s", lambda both: both.vectors.texts_s, "texts/s"),
)


def _figure(name: str, ours: list[float], theirs: list[float], unit: str) -> Figure:
    behind = f"{number(spread(ours).median)} : {number(spread(theirs).median)} {unit}"
    name = f"{name}, together to half the box alone"
    return Figure("two-models", name, paired_ratios(ours, theirs), "x", None, behind)


@contextmanager
def _serving(paths: dict[str, Path], cores: Sequence[int] = ()) -> Iterator[Server]:
    """These models in one server, on these cores only if any are named."""
    tables = (
        f"[[models]]\nname = {json.dumps(name)}\npath = {json.dumps(str(path))}\n"
        f"ctx_size = {CTX_SIZE}\n"
        for name, path in paths.items()
    )
    before = ("taskset", "-c", ",".join(map(str, cores))) if cores else ()
    with servers.lbhost_of("embedding_cache = 0\n" + "".join(tables), before=before) as server:
        yield server


def _at_once(bench: Bench, texts: list[str], server: Server, seconds: float) -> Both:
    jobs = _jobs(bench, seconds)
    with ThreadPoolExecutor(1) as pool:
        chat = pool.submit(_chat, server, jobs, seconds)
        return Both(vectors=_vectors(server, texts, seconds), chat=chat.result())


def _one_by_one(
    bench: Bench, texts: list[str], chat: Server, vectors: Server, seconds: float
) -> Both:
    outcome = _chat(chat, _jobs(bench, seconds), seconds)
    return Both(outcome, _vectors(vectors, texts, seconds))


def _jobs(bench: Bench, seconds: float) -> list[Job]:
    write = bench.prompts.write
    count = int(MOST_CHATS_S * seconds)
    return [Job(write(PROMPT_TOKENS), PROMPT_TOKENS, OUTPUT_TOKENS) for _ in range(count)]


def _chat(server: Server, jobs: list[Job], seconds: float) -> Outcome:
    plan = Plan(server.host, server.port, CHAT, jobs, CHAT_CLIENTS, 300.0, stop_s=seconds)
    return serving.generate(server, plan)


def _vectors(server: Server, texts: list[str], seconds: float) -> Turn:
    enough = texts * math.ceil(MOST_TEXTS_S * seconds / len(texts))
    return embeddings.apply(server, enough, EMBED_CLIENTS, INPUTS, model=VECTORS, stop_s=seconds)
