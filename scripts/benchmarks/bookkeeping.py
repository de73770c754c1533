"""Section `bookkeeping`: what keeping KV states costs where nothing fails and nothing comes again.

Two servers on one model, with states and with none (`--state-cache 0`: no saving of what has
ended, no checkpoint of what runs, no store), get the same new prompts in turn, each first every
other time. CPU time is compared beside throughput: it is nearly the same on a busy box.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import httpx2

from benchmarks import machine, servers, stats
from benchmarks.bench import Bench, BenchError
from benchmarks.figures import Figure, at_least, at_most
from benchmarks.servers import Server
from benchmarks.serving import OUTPUT_TOKENS, SLOTS, Pairs, apply, closed
from benchmarks.stats import spread

CTX_SIZE = 512
MOST_COST = 0.02
"""Of the throughput."""

_SAVING = "lbhost_state_save_seconds_total"

_EACH = 2
"""Requests of a client in a run: short ones, so that the box drifts little within a pair."""


class Spent(NamedTuple):
    """CPU seconds of a server's processes."""

    workers: float
    gateway: float

    def since(self, before: Spent) -> Spent:
        return Spent(self.workers - before.workers, self.gateway - before.gateway)


def spent(server: Server) -> Spent:
    """Up to now. Raises OSError when nobody answers."""
    status = servers.ask(server, "GET", "/status")
    workers = [worker["pid"] for worker in status["workers"]]
    return Spent(machine.cpu_s(workers), machine.cpu_s([status["gateway"]["pid"]]))


def saving_s(server: Server) -> float:
    """Seconds that its workers have spent on saving, all of them together."""
    with httpx2.Client(base_url=f"http://{server.host}:{server.port}") as client:
        lines = client.get("/metrics").raise_for_status().text.splitlines()
    values = [float(line.split()[-1]) for line in lines if line.startswith(_SAVING)]
    if not values:
        raise BenchError(f"{server.name} does not tell {_SAVING}")
    return sum(values)


def bookkeeping(bench: Bench) -> list[Figure]:
    """Throughput and latency with states over those without."""
    with (
        servers.lbhost(bench.shipped, ctx_size=CTX_SIZE) as keeps,
        servers.lbhost(bench.shipped, ctx_size=CTX_SIZE, flags=("--state-cache", "0")) as forgets,
    ):
        both = (keeps, forgets)
        for server in both:
            apply(server, closed(bench, SLOTS), SLOTS, 600)
        pairs = Pairs([], [])
        costs: tuple[list[Spent], list[Spent]] = ([], [])
        saving, busy_s = saving_s(keeps), 0.0
        for turn in range(bench.pairs):
            jobs = closed(bench, SLOTS * bench.scaled(_EACH))
            for place in (0, 1) if turn % 2 == 0 else (1, 0):
                began, before = time.monotonic(), spent(both[place])
                pairs[place].append(apply(both[place], jobs, SLOTS, 600))
                costs[place].append(spent(both[place]).since(before))
                busy_s += time.monotonic() - began if place == 0 else 0.0
            ours, theirs = pairs.ours[-1].tok_s, pairs.theirs[-1].tok_s
            bench.say(f"bookkeeping, pair {turn + 1}: {ours:.1f} : {theirs:.1f} tokens/s")
        saving = saving_s(keeps) - saving
        tokens = len(jobs) * OUTPUT_TOKENS
        status = servers.ask(keeps, "GET", "/status")
        saved, workers = status["states"]["entries"], len(status["workers"])
    return [
        Figure(
            "bookkeeping",
            f"{SLOTS} clients, tokens/s with KV states over without",
            pairs.ratio("tok_s"),
            "x",
            at_least(1 - MOST_COST),
            f"{pairs.behind('tok_s', 1, 'tokens/s')}, {saved} states kept",
        ),
        *_cpu(costs, tokens),
        Figure(
            "bookkeeping",
            "part of the workers' time in which they save states",
            spread([100 * saving / busy_s / workers]),
            "%",
            at_most(100 * MOST_COST),
            f"{saving:.2f} s of {workers} x {busy_s:.0f} s",
        ),
        Figure(
            "bookkeeping",
            f"{SLOTS} clients, between tokens, p99",
            pairs.ratio("gap_p99"),
            "x",
            None,
            pairs.behind("gap_p99", 1000, "ms"),
        ),
    ]


def _cpu(costs: tuple[list[Spent], list[Spent]], tokens: int) -> list[Figure]:
    """Of both servers, run by run of so many tokens."""
    figures: list[Figure] = []
    for who in Spent._fields:
        ours, theirs = ([getattr(one, who) for one in runs] for runs in costs)
        each = " : ".join(
            f"{1000 * stats.spread(values).median / tokens:.3f}" for values in (ours, theirs)
        )
        figures.append(
            Figure(
                "bookkeeping",
                f"CPU time of the {who} with KV states over without",
                stats.paired_ratios(ours, theirs),
                "x",
                at_most(1 / (1 - MOST_COST)) if who == "workers" else None,
                f"{each} ms a token",
            )
        )
    return figures
