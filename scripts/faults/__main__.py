"""Break a real server on purpose, under load, and count what its clients lose.

Every fault alone, then three at once. Ends with 1 when a promise was broken: a wrong or silently
truncated answer, a request that failed for a worker's fault, something leaked. The same seed breaks
the same things in the same order; how fast the box is decides what that hits.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import machine, stats
from faults import crowds, episode, kills, soak
from faults.answers import Question, Reference, Verdict, parted
from faults.box import Box, BoxError
from faults.catalogue import FAULTS
from faults.episode import Result
from faults.traffic import Client, capacity, questions, references
from lbhost.errors import LbhostError
from lbhost.model import resolve

LOAD = 0.7
"""Of what the box can do."""

_CLIENTS = 8
_CAPACITY_S = 8.0


def say(text: str) -> None:
    """Progress goes to stderr, so that the table can be piped."""
    print(text, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Exits 2 with one line on a wrong one."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="default: all; see --list")
    parser.add_argument("--minutes", type=float, default=30.0, help="in all (default 30)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--load", type=float, default=LOAD, help=f"of capacity (default {LOAD})")
    parser.add_argument("--model", default="starter", help="as lbhost serve has it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument(
        "--kills",
        type=int,
        metavar="N",
        help="instead: kill N workers under short greedy streams, and say how many answers are "
        "as undisturbed; Ctrl-C ends it early, with the figures so far",
    )
    parser.add_argument(
        "--soak",
        action="store_true",
        help="instead: let it work for --minutes, and say by how much each process grows",
    )
    parser.add_argument(
        "--embedding-model",
        metavar="MODEL",
        help="of --soak, beside --model (default: the same file)",
    )
    parser.add_argument(
        "--rude",
        type=int,
        metavar="N",
        help="instead: N clients of each rude kind, and what an honest one gets beside them",
    )
    parser.add_argument(
        "--at-once",
        type=int,
        metavar="N",
        help=f"of --rude: clients at a time (default {crowds.AT_ONCE})",
    )
    parser.add_argument("--list", action="store_true", help="name the faults and end")
    args = parser.parse_args(argv)
    if unknown := set(args.faults) - set(FAULTS):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; --list names them")
    if not 0.1 <= args.minutes <= 600:
        parser.error("--minutes: from 0.1 to 600")
    instead = [args.kills is not None, args.soak, args.rude is not None]
    if sum(instead) > 1 or (any(instead) and args.faults):
        parser.error("one of --kills, --soak and --rude, and no faults beside it")
    for flag, count in (
        ("--kills", args.kills),
        ("--rude", args.rude),
        ("--at-once", args.at_once),
    ):
        if count is not None and count < 1:
            parser.error(f"{flag}: at least 1")
    if args.soak and args.minutes < soak.LEAST_MINUTES:
        parser.error(f"--soak: --minutes at least {soak.LEAST_MINUTES:g}, or no line can be laid")
    for flag, given, only in (
        ("--embedding-model", args.embedding_model, ("--soak", args.soak)),
        ("--at-once", args.at_once, ("--rude", args.rude is not None)),
    ):
        if given is not None and not only[1]:
            parser.error(f"{flag} is for {only[0]}: give both, or leave it out")
    if not 0 < args.load <= 2:
        parser.error("--load: over 0, at most 2")
    return args


async def run(args: argparse.Namespace) -> list[Result]:
    """A server that cannot be started or brought back is its episode's broken promise: what others
    came to is told all the same.

    Raises BoxError when not even the undisturbed one can be started.
    """
    rng = random.Random(args.seed)
    model = _path(args.model)
    asked = questions(rng)
    known, rate = await _undisturbed(model, asked, rng)
    say(f"{len(known)} of {len(asked)} questions have one answer; {rate:.2f} requests/s")
    rate *= args.load
    chosen = [FAULTS[name] for name in args.faults] or list(FAULTS.values())
    for fault in chosen:
        if fault.missing:
            say(f"{fault.name} is left out: {fault.missing}")
    chosen = [fault for fault in chosen if not fault.missing]
    rounds = [[fault] for fault in chosen]
    if len(chosen) > 1 and (mix := episode.mixed(chosen, rng)):
        rounds.append(mix)
    seconds = args.minutes * 60 / len(rounds)
    results: list[Result] = []
    for number, faults in enumerate(rounds):
        seed = args.seed + number
        try:
            result = await episode.play(faults, model, asked, known, rate, seconds, seed)
        except BoxError as error:
            result = episode.lost(faults, str(error))
        results.append(result)
        say(f"{result.name}: {'; '.join(result.broken) or 'kept'}")
    return results


async def _undisturbed(
    model: Path, asked: list[Question], rng: random.Random
) -> tuple[dict[int, Reference], float]:
    """The undisturbed answers by question, and requests per second when there is enough to do."""
    with tempfile.TemporaryDirectory(prefix="lbhost-chaos-") as folder:
        box = Box(Path(folder), model)
        client = Client(box.endpoint, asked)
        try:
            await box.start()
            known = await references(client)
            rate = await capacity(client, _CLIENTS, _CAPACITY_S, rng)
        finally:
            await client.close()
            await box.stop()
    return known, rate


def table(results: list[Result]) -> str:
    """One line for each episode."""
    head = ["fault", "not sent", "asked", *(str(kind) for kind in Verdict), "excused", "strokes"]
    head += ["recovery p50", "p99", "max", "leaked"]
    rows = [head]
    for result in results:
        times = result.recovered_s
        spread = [
            f"{value * 1000:.0f} ms"
            for value in (
                (stats.quantile(times, 0.5), stats.quantile(times, 0.99), max(times))
                if times
                else ()
            )
        ] or ["", "", ""]
        counts = [str(result.counts[kind]) for kind in Verdict]
        numbers = (result.skipped, sum(result.counts.values()))
        row = [result.name, *map(str, numbers), *counts]
        row += [str(result.excused), str(result.strokes), *spread]
        rows.append([*row, str(len(result.leaks))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def play(args: argparse.Namespace) -> tuple[str, list[str], Any]:
    """What is asked for; returns what people read, the broken promises, and the figures.

    Raises BoxError, LbhostError.
    """
    rng = random.Random(args.seed)
    if args.kills is not None:
        killed = asyncio.run(kills.run(_path(args.model), args.kills, rng))
        return kills.report(killed), killed.broken, killed
    if args.soak:
        embedding = None if args.embedding_model is None else _path(args.embedding_model)
        model = _path(args.model)
        soaked = asyncio.run(soak.run(model, embedding, args.minutes, args.load, rng))
        return soak.report(soaked), soaked.broken, soaked
    if args.rude is not None:
        at_once = args.at_once or crowds.AT_ONCE
        crowded = asyncio.run(crowds.run(_path(args.model), args.rude, at_once, rng))
        return crowds.report(crowded), crowded.broken, crowded
    results = asyncio.run(run(args))
    broken = [line for result in results for line in result.broken]
    return report(results), broken, results


def _path(model: str) -> Path:
    return Path(resolve(model).path)


def report(results: list[Result]) -> str:
    """For people: the table, and what was broken."""
    lines = [table(results)]
    for result in results:
        lines += [f"BROKEN {result.name}: {line}" for line in result.broken]
        for text, reference, margin in result.different[:5]:
            at = parted(text, reference)
            was, became = reference[at : at + 60], text[at : at + 60]
            lines.append(f"  from character {at}: {became!r}, not {was!r} (margin {margin:.3f})")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Exit status: 0 all promises kept, 1 one was broken, 2 it could not be tried."""
    args = parse(argv)
    if args.list:
        for fault in FAULTS.values():
            print(f"{fault.name:18} {fault.what}")
        return 0
    say(machine.describe())
    try:
        text, broken, figures = play(args)
    except BoxError as error:
        say(f"chaos: {error}")
        return 1
    except LbhostError as error:
        say(f"chaos: {error.message}")
        return 2
    print(text)
    if args.json is not None:
        args.json.write_bytes(msgspec.json.encode(figures))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
