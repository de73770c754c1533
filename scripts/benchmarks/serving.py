"""Sections `server`, `neighbour` and `open`: lbhost beside llama-server under the same loads.

Both servers are up, and get the same load in turn, A B A B, with fresh prompts for every pair.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import generator, machine, servers, stats
from benchmarks.bench import Bench, BenchError
from benchmarks.figures import Figure, Target, at_least, at_most, number
from benchmarks.load import Job, Outcome, Plan
from benchmarks.servers import Server

PROMPT_TOKENS = 128
OUTPUT_TOKENS = 64
CTX_SIZE = 256
SLOTS = 8
"""Of llama-server; lbhost has 4 a worker, one worker a core."""

NEIGHBOUR_REQUESTS = 1
"""A client, beside a spinning program: two threads that meet at every barrier can be down to a few
tokens a second then, and four requests each took llama-server over five minutes."""

TRACE_TOKENS = 1024
"""Prompt and output of a traced request are cut to this many together."""

TRACE_RATE = 0.4
"""Requests per second, on average, that a trace is stretched to: about 60% of what two cores can
take of such prompts."""


class Run(NamedTuple):
    """One load on one server."""

    tok_s: float
    ttft_p50: float
    ttft_p99: float
    gap_p99: float


class Pairs(NamedTuple):
    """Runs of both servers; the i-th of each met the same load."""

    ours: list[Run]
    theirs: list[Run]

    def ratio(self, name: str) -> stats.Spread:
        """Ours over theirs."""
        return stats.paired_ratios(self._all(self.ours, name), self._all(self.theirs, name))

    def own(self, name: str, scale: float = 1.0) -> stats.Spread:
        """Ours alone."""
        return stats.spread([value * scale for value in self._all(self.ours, name)])

    def behind(self, name: str, scale: float, unit: str) -> str:
        """The medians behind a ratio."""
        ours, theirs = (
            number(stats.spread(self._all(runs, name)).median * scale)
            for runs in (self.ours, self.theirs)
        )
        return f"{ours} : {theirs} {unit}"

    @staticmethod
    def _all(runs: list[Run], name: str) -> list[float]:
        return [float(getattr(run, name)) for run in runs]


def apply(server: Server, jobs: list[Job], clients: int, timeout_s: float) -> Run:
    """Put a load on a server; what it came to. Raises as `generate`."""
    plan = Plan(server.host, server.port, servers.ALIAS, jobs, clients, timeout_s)
    outcome = generate(server, plan)
    ttfts = [request.ttft for request in outcome.requests]
    gaps = [gap for request in outcome.requests for gap in request.gaps] or [0.0]
    return Run(
        stats.throughput(outcome.requests, outcome.dry_s),
        stats.quantile(ttfts, 0.5),
        stats.quantile(ttfts, 0.99),
        stats.quantile(gaps, 0.99),
    )


def generate(server: Server, plan: Plan) -> Outcome:
    """Carry out a plan on a server, from a process of its own.

    Raises:
        BenchError: a request failed, so that the figures would flatter the server.
    """
    outcome = generator.generate("benchmarks.load", plan, Outcome, plan.timeout_s + 30)
    if outcome.failures:
        failed = f"{len(outcome.failures)} of {len(plan.jobs)} requests to {server.name} failed"
        raise BenchError(f"{failed}: {outcome.failures[0]}")
    return outcome


@contextmanager
def both(
    bench: Bench, model: Path, ctx_size: int = CTX_SIZE, *, stock: bool = False
) -> Iterator[tuple[Server, Server]]:
    """lbhost and llama-server on one model, warmed up."""
    peers = bench.stock_peers if stock else bench.peers
    with (
        servers.lbhost(model, ctx_size=ctx_size) as ours,
        servers.llama_server(peers, model, ctx_size=ctx_size, slots=SLOTS) as theirs,
    ):
        for server in (ours, theirs):
            apply(server, closed(bench, SLOTS), SLOTS, 600)
        yield ours, theirs


def closed(bench: Bench, count: int) -> list[Job]:
    """Jobs for clients that send the next request when the last one is answered."""
    return [
        Job(bench.prompts.write(PROMPT_TOKENS), PROMPT_TOKENS, OUTPUT_TOKENS) for _ in range(count)
    ]


def in_turn(bench: Bench, pair: tuple[Server, Server], clients: int, each: int) -> Pairs:
    """`bench.pairs` times the same load on both, `each` requests a client."""
    pairs = Pairs([], [])
    for _ in range(bench.pairs):
        jobs = closed(bench, clients * bench.scaled(each))
        for server, runs in zip(pair, pairs, strict=True):
            runs.append(apply(server, jobs, clients, 600))
        bench.say(
            f"  {clients} clients: {pairs.ours[-1].tok_s:.0f} : {pairs.theirs[-1].tok_s:.0f} tok/s"
        )
    return pairs


def _throughput(section: str, name: str, pairs: Pairs, target: Target | None) -> Figure:
    note = pairs.behind("tok_s", 1, "tok/s")
    return Figure(section, f"{name}: tok/s", pairs.ratio("tok_s"), "x", target, note)


def _ttft(section: str, name: str, pairs: Pairs, at: str, target: Target | None) -> Figure:
    note = pairs.behind(f"ttft_{at}", 1000, "ms")
    return Figure(section, f"{name}: TTFT {at}", pairs.ratio(f"ttft_{at}"), "x", target, note)


def server(bench: Bench) -> list[Figure]:
    """Whole server, quiet box: 8, 2 and 1 clients on Q4_0, 8 on the model as shipped."""
    at = "server"
    figures: list[Figure] = []
    with both(bench, bench.q4_0) as pair:
        eight = in_turn(bench, pair, 8, 6)
        figures += [
            _throughput(at, "Q4_0, 8 clients", eight, at_least(1.10)),
            _ttft(at, "Q4_0, 8 clients", eight, "p50", at_most(0.5)),
            Figure(
                at,
                "Q4_0, 8 clients: inter-token p99",
                eight.own("gap_p99", 1000),
                "ms",
                at_most(200),
                eight.behind("gap_p99", 1000, "ms"),
            ),
        ]
        two = in_turn(bench, pair, 2, 8)
        figures.append(_throughput(at, "Q4_0, 2 clients", two, at_least(1.25)))
        one = in_turn(bench, pair, 1, 8)
        figures.append(_throughput(at, "Q4_0, 1 client", one, at_least(0.75)))
        figures.append(_ttft(at, "Q4_0, 1 client", one, "p50", at_most(1.8)))
    with both(bench, bench.shipped) as pair:
        eight = in_turn(bench, pair, 8, 4)
        figures.append(_throughput(at, "as shipped, 8 clients", eight, at_least(1.05)))
        figures.append(_ttft(at, "as shipped, 8 clients", eight, "p50", None))
    return figures


def stock(bench: Bench) -> list[Figure]:
    """Q4_0 beside llama-server as it builds itself, which is what others have. Nothing was
    promised: `server` compares with the same kernels on both sides.
    """
    figures: list[Figure] = []
    with both(bench, bench.q4_0, stock=True) as pair:
        for clients, each in ((8, 6), (2, 8), (1, 8)):
            pairs = in_turn(bench, pair, clients, each)
            name = f"Q4_0, {clients} client{'s' if clients > 1 else ''}"
            figures.append(_throughput("stock", name, pairs, None))
            figures.append(_ttft("stock", name, pairs, "p50", None))
    return figures


def neighbour(bench: Bench) -> list[Figure]:
    """The same on Q4_0 while another program spins on core 0."""
    at = "neighbour"
    figures: list[Figure] = []
    with both(bench, bench.q4_0) as pair, machine.neighbour(machine.cores()[0]):
        for clients in (8, 2):
            pairs = in_turn(bench, pair, clients, NEIGHBOUR_REQUESTS)
            name = f"Q4_0, {clients} clients"
            figures.append(_throughput(at, name, pairs, at_least(2.0)))
            figures.append(_ttft(at, name, pairs, "p99", at_most(0.5)))
    return figures


def open_loop(bench: Bench) -> list[Figure]:
    """Requests that arrive whether or not the last ones are answered. Nothing was promised."""
    at = "open"
    figures: list[Figure] = []
    arrivals = stats.poisson(1.5, bench.scaled(60), PROMPT_TOKENS, OUTPUT_TOKENS, bench.rng)
    loads = [("Poisson, 1.5 requests/s", arrivals)]
    if bench.trace is not None:
        loads.append((bench.trace.stem, _traced(bench, bench.trace)))
    with both(bench, bench.q4_0, TRACE_TOKENS) as pair:
        for name, arrivals in loads:
            pairs = Pairs([], [])
            for _ in range(min(bench.pairs, 2)):
                jobs = [Job(bench.prompts.write(p), p, m, t) for t, p, m in arrivals]
                for target, runs in zip(pair, pairs, strict=True):
                    runs.append(apply(target, jobs, 0, 600))
            figures.append(_ttft(at, name, pairs, "p50", None))
            figures.append(_ttft(at, name, pairs, "p99", None))
            gaps = pairs.behind("gap_p99", 1000, "ms")
            ratio = pairs.ratio("gap_p99")
            figures.append(Figure(at, f"{name}: inter-token p99", ratio, "x", None, gaps))
    return figures


def _traced(bench: Bench, path: Path) -> list[stats.Arrival]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return stats.trace(rows, count=bench.scaled(60), rate=TRACE_RATE, most_tokens=TRACE_TOKENS)
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: {error}") from error
