"""Measure lbhost beside its peers: each scenario's load on each of them in turn, new prompts every
round, a table of medians and of lbhost's paired ratios to each peer with their range.

Builds llama-server the first time. Peers that are not installed take no part and are named. Exits
1 if a target was missed or a scenario could not be measured. Figures count only from a box that
does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from benchmarks import figures, machine
from benchmarks.bench import Bench, BenchError
from benchmarks.comparison import picture, report, targets
from benchmarks.comparison.contenders import CONTENDERS, CTX_SIZE, SLOTS, llama_settings
from benchmarks.comparison.run import Comparison, Result
from benchmarks.comparison.scenarios import SCENARIOS
from benchmarks.figures import Verdict
from benchmarks.peers import PeerError
from benchmarks.prompts import PromptError
from lbhost.errors import LbhostError


def say(text: str) -> None:
    """Progress goes to stderr, so that the table can be piped."""
    print(text, file=sys.stderr, flush=True)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Exits 2 with one line on a wrong one."""
    parser = argparse.ArgumentParser(prog="scripts/compare", description=__doc__)
    add = parser.add_argument
    add("--scenario", type=_names, metavar="A,B", help="default: all; --list names them")
    add("--peers", type=_names, metavar="A,B", help=f"default: all of {','.join(CONTENDERS)}")
    add("--pairs", type=int, default=5, help="rounds of each scenario (default 5)")
    add("--seconds", type=float, default=60, help="of an open loop, at most of a closed (60)")
    add("--quick", action="store_true", help="one pair, an eighth of the work: only to try it out")
    add("--list", action="store_true", help="name the scenarios and end")
    add("--json", type=Path, metavar="FILE", help="also write all figures there")
    add("--picture", type=Path, metavar="FILE.svg", help="also draw the ratios there")
    add(
        "--trace",
        type=Path,
        metavar="CSV",
        help="for `azure`: rows of TIMESTAMP, ContextTokens, GeneratedTokens",
    )
    add("--seed", type=int, default=1, help="of the prompts and arrivals")
    add("--lbhost-flags", type=shlex.split, default=[], metavar="FLAGS", help="for lbhost serve")
    given = parser.parse_args(argv)
    given.scenario = given.scenario or list(SCENARIOS)
    given.peers = given.peers or list(CONTENDERS)
    for what, names, known in (
        ("scenario", given.scenario, SCENARIOS),
        ("peer", given.peers, CONTENDERS),
    ):
        for name in names:
            if name not in known:
                parser.error(f"unknown {what} {name!r}; there are {', '.join(known)}")
    if not 1 <= given.pairs <= 100:
        parser.error("--pairs is a number from 1 to 100")
    if not 1 <= given.seconds <= 600:
        parser.error("--seconds is a number from 1 to 600")
    if given.trace is not None and not given.trace.is_file():
        parser.error(f"--trace: no such file {given.trace}")
    return given


def _stop(_signum: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def measure(given: argparse.Namespace, bench: Bench) -> tuple[list[Result], str]:
    """All results, and what ended the comparison early, if something did."""
    seconds = given.seconds / 8 if given.quick else given.seconds
    comparison = Comparison(bench, given.peers, seconds, given.lbhost_flags)
    results: list[Result] = []
    try:
        for result in comparison.run(given.scenario):
            results.append(result)
            print(report.table(result) + "\n", flush=True)
    except (BenchError, PeerError, PromptError, LbhostError, OSError) as error:
        return results, str(error)
    return results, ""


def main(argv: list[str]) -> int:
    """Returns the exit code."""
    os.environ.pop("PYTHONPATH", None)
    given = parse(argv)
    if given.list:
        for name, scenario in SCENARIOS.items():
            print(f"{name:<12} {scenario.about}")
        return 0
    signal.signal(signal.SIGTERM, _stop)
    pairs = 1 if given.quick else given.pairs
    bench = Bench(pairs=pairs, quick=given.quick, seed=given.seed, trace=given.trace, say=say)
    disturbances = machine.disturbances()
    for line in disturbances:
        say(f"warning: the machine is busy, figures will be noise: {line}")
    described = f"{machine.describe()}; {pairs} pairs{', QUICK' if given.quick else ''}"
    print(f"{described}\n", flush=True)
    try:
        results, ended = measure(given, bench)
    except KeyboardInterrupt:
        say("stopped")
        return 130
    judged = targets.judge(results)
    if judged:
        print(figures.table(judged) + "\n")
    cores = len(machine.cores())
    print("Median of each server; for a peer (lbhost over it: median, range).")
    print(f"good: first token within 1 s, then 100 ms a token. lbhost: --ctx-size {CTX_SIZE}")
    print(f"llama-server: {' '.join(llama_settings(cores, SLOTS))}")
    print(f"before haproxy's and nginx's: {' '.join(llama_settings(1, max(1, SLOTS // cores)))}")
    if ended:
        print(f"ended early: {ended}")
    if given.json is not None:
        data: dict[str, Any] = {
            "machine": machine.describe(),
            "pairs": pairs,
            "quick": given.quick,
            "seed": given.seed,
            "disturbances": disturbances,
            "scenarios": [report.as_data(result) for result in results],
            "targets": figures.as_data(judged),
            "ended_early": ended or None,
        }
        given.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    if given.picture is not None:
        given.picture.write_text(picture.draw(results, described), encoding="utf-8")
    unmeasured = [result.name for result in results if not result.runs]
    missed = any(figure.verdict is Verdict.MISSED for figure in judged)
    return 1 if missed or unmeasured or ended else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
