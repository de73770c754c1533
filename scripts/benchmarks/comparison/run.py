"""One comparison: starts the contenders, puts every scenario's load on each in turn, keeps what
came of it. Prints progress, judges nothing.
"""

from __future__ import annotations

import csv
import functools
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks import generator, machine, servers, stats
from benchmarks.bench import Bench, BenchError
from benchmarks.comparison import disturb, loads, measures, shape
from benchmarks.comparison.contenders import CONTENDERS, Contender, Setting
from benchmarks.comparison.loads import Ask
from benchmarks.comparison.scenarios import (
    CONVERSATIONS,
    PREFIX_TOKENS,
    PROMPT_TOKENS,
    SCENARIOS,
    TURN_TOKENS,
    TURNS,
    Arrivals,
    Disturbance,
    Scenario,
    Weights,
)
from benchmarks.load import SETTLE_S, Job, Outcome, Plan
from benchmarks.servers import ServerError

CAPACITY_CLIENTS = 8
CAPACITY_REQUESTS = 40
REQUEST_TIMEOUT_S = 120.0
GRACE_S = 60.0
"""For the requests that run when a load's time is over; then they are failures."""
CALM_TIMEOUT_S = 20.0
TRACE_ROWS = 400
TRACE_TOKENS = 1024
"""Prompt and output of a traced request are cut to this many together."""

REFERENCE = "llama-server"
"""What capacity is measured on, if it takes part; else the first that does."""


@dataclass
class Result:
    """What came of one scenario."""

    name: str
    about: str
    rate: float | None = None
    """Open loop: requests per second."""
    runs: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """By contender, a run for each pair."""
    notes: list[str] = field(default_factory=list)
    """Who took no part and why, which requests failed."""


class Comparison:
    """All scenarios of one invocation."""

    def __init__(self, bench: Bench, peers: list[str], seconds: float, flags: list[str]) -> None:
        self._bench = bench
        self._peers = peers
        self._seconds = seconds
        self._flags = tuple(flags)
        self._capacity: dict[tuple[Weights, Arrivals], tuple[float, str]] = {}

    def run(self, names: list[str]) -> Iterator[Result]:
        """Each scenario's result when it is there. Scenarios of the same servers share them."""
        groups: dict[tuple[Weights, bool], list[str]] = {}
        for name in names:
            scenario = SCENARIOS[name]
            key = (scenario.weights, scenario.disturbance is Disturbance.QUOTA)
            groups.setdefault(key, []).append(name)
        for (weights, limited), members in groups.items():
            with ExitStack() as stack:
                absent: list[str] = []
                running = self._start(stack, weights, limited, absent)
                for name in members:
                    result = self._scenario(name, running)
                    result.notes[:0] = absent
                    yield result

    # --- contenders ----------------------------------------------------------------------------

    def _model(self, weights: Weights) -> Path:
        if weights is Weights.SHAPE_1B:
            return shape.llama_1b(self._bench.shipped, self._bench.say)
        return self._bench.q4_0 if weights is Weights.Q4_0 else self._bench.shipped

    def _start(
        self, stack: ExitStack, weights: Weights, limited: bool, absent: list[str]
    ) -> list[Contender]:
        """Those that start, warmed up; a line in `absent` for each other."""
        before: tuple[str, ...] = ()
        if limited:
            try:
                before = stack.enter_context(disturb.quota())
            except disturb.DisturbanceError as error:
                absent.append(str(error))
                return []
        peers = functools.partial(getattr, self._bench, "peers")
        setting = Setting(self._model(weights), peers, before, self._flags)
        running: list[Contender] = []
        for name in self._peers:
            self._bench.say(f"-- starting {name}: {weights}")
            own = ExitStack()
            try:
                contender = own.enter_context(CONTENDERS[name](setting))
                outcome = self._apply(contender, self._write(self._plain(8)), 8, None)
                if outcome.failed:
                    raise ServerError(outcome.failures[0])
            except (ServerError, OSError, subprocess.SubprocessError) as error:
                own.close()
                absent.append(f"{name} takes no part: {' '.join(str(error).split())}")
                self._bench.say(f"   {absent[-1]}")
                continue
            stack.push(own)
            running.append(contender)
        return running

    # --- loads ---------------------------------------------------------------------------------

    def _plain(self, count: int) -> list[Ask]:
        return loads.steady(PROMPT_TOKENS, 16, count)

    def _write(self, asks: list[Ask]) -> list[Job]:
        write = self._bench.prompts.write
        shared = {tokens: write(tokens) if tokens else "" for tokens in {a.shared for a in asks}}
        jobs: list[Job] = []
        for ask in asks:
            # what follows an answer is a text of its own, and has no BOS
            text = write(ask.prompt_tokens, shared[ask.shared] if ask.after is None else " ")
            jobs.append(
                Job(text, ask.prompt_tokens, ask.output_tokens, ask.at, ask.kind, ask.after)
            )
        return jobs

    def _asks(self, scenario: Scenario, rate: float, rng: random.Random) -> list[Ask]:
        """The requests of one pair."""
        if scenario.arrivals is Arrivals.CLOSED:
            count = scenario.clients * self._bench.scaled(scenario.each)
            return loads.steady(PROMPT_TOKENS, scenario.output_tokens, count)
        if scenario.arrivals is Arrivals.TRACE:
            return self._traced(rate)
        if scenario.arrivals is Arrivals.TURNS:
            turns = max(2, self._bench.scaled(TURNS))
            return loads.conversations(CONVERSATIONS, turns, *TURN_TOKENS)
        if scenario.arrivals is Arrivals.PREFIX:
            count = scenario.clients * self._bench.scaled(scenario.each)
            asks = loads.steady(32, scenario.output_tokens, count)
            return loads.with_shared_prefix(asks, PREFIX_TOKENS)
        timed = loads.burst_times if scenario.arrivals is Arrivals.BURST else loads.poisson_times
        times = timed(rng, rate, self._seconds)
        if scenario.arrivals is Arrivals.PLAIN:
            asks = loads.steady(PROMPT_TOKENS, scenario.output_tokens, len(times))
        else:
            asks = loads.mixed(rng, len(times))
        return loads.at_times(asks, times)

    def _traced(self, rate: float) -> list[Ask]:
        """As many of the trace's first requests as the time has room for.

        Raises:
            BenchError: no trace was given, or it is none.
        """
        path = self._bench.trace
        if path is None:
            raise BenchError("no trace given: --trace FILE.csv")
        count = max(2, min(TRACE_ROWS, int(rate * self._seconds)))
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            arrivals = stats.trace(rows, count=count, rate=rate, most_tokens=TRACE_TOKENS)
        except (OSError, ValueError) as error:
            raise BenchError(f"{path}: {error}") from error
        return loads.traced(arrivals)

    def _rate(self, scenario: Scenario, running: list[Contender]) -> tuple[float, str]:
        """Requests per second for an open loop, and how that was found."""
        arrivals = scenario.arrivals
        kind = Arrivals.MIX if arrivals is Arrivals.BURST else arrivals
        if (scenario.weights, kind) not in self._capacity:
            self._capacity[scenario.weights, kind] = self._measure_capacity(kind, running)
        capacity, how = self._capacity[scenario.weights, kind]
        return capacity * scenario.share, how

    def _measure_capacity(self, kind: Arrivals, running: list[Contender]) -> tuple[float, str]:
        on = next((one for one in running if one.name == REFERENCE), running[0])
        count = max(2 * CAPACITY_CLIENTS, self._bench.scaled(CAPACITY_REQUESTS))
        if kind is Arrivals.TRACE:
            asks = loads.untimed(self._traced(count / self._seconds))
        elif kind is Arrivals.MIX:
            asks = loads.mixed(self._bench.rng, count)
        else:
            asks = loads.steady(PROMPT_TOKENS, SCENARIOS["stopped"].output_tokens, count)
        jobs = self._write(asks)
        outcome = self._apply(on, jobs, CAPACITY_CLIENTS, 2 * self._seconds)
        try:
            found = measures.capacity(jobs, outcome)
        except ValueError as error:
            raise BenchError(f"capacity of {on.name}: {error}") from error
        how = f"capacity {found:.2f} requests/s: {on.name}, {CAPACITY_CLIENTS} clients, closed loop"
        self._bench.say(f"   {how}")
        return found, how

    # --- one scenario --------------------------------------------------------------------------

    def _scenario(self, name: str, running: list[Contender]) -> Result:
        scenario = SCENARIOS[name]
        result = Result(name, scenario.about)
        self._bench.say(f"-- {name}: {scenario.about}")
        if not running:
            return result
        try:
            rate = 0.0
            if not scenario.clients:
                rate, how = self._rate(scenario, running)
                result.rate = rate
                result.notes.append(f"{rate:.2f} requests/s ({how})")
            repeated = self._write(self._asks(scenario, rate, self._bench.rng))
            if scenario.repeated:
                for contender in running:
                    self._apply(contender, repeated, scenario.clients, self._seconds)
        except (BenchError, ServerError) as error:
            result.notes.append(f"not measured: {error}")
            return result
        taking = list(running)
        for pair in range(self._bench.pairs):
            asks = self._asks(scenario, rate, self._bench.rng)
            for contender in list(taking) if pair % 2 == 0 else list(reversed(taking)):
                jobs = repeated if scenario.repeated else self._write(asks)
                why_not = self._one(scenario, contender, jobs, result)
                if why_not:
                    result.notes.append(
                        f"{contender.name} takes no part from pair {pair + 1}: {why_not}"
                    )
                    taking.remove(contender)
        return result

    def _one(
        self, scenario: Scenario, contender: Contender, jobs: list[Job], result: Result
    ) -> str:
        """One load on one contender. Returns why there was none, or nothing."""
        try:
            self._calm(contender)
            with self._disturbed(scenario, contender):
                before = _cpu(contender)
                outcome = self._apply(contender, jobs, scenario.clients, self._seconds)
                used = _used(before, _cpu(contender))
                speeds = contender.speeds()
        except (ServerError, disturb.DisturbanceError, OSError) as error:
            return str(error)
        found = measures.measure(jobs, outcome, used) | speeds
        result.runs.setdefault(contender.name, []).append(found)
        speed = f"{found.get('tok_s', 0.0):.0f} tok/s"
        self._bench.say(f"   {contender.name}: {speed}, {outcome.failed} failed")
        if outcome.failed:
            first = outcome.failures[0] if outcome.failures else "cut off at the end"
            result.notes.append(f"{contender.name}: {outcome.failed} failed; first: {first[:200]}")
        return ""

    def _disturbed(
        self, scenario: Scenario, contender: Contender
    ) -> AbstractContextManager[object]:
        core = machine.cores()[0]
        if scenario.disturbance is Disturbance.SPIN:
            return disturb.spinning(core)
        if scenario.disturbance is Disturbance.HALF:
            return disturb.half_duty(core)
        if scenario.disturbance is Disturbance.STOP:
            return disturb.stopped_worker(contender.workers, SETTLE_S + self._seconds / 4)
        return nullcontext()

    def _apply(
        self, contender: Contender, jobs: list[Job], clients: int, stop_s: float | None
    ) -> Outcome:
        """Put a load on a contender from a process of its own."""
        server = contender.server
        timeout_s = 2 * self._seconds + GRACE_S
        plan = Plan(
            server.host,
            server.port,
            contender.model,
            jobs,
            clients,
            timeout_s,
            stop_s,
            REQUEST_TIMEOUT_S,
            contender.exact,
        )
        return generator.generate("benchmarks.load", plan, Outcome, timeout_s + GRACE_S)

    def _calm(self, contender: Contender) -> None:
        """Wait until a contender is up, whole and idle again after what was done to it.

        Raises:
            ServerError: it is not within CALM_TIMEOUT_S.
        """
        deadline = time.monotonic() + CALM_TIMEOUT_S
        while True:
            missing = [pid for pid in contender.roots if not _runs(pid)]
            if missing:
                raise ServerError("it has ended")
            before = _cpu(contender)
            time.sleep(0.3)
            if _used(before, _cpu(contender)) < 0.03 and servers.is_ready(contender.server):
                return
            if time.monotonic() > deadline:
                raise ServerError(f"it is not idle and ready {CALM_TIMEOUT_S:g} s after a load")


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _cpu(contender: Contender) -> dict[int, float]:
    """CPU seconds so far of each of a contender's processes."""
    pids = [pid for root in contender.roots for pid in machine.tree(root)]
    return {pid: machine.cpu_s([pid]) for pid in pids}


def _used(before: dict[int, float], after: dict[int, float]) -> float:
    """CPU seconds between two readings. What a process used that ended between them is lost."""
    return sum(max(0.0, used - before.get(pid, 0.0)) for pid, used in after.items())
