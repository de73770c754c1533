"""Play load to lbhost's own scheduling in simulated time, and compare ways to choose a worker.

Virtual workers compute nothing: a model of costs says how long their steps take. Everything
between a request's tokens and the worker's batch is lbhost's own code. The same arguments give
the same figures.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
from pathlib import Path
from typing import NoReturn

import msgspec

from benchmarks import peers
from benchmarks.servers import ServerError
from benchmarks.stats import Arrival
from lbhost import log
from lbhost.choices import LogFormat, LogLevel
from lbhost.errors import LbhostError
from simulation import arrivals as load
from simulation import compared, constants, day_report, measured, report, routing
from simulation import day as simulated_day
from simulation.costs import Costs
from simulation.play import Played, play
from simulation.scenario import Scenario, trouble


def say(text: str) -> None:
    """Progress goes to stderr, so that the table can be piped."""
    print(text, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line. Exits 2 with one line on a wrong one."""
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument(
        "policies",
        nargs="*",
        metavar="POLICY",
        help=f"default: all of {', '.join(routing.NAMES)}; see simulation/routing.py",
    )
    box = parser.add_argument_group("the box")
    box.add_argument("--workers", type=int, default=64, help="2 to 1000 (default 64)")
    box.add_argument("--slots", type=int, default=4, help="of each worker (default 4)")
    box.add_argument("--prefill", type=float, help="prompt tokens/s of a worker (default: starter)")
    box.add_argument("--step", type=float, nargs=2, metavar=("BASE", "SEQ"), help="seconds")
    box.add_argument("--step-noise", type=float, default=0.05, help="of a step's time, 0 to 1")
    box.add_argument("--noise", type=float, default=0.0, help="of the sensors, 0 to 1")
    box.add_argument("--slow", type=float, default=0.0, help="part of workers with a neighbour")
    box.add_argument("--hot", type=float, default=0.0, help="part of workers that get hot")
    box.add_argument("--no-lend", action="store_true", help="every worker keeps to its core")
    box.add_argument("--dying", type=int, default=0, help="so many workers die, half after a hang")
    what = parser.add_argument_group("the load")
    what.add_argument("--requests", type=int, default=2000, help="how many (default 2000)")
    what.add_argument("--load", type=float, default=0.85, help="of capacity (default 0.85)")
    what.add_argument("--trace", type=Path, metavar="CSV", help="default: a mix of two kinds")
    what.add_argument("--most-tokens", type=int, default=4096, help="of a trace's request")
    what.add_argument("--max-tokens", type=int, help="what clients ask for; default: what they get")
    what.add_argument(
        "--queue-timeout",
        type=float,
        metavar="S",
        help="as lbhost's: what cannot begin within it is refused (default: nothing is)",
    )
    what.add_argument(
        "--burst", type=float, nargs=3, metavar=("AT", "FOR", "TIMES"), help="s, s, times the rate"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="MODULE.NAME=VALUE",
        help="another value for a constant of lbhost, as worker.batch.MIN_CHUNK=32",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument(
        "--day",
        type=Path,
        nargs="+",
        metavar="CSV",
        help="a day of a model for each trace, with as many workers as the autoscaler gives them; "
        "--workers cores, --load at their busiest hours",
    )
    real = parser.add_mutually_exclusive_group()
    real.add_argument(
        "--measure", type=Path, metavar="FILE", help="play the load to a real server on this box"
    )
    real.add_argument(
        "--validate",
        type=Path,
        metavar="FILE",
        help="compare such a run with its simulation, or one of `scripts/compare --json` (whose "
        "workers are as --workers, and as fast as they said or else as --prefill and --step)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture, .svg or .png")
    given = parser.parse_args(argv)
    _check(parser, given)
    return given


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    for name in given.policies:
        if name not in routing.NAMES:
            parser.error(f"unknown policy {name!r}; there are {', '.join(routing.NAMES)}")
    if not 2 <= given.workers <= 1000:
        parser.error("--workers is a number from 2 to 1000")
    if not 1 <= given.slots <= 64:
        parser.error("--slots is a number from 1 to 64")
    if not 1 <= given.requests <= 1_000_000:
        parser.error("--requests is a number from 1 to 1000000")
    if not 0 < given.load <= 10:
        parser.error("--load is over 0 and at most 10")
    if given.queue_timeout is not None and not 0.001 <= given.queue_timeout <= 86_400:
        parser.error("--queue-timeout is from 0.001 to 86400")
    for name in ("step_noise", "noise", "slow", "hot"):
        if not 0 <= getattr(given, name) <= 1:
            parser.error(f"--{name.replace('_', '-')} is from 0 to 1")
    for flag, paths in (("--trace", [given.trace]), ("--day", given.day or [])):
        for path in paths:
            if path is not None and not path.is_file():
                parser.error(f"{flag}: no such file {path}")


def costs(given: argparse.Namespace) -> Costs:
    """The model of costs that was asked for."""
    default = Costs()
    base, seq = given.step or (default.step_base_s, default.step_seq_s)
    return Costs(
        prefill_tok_s=given.prefill or default.prefill_tok_s,
        step_base_s=base,
        step_seq_s=seq,
        noise=given.step_noise,
        slots=given.slots,
    )


def arrivals(given: argparse.Namespace, model: Costs, workers: int) -> list[Arrival]:
    """The load that was asked for. Raises OSError or ValueError if the trace is none."""

    def at_rate(rate: float) -> list[Arrival]:
        if given.trace is not None:
            return load.recorded(given.trace, rate, given.requests, given.most_tokens)
        return load.mixed(rate, given.requests, random.Random(given.seed))

    made = at_rate(given.load * load.capacity(at_rate(1.0), model, workers))
    return load.with_burst(made, *given.burst) if given.burst else made


def scenario(given: argparse.Namespace, model: Costs, length_s: float) -> Scenario:
    """The box that was asked for."""
    on_cores, ends = trouble(
        given.workers,
        length_s,
        random.Random(f"{given.seed} trouble"),
        slow=given.slow,
        hot=given.hot,
        dying=given.dying,
    )
    return Scenario(
        workers=given.workers,
        costs=model,
        seed=given.seed,
        noise=given.noise,
        most_output=given.max_tokens,
        lend=not given.no_lend,
        queue_timeout_s=given.queue_timeout,
        on_cores=on_cores,
        ends=ends,
    )


def compare(given: argparse.Namespace) -> int:
    """Play the load under each policy, and tell what came of it."""
    model = costs(given)
    made = arrivals(given, model, given.workers)
    length_s = made[-1].at
    box = scenario(given, model, length_s)
    runs: list[Played] = []
    for name in given.policies or routing.NAMES:
        say(f"-- {name}")
        runs.append(play(name, made, box))
    summaries = [report.summary(played, model) for played in runs]
    title = f"{given.workers} workers, {len(made)} requests, {len(made) / length_s:.3g} a second"
    print(f"{title}\n")
    print(report.table(summaries))
    if given.json is not None:
        told = {"workers": given.workers, "rate": len(made) / length_s, "runs": summaries}
        given.json.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    if given.plot is not None:
        from simulation import plot  # it takes half a second

        plot.draw(runs, model, title, given.plot)
    return 0


def measure(given: argparse.Namespace) -> int:
    """Play the load to a server on this box, and keep what came of it."""
    found = measured.measure(
        lambda model, workers: arrivals(given, model, workers),
        slots=given.slots,
        seed=given.seed,
        say=say,
    )
    given.measure.write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    for line in found.disturbances:
        say(f"warning: the machine was busy, the figures are noise: {line}")
    return 0


def validate(given: argparse.Namespace) -> int:
    """Compare a measured run with its simulation; 1 if a figure is too far off."""
    comparison = compared.read(given.validate)
    if comparison is not None:
        return validate_comparison(given, comparison)
    real = measured.read(given.validate)
    model = real.costs(given.step_noise)
    box = Scenario(workers=real.workers, costs=model, seed=given.seed, lend=not given.no_lend)
    played = play("cost", real.arrivals, box)
    simulated = [(r.ttft, r.completion) for r in played.requests if r.error is None]
    figures = measured.compare(real.requests, simulated)
    print(f"{real.machine}; {real.workers} workers, {len(real.requests)} requests\n")
    print(measured.table(figures))
    for line in real.disturbances:
        print(f"the machine was busy: {line}")
    return 0 if all(one.near for one in figures) else 1


def validate_comparison(given: argparse.Namespace, told: compared.Comparison) -> int:
    """The same for each scenario of a comparison that can be played."""
    print(f"{told.machine}; {given.workers} workers")
    all_near = None
    found = compared.validate(
        told, costs(given), workers=given.workers, lend=not given.no_lend, seed=given.seed
    )
    for name, figures in found:
        print(f"\n{name}\n{measured.table(figures)}", flush=True)
        all_near = all_near is not False and all(one.near for one in figures)
    if all_near is None:
        raise measured.MeasureError(f"{given.validate}: no scenario that can be played")
    return 0 if all_near else 1


def day(given: argparse.Namespace) -> int:
    """Play a day under the autoscaler, and with the cores split once and for all."""
    cores, model = given.workers, costs(given)
    loads = day_report.loads(
        given.day, cores, model, given.load, given.most_tokens, seed=given.seed
    )
    for title, models in day_report.ways(loads, cores, model):
        say(f"-- {title}")
        played = simulated_day.play(models, cores, day_report.DAY_S)
        print(day_report.table(title, played))
        if given.json is not None and title == day_report.AUTO:
            given.json.write_bytes(msgspec.json.format(msgspec.json.encode(played.changes)))
    return 0


def main(argv: list[str]) -> int:
    """Returns the exit code."""
    given = parse(argv)
    try:
        for setting in given.set:
            constants.apply(setting)
        if given.day is not None:
            return day(given)
        if given.measure is not None:
            return measure(given)
        if given.validate is not None:
            return validate(given)
        return compare(given)
    except (measured.MeasureError, peers.PeerError, ServerError, LbhostError) as error:
        say(f"lbhost: {error}")
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except (OSError, ValueError) as error:
        say(f"lbhost: {type(error).__name__}: {error}")
    return 1


def _stop(_signum: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # so that no server that was started is left behind
    log.configure(LogFormat.TEXT, LogLevel.WARNING, "simulation")
    sys.exit(main(sys.argv[1:]))
