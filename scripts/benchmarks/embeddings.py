"""Section `embeddings`: vectors of short texts, by lbhost, llama-server and a plain loop a core.

All three take turns with new texts; then lbhost answers again what it has kept. The model is that
of --embedding-model; lbhost serves what `lbhost tune` made of it, if it has been tuned here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import embedding_loop, generator, machine, servers
from benchmarks.bench import Bench, BenchError
from benchmarks.embedding_load import Outcome, Plan
from benchmarks.embedding_loop import Loops
from benchmarks.figures import Figure, Target, at_least, number
from benchmarks.prompts import PromptWriter
from benchmarks.servers import ALIAS, Server
from benchmarks.stats import paired_ratios, quantile, spread
from lbhost.llama import Vocab

TOKENS = 32
"""Of a text, with what the model puts around it."""
CTX_SIZE = 512
SLOTS = 8
"""Of llama-server."""
TIMEOUT_S = 300.0

LOADS = {(1, 1): 96, (8, 1): 48, (1, 32): 8, (8, 32): 4}
"""(clients, texts a request): requests of each client in a turn."""

OURS, THEIRS, LOOP = "lbhost", "llama-server", "plain loop"


class Turn(NamedTuple):
    """One load on one contender."""

    texts_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    cpu_s: float
    """For 1,000 texts."""


Texts = Callable[[int], list[str]]


def embeddings(bench: Bench) -> list[Figure]:
    """Texts/s beside both, for one and many clients with one and many texts a request."""
    model = bench.embedding_model
    texts = writer(bench, model)
    cores = machine.cores()
    with (
        servers.lbhost(model, ctx_size=CTX_SIZE, flags=("--embedding-cache", "0")) as ours,
        llama_server(bench, model) as theirs,
        embedding_loop.loops(model, cores) as loops,
    ):
        for server in (ours, theirs):
            apply(server, texts(64), 8, 8)
        figures: list[Figure] = []
        for (clients, inputs), each in LOADS.items():
            turns: dict[str, list[Turn]] = {OURS: [], THEIRS: [], LOOP: []}
            for _ in range(bench.pairs):
                given = texts(clients * inputs * bench.scaled(each))
                turns[OURS].append(apply(ours, given, clients, inputs))
                turns[THEIRS].append(apply(theirs, given, clients, inputs))
                turns[LOOP].append(_loop(loops, given[: len(given) // 2]))
            bench.say(f"  {clients} clients, {inputs} a request: {_behind(turns)}")
            figures += _figures(clients, inputs, turns)
    return figures + _kept(bench, model, texts)


def writer(bench: Bench, model: Path) -> Texts:
    """Writes so many texts of TOKENS tokens, none like an earlier one."""
    vocab = Vocab.load(model)
    prompts = PromptWriter(vocab, bench.rng)
    return lambda count: [prompts.write(TOKENS) for _ in range(count)]


@contextmanager
def llama_server(bench: Bench, model: Path) -> Iterator[Server]:
    """llama-server with a thread for each core."""
    port = servers.free_port()
    command = [str(bench.peers.server), "--model", str(model), "--alias", ALIAS, "--embeddings"]
    command += ["-t", str(len(machine.cores())), "-np", str(SLOTS), "-c", str(SLOTS * CTX_SIZE)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--no-webui"]
    with (
        tempfile.TemporaryDirectory(prefix="lbhost-bench-") as folder,
        servers.process(command, Path(folder) / "log") as pid,
    ):
        server = Server(THEIRS, pid, "127.0.0.1", port, None)
        servers.wait(server, Path(folder) / "log")
        yield server


def apply(
    server: Server,
    texts: Sequence[str],
    clients: int,
    inputs: int,
    *,
    model: str = ALIAS,
    stop_s: float | None = None,
) -> Turn:
    """Put a load on a server, from a process of its own.

    Args:
        stop_s: no request is sent after so many seconds.

    Raises:
        BenchError: a request failed, so that the figures would flatter the server.
    """
    address = (server.host, server.port)
    plan = Plan(*address, model, list(texts), clients, inputs, TIMEOUT_S, stop_s)
    pids = machine.tree(server.pid)
    before = machine.cpu_s(pids)
    outcome = generator.generate("benchmarks.embedding_load", plan, Outcome, TIMEOUT_S + 30)
    used = machine.cpu_s(pids) - before
    if outcome.failures:
        raise BenchError(f"{server.name}: {outcome.failures[0]}")
    took = outcome.latencies_s
    per_thousand = 1000 * used / (len(took) * inputs)
    p50_s, p95_s, p99_s = (quantile(took, q) for q in (0.5, 0.95, 0.99))
    return Turn(outcome.texts_s, p50_s, p95_s, p99_s, per_thousand)


def _loop(loops: Loops, texts: Sequence[str]) -> Turn:
    laps = [lap for lap in loops.run(texts) if lap.texts]  # there may be more cores than texts
    each = [lap.elapsed_s / lap.texts for lap in laps]
    cpu_s = 1000 * sum(lap.cpu_s for lap in laps) / len(texts)
    return Turn(sum(1 / one for one in each), quantile(each, 0.5), max(each), max(each), cpu_s)


def _figures(clients: int, inputs: int, turns: dict[str, list[Turn]]) -> list[Figure]:
    who = f"{clients} client{'s' if clients > 1 else ''}, {inputs} a request: "
    loop: Target | None = at_least(1.5) if clients > 1 else None
    return [
        _ratio(who + "texts/s, to a plain loop a core", turns, LOOP, "texts_s", loop),
        _ratio(who + "texts/s, to llama-server", turns, THEIRS, "texts_s", at_least(1.0)),
        _ratio(who + "latency p50, to llama-server", turns, THEIRS, "p50_s", None),
        _ratio(who + "latency p99, to llama-server", turns, THEIRS, "p99_s", None),
        _ratio(who + "CPU a text, to a plain loop", turns, LOOP, "cpu_s", None),
        _ratio(who + "CPU a text, to llama-server", turns, THEIRS, "cpu_s", None),
    ]


_UNITS = {"texts_s": (1.0, "texts/s"), "p50_s": (1000.0, "ms"), "p99_s": (1000.0, "ms")}
_CPU = (1.0, "s for 1,000 texts")


def _ratio(
    name: str, turns: dict[str, list[Turn]], peer: str, of: str, target: Target | None
) -> Figure:
    ours, theirs = ([float(getattr(turn, of)) for turn in turns[who]] for who in (OURS, peer))
    scale, unit = _UNITS.get(of, _CPU)
    pair = (number(scale * spread(values).median) for values in (ours, theirs))
    behind = f"{' : '.join(pair)} {unit}"
    return Figure("embeddings", name, paired_ratios(ours, theirs), "x", target, behind)


def _behind(turns: dict[str, list[Turn]]) -> str:
    return ", ".join(
        f"{name} {spread([one.texts_s for one in all_of_them]).median:.0f}"
        for name, all_of_them in turns.items()
    )


def _kept(bench: Bench, model: Path, texts: Texts) -> list[Figure]:
    """How many times as fast the same texts are answered again."""
    figures: list[Figure] = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lbhost-bench-"))
        # not into the cache of whoever runs this
        before = ("env", f"XDG_CACHE_HOME={folder}")
        server = stack.enter_context(servers.lbhost(model, ctx_size=CTX_SIZE, before=before))
        apply(server, texts(64), 8, 8)
        for clients, inputs, requests, target in ((1, 32, 4, at_least(50)), (1, 1, 32, None)):
            first: list[float] = []
            again: list[float] = []
            for _ in range(bench.pairs):
                given = texts(inputs * requests)
                first.append(apply(server, given, clients, inputs).p50_s)
                again.append(apply(server, given, clients, inputs).p50_s)
            name = f"kept vectors, {inputs} a request: times as soon"
            behind = f"{number(1000 * spread(again).median)} ms"
            behind += f" instead of {number(1000 * spread(first).median)}"
            figures.append(
                Figure("embeddings", name, paired_ratios(first, again), "x", target, behind)
            )
    return figures
