"""What lbhost means to reach beside its peers, and whether it did.

Pure. A target that names a peer is a bound on lbhost's paired ratio to it, one that names none on
lbhost's own value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.comparison import measures
from benchmarks.comparison.report import OURS, label
from benchmarks.comparison.run import Result
from benchmarks.figures import Figure, Target, at_least, at_most, number
from benchmarks.stats import spread

LLAMA = "llama-server"
HAPROXY = "haproxy"
BEST = "best peer"


class Promise(NamedTuple):
    """A target of one scenario."""

    scenario: str
    measure: str
    peer: str | None
    target: Target


def _mix(name: str) -> list[Promise]:
    even = [("tok_s", at_least(1.0)), ("short.ttft_p99", at_most(1.0))]
    even += [("long.ttft_p50", at_most(1.0)), ("long.e2e_p50", at_most(1.0))]
    return [
        Promise(name, "short.ttft_p99", LLAMA, at_most(0.4)),
        Promise(name, "tok_s", LLAMA, at_least(1.0)),
        Promise(name, "long.ttft_p50", LLAMA, at_most(1.15)),
        Promise(name, "long.e2e_p50", LLAMA, at_most(1.15)),
        *(Promise(name, measure, HAPROXY, target) for measure, target in even),
    ]


PROMISES = (
    Promise("clients-1", "tok_s", LLAMA, at_least(1.0)),
    Promise("clients-1", "ttft_p50", LLAMA, at_most(1.05)),
    Promise("clients-2", "tok_s", LLAMA, at_least(1.15)),
    Promise("clients-8", "tok_s", LLAMA, at_least(1.0)),
    Promise("clients-8", "ttft_p50", LLAMA, at_most(0.5)),
    Promise("clients-8", "ttft_p99", LLAMA, at_most(1.0)),
    Promise("clients-8", "gap_p99", None, at_most(0.150)),
    Promise("clients-32", "tok_s", LLAMA, at_least(1.0)),
    *_mix("mix-35"),
    *_mix("mix-60"),
    Promise("mix-60", "short.ttft_p99", None, at_most(1.0)),
    *_mix("mix-85"),
    Promise("repeated-8", "tok_s", LLAMA, at_least(1.0)),
    Promise("repeated-mix", "short.ttft_p99", LLAMA, at_most(1.0)),
    Promise("repeated-mix", "long.ttft_p50", LLAMA, at_most(1.0)),
    Promise("repeated-mix", "long.e2e_p50", LLAMA, at_most(1.0)),
    Promise("prefix-8", "tok_s", LLAMA, at_least(1.5)),
    Promise("turns-32", "later.ttft_p50", LLAMA, at_most(0.7)),
    Promise("turns-32", "tok_s", LLAMA, at_least(1.2)),
    Promise("neighbour-2", "tok_s", LLAMA, at_least(1.8)),
    Promise("neighbour-8", "tok_s", LLAMA, at_least(1.45)),
    *(
        Promise(name, measure, peer, target)
        for name in ("neighbour-2", "neighbour-8")
        for measure, peer, target in (
            ("tok_s", HAPROXY, at_least(1.05)),
            ("ttft_p99", LLAMA, at_most(0.6)),
            ("ttft_p99", HAPROXY, at_most(0.6)),
        )
    ),
    Promise("azure", "goodput", BEST, at_least(1.2)),
    Promise("shipped-8", "tok_s", LLAMA, at_least(1.3)),
    Promise("1b-1", "tok_s", LLAMA, at_least(1.0)),
    Promise("1b-1", "ttft_p50", LLAMA, at_most(1.05)),
    Promise("1b-8", "tok_s", LLAMA, at_least(1.0)),
    Promise("1b-8", "ttft_p50", LLAMA, at_most(0.8)),
    Promise("1b-8", "ttft_p99", LLAMA, at_most(1.1)),
)


def judge(results: Sequence[Result]) -> list[Figure]:
    """A line for each target whose scenario and peer were measured."""
    by_name = {result.name: result for result in results}
    judged = (
        _figure(by_name[promise.scenario], promise)
        for promise in PROMISES
        if promise.scenario in by_name
    )
    return [figure for figure in judged if figure is not None]


def _figure(result: Result, promise: Promise) -> Figure | None:
    text, scale = label(promise.measure)
    ours = measures.own(result.runs.get(OURS, []), promise.measure)
    if ours is None:
        return None
    if promise.peer is None:
        scaled = spread([run[promise.measure] * scale for run in result.runs[OURS]])
        target = promise.target._replace(value=promise.target.value * scale)
        return Figure(result.name, text.removesuffix(" ms"), scaled, "ms", target)
    peer = _best(result, promise.measure) if promise.peer == BEST else promise.peer
    runs = result.runs.get(peer, [])
    theirs = measures.own(runs, promise.measure)
    ratio = measures.ratios(result.runs[OURS], runs, promise.measure)
    if theirs is None or ratio is None:
        return None
    behind = f"{number(ours.median * scale)} : {number(theirs.median * scale)}"
    return Figure(result.name, f"{text} / {peer}", ratio, "x", promise.target, behind)


def _best(result: Result, measure: str) -> str:
    """The peer with the greatest median."""
    medians = {
        name: found.median
        for name, runs in result.runs.items()
        if name != OURS and (found := measures.own(runs, measure)) is not None
    }
    return max(medians, key=lambda name: medians[name], default="")
