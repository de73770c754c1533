"""Measure lbhost beside llama.cpp's own server, and report what was promised and what was found.

Builds the peers the first time. Prints a table; exits 1 if a target was missed or a section could
not be measured. Figures count only from a box that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import (
    bookkeeping,
    bound,
    costs,
    embeddings,
    engine,
    failover,
    limit,
    machine,
    overhead,
    servers,
    serving,
    streams,
    two_models,
)
from benchmarks.bench import Bench, BenchError
from benchmarks.figures import Figure, Verdict, as_data, table
from benchmarks.peers import PeerError
from benchmarks.prompts import PromptError
from benchmarks.servers import ServerError
from lbhost.errors import LbhostError

SECTIONS: dict[str, Callable[[Bench], list[Figure]]] = {
    "engine": engine.engine,
    "bound": bound.bound,
    "limit": limit.limit,
    "server": serving.server,
    "stock": serving.stock,
    "neighbour": serving.neighbour,
    "open": serving.open_loop,
    "overhead": overhead.overhead,
    "streams": streams.streams,
    "bookkeeping": bookkeeping.bookkeeping,
    "recovery": costs.recovery,
    "failover": failover.failover,
    "memory": costs.memory,
    "idle": costs.idle,
    "sensors": costs.sensors,
    "wake": costs.wake,
    "embeddings": embeddings.embeddings,
    "two-models": two_models.two_models,
}

WITH_EMBEDDINGS = {"embeddings", "two-models"}
"""Those that need --embedding-model."""


def say(text: str) -> None:
    """Progress goes to stderr, so that the table can be piped."""
    print(text, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Exits 2 with one line on a wrong one."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"default: all of {', '.join(SECTIONS)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--pairs", type=int, default=5, help="A B pairs of each load (default 5)")
    parser.add_argument(
        "--quick", action="store_true", help="one pair, an eighth of the work: only to try it out"
    )
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="CSV",
        help="in `open`, also play arrivals with columns TIMESTAMP, ContextTokens, GeneratedTokens",
    )
    parser.add_argument(
        "--embedding-model",
        type=Path,
        metavar="GGUF",
        help=f"what {' and '.join(sorted(WITH_EMBEDDINGS))} embed with; needed for them",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the prompts and arrivals")
    given = parser.parse_args(argv)
    for name in given.sections:
        if name not in SECTIONS:
            parser.error(f"unknown section {name!r}; there are {', '.join(SECTIONS)}")
    if not 1 <= given.pairs <= 100:
        parser.error("--pairs is a number from 1 to 100")
    if given.trace is not None and not given.trace.is_file():
        parser.error(f"--trace: no such file {given.trace}")
    if given.embedding_model is not None and not given.embedding_model.is_file():
        parser.error(f"--embedding-model: no such file {given.embedding_model}")
    if given.embedding_model is not None:
        given.embedding_model = given.embedding_model.resolve()  # children run elsewhere
    if given.embedding_model is None:
        if named := sorted(WITH_EMBEDDINGS & set(given.sections)):
            parser.error(f"{', '.join(named)}: needs --embedding-model FILE.gguf")
        given.sections = given.sections or [s for s in SECTIONS if s not in WITH_EMBEDDINGS]
    return given


def measure(bench: Bench, names: list[str]) -> tuple[list[Figure], list[str]]:
    """All figures, and one line for each section that could not be measured."""
    figures: list[Figure] = []
    failures: list[str] = []
    for name in names:
        say(f"-- {name}")
        started = time.monotonic()
        try:
            figures += SECTIONS[name](bench)
        except (BenchError, PeerError, PromptError, ServerError, LbhostError) as error:
            failures.append(f"{name}: {error}")
        except (OSError, subprocess.SubprocessError) as error:
            failures.append(f"{name}: {type(error).__name__}: {error}")
        say(f"   {time.monotonic() - started:.0f} s")
    return figures, failures


def _stop(_signum: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    """Returns the exit code."""
    os.environ.pop("PYTHONPATH", None)
    given = parse(argv)
    signal.signal(signal.SIGTERM, _stop)
    pairs = 1 if given.quick else given.pairs
    bench = Bench(
        pairs=pairs,
        quick=given.quick,
        seed=given.seed,
        trace=given.trace,
        say=say,
        embedding=given.embedding_model,
    )
    disturbances = machine.disturbances()
    for line in disturbances:
        say(f"warning: the machine is busy, figures will be noise: {line}")
    try:
        figures, failures = measure(bench, given.sections or list(SECTIONS))
    except KeyboardInterrupt:
        say("stopped")
        return 130
    peer = " ".join(servers.peer_settings(serving.CTX_SIZE, serving.SLOTS))
    print(f"{machine.describe()}; {pairs} pairs{', QUICK' if given.quick else ''}\n")
    print(table(figures))
    print(f"\nx: lbhost over its peer, paired. llama-server ran with {peer}")
    for line in failures:
        print(f"not measured: {line}")
    if given.json is not None:
        report: dict[str, Any] = {
            "machine": machine.describe(),
            "peer": peer,
            "pairs": pairs,
            "quick": given.quick,
            "disturbances": disturbances,
            "figures": as_data(figures),
            "failures": failures,
        }
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    missed = any(figure.verdict is Verdict.MISSED for figure in figures)
    return 1 if missed or failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
