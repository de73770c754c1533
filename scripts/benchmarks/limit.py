"""Section `limit`: what this machine can give, with no server at all.

lbhost rests on one thing: that pinned single-threaded workers compute more together than one
process with a thread per core. How much more is the machine's matter. Every worker fetches all
weights for each of its steps, the threads of one process share that; they meet at barriers
instead. Where memory is slow and the box quiet, the two are even, and no server around them
changes that.
"""

from __future__ import annotations

from benchmarks import batched, machine
from benchmarks.batched import Shape
from benchmarks.bench import Bench
from benchmarks.figures import Figure, number
from benchmarks.serving import OUTPUT_TOKENS, PROMPT_TOKENS
from benchmarks.stats import paired_ratios, spread

CLIENTS = (8, 2)
TURNS_PER_PAIR = 2


def limit(bench: Bench) -> list[Figure]:
    """Output tok/s of whole requests: a process per core beside one with all of them."""
    cores = machine.cores()
    program = bench.peers.batched_bench
    figures: list[Figure] = []
    for clients in CLIENTS:
        each = max(1, clients // len(cores))
        pinned = [Shape((core,), each, PROMPT_TOKENS, OUTPUT_TOKENS) for core in cores]
        whole = [Shape(tuple(cores), each * len(cores), PROMPT_TOKENS, OUTPUT_TOKENS)]
        apart: list[float] = []
        together: list[float] = []
        for _ in range(bench.pairs * bench.scaled(TURNS_PER_PAIR)):
            for shapes, found in ((pinned, apart), (whole, together)):
                results = batched.run(program, bench.q4_0, shapes)
                found.append(
                    sum(
                        shape.batch * OUTPUT_TOKENS / result.seconds
                        for shape, result in zip(shapes, results, strict=True)
                    )
                )
        behind = f"{number(spread(apart).median)} : {number(spread(together).median)} tok/s"
        name = f"llama.cpp alone, pinned : threaded, {each * len(cores)} sequences"
        figures.append(Figure("limit", name, paired_ratios(apart, together), "x", None, behind))
    return figures
