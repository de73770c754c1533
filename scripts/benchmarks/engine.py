"""Section `engine`: one worker's engine beside llama-batched-bench, one thread on one core each.

Turns are a few seconds: within a minute the same library in the same process has given 355 and
548 tok/s on a shared machine.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks import batched, machine
from benchmarks.alone import Alone, Ask, alone
from benchmarks.batched import Shape
from benchmarks.bench import Bench
from benchmarks.figures import Figure, at_least, number
from benchmarks.stats import paired_ratios, spread

BATCHES = (1, 4, 8)
PROMPT_TOKENS = 128
OUTPUT_TOKENS = 32
TURNS_PER_PAIR = 4


class Speeds(NamedTuple):
    """Tokens per second."""

    prefill: float
    decode: float


def engine(bench: Bench) -> list[Figure]:
    """Decode and prefill tok/s at batch 1, 4 and 8 on Q4_0, both in turn on the last core."""
    core = machine.cores()[-1]
    ours: dict[int, list[Speeds]] = {batch: [] for batch in BATCHES}
    theirs: dict[int, list[Speeds]] = {batch: [] for batch in BATCHES}
    with alone(bench.q4_0, core) as process:
        for _ in range(bench.pairs * bench.scaled(TURNS_PER_PAIR)):
            for batch in BATCHES:
                ours[batch].append(_engine(process, batch))
                theirs[batch].append(_batched_bench(bench, core, batch))
    figures: list[Figure] = []
    for name in Speeds._fields:
        for batch in BATCHES:
            a = [float(getattr(speeds, name)) for speeds in ours[batch]]
            b = [float(getattr(speeds, name)) for speeds in theirs[batch]]
            behind = f"{number(spread(a).median)} : {number(spread(b).median)} tok/s"
            label = f"{name}, batch {batch}: tok/s"
            figures.append(
                Figure("engine", label, paired_ratios(a, b), "x", at_least(0.95), behind)
            )
    return figures


def _engine(process: Alone, batch: int) -> Speeds:
    return Speeds(
        process.ask(Ask("prefill", batch, PROMPT_TOKENS)),
        process.ask(Ask("decode", batch, PROMPT_TOKENS, OUTPUT_TOKENS)),
    )


def _batched_bench(bench: Bench, core: int, batch: int) -> Speeds:
    shape = Shape((core,), batch, PROMPT_TOKENS, OUTPUT_TOKENS)
    (result,) = batched.run(bench.peers.batched_bench, bench.q4_0, [shape])
    return Speeds(result.prefill_tok_s, result.decode_tok_s)
