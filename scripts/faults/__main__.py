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

import msgspec

from benchmarks import machine, stats
from faults import episode, kills
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
    parser.add_argument("--list", action="store_true", help="name the faults and end")
    args = parser.parse_args(argv)
    if unknown := set(args.faults) - set(FAULTS):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; --list names them")
    if not 0.1 <= args.minutes <= 600:
        parser.error("--minutes: from 0.1 to 600")
    if args.kills is not None and (args.kills < 1 or args.faults):
        parser.error("--kills: at least 1, and no faults beside it")
    if not 0 < args.load <= 2:
        parser.error("--load: over 0, at most 2")
    return args


async def run(args: argparse.Namespace) -> list[Result]:
    """Raises BoxError when a server cannot be started or brought back."""
    rng = random.Random(args.seed)
    model = Path(resolve(args.model).path)
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
        result = await episode.play(faults, model, asked, known, rate, seconds, args.seed + number)
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
    head = ["fault", "asked", *(str(kind) for kind in Verdict), "excused", "strokes"]
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
        asked = str(sum(result.counts.values()))
        row = [result.name, asked, *counts, str(result.excused), str(result.strokes), *spread]
        rows.append([*row, str(len(result.leaks))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def many_kills(args: argparse.Namespace) -> int:
    """Exit status as `main`'s. Raises BoxError, LbhostError."""
    model = Path(resolve(args.model).path)
    found = asyncio.run(kills.run(model, args.kills, random.Random(args.seed)))
    print(kills.report(found))
    if args.json is not None:
        args.json.write_bytes(msgspec.json.encode(found))
    return 1 if found.broken else 0


def main(argv: list[str]) -> int:
    """Exit status: 0 all promises kept, 1 one was broken, 2 it could not be tried."""
    args = parse(argv)
    if args.list:
        for fault in FAULTS.values():
            print(f"{fault.name:18} {fault.what}")
        return 0
    say(machine.describe())
    try:
        if args.kills is not None:
            return many_kills(args)
        results = asyncio.run(run(args))
    except BoxError as error:
        say(f"chaos: {error}")
        return 1
    except LbhostError as error:
        say(f"chaos: {error.message}")
        return 2
    print(table(results))
    for result in results:
        for line in result.broken:
            print(f"BROKEN {result.name}: {line}")
        for text, reference in result.different[:5]:
            at = parted(text, reference)
            print(f"  from character {at}: {text[at : at + 60]!r}, not {reference[at : at + 60]!r}")
    if args.json is not None:
        args.json.write_bytes(msgspec.json.encode(results))
    return 1 if any(result.broken for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
