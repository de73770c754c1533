"""Section `bookkeeping`: what keeping KV states costs where nothing fails and nothing comes again.

Two servers on one model, with states and with none (`--state-cache 0`: no saving of what has
ended, no checkpoint of what runs, no store), get the same new prompts in turn, each first every
other time.
"""

from __future__ import annotations

from benchmarks import servers
from benchmarks.bench import Bench
from benchmarks.figures import Figure, at_least
from benchmarks.serving import SLOTS, Pairs, apply, closed

CTX_SIZE = 512
MOST_COST = 0.02
"""Of the throughput."""

_EACH = 2
"""Requests of a client in a run: short ones, so that the box drifts little within a pair."""


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
        for turn in range(bench.pairs):
            jobs = closed(bench, SLOTS * bench.scaled(_EACH))
            for place in (0, 1) if turn % 2 == 0 else (1, 0):
                pairs[place].append(apply(both[place], jobs, SLOTS, 600))
            ours, theirs = pairs.ours[-1].tok_s, pairs.theirs[-1].tok_s
            bench.say(f"bookkeeping, pair {turn + 1}: {ours:.1f} : {theirs:.1f} tokens/s")
        saved = servers.ask(keeps, "GET", "/status")["states"]["entries"]
    return [
        Figure(
            "bookkeeping",
            f"{SLOTS} clients, tokens/s with KV states over without",
            pairs.ratio("tok_s"),
            "x",
            at_least(1 - MOST_COST),
            f"{pairs.behind('tok_s', 1, 'tokens/s')}, {saved} states kept",
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
