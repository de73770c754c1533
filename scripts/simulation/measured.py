"""A real run to hold a simulated one against: how it is made, kept and compared.

`measure` starts a server of its own with the starter model in Q4_0 and plays arrivals to it.
What it keeps is all that a simulation needs: the speeds that the workers have measured of
themselves (`lbhost status`), and when which request was sent, and answered. So a run is compared
with a simulation of the very same arrivals.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import generator, machine, peers, servers, stats
from benchmarks.comparison import measures
from benchmarks.figures import number
from benchmarks.load import Job, Outcome, Plan
from benchmarks.prompts import PromptWriter
from benchmarks.servers import Server
from benchmarks.stats import Arrival
from lbhost import model
from lbhost.llama import Vocab
from simulation.costs import Costs

WITHIN = 0.25
"""A simulated figure is good when it is so near to the measured one, as a part of it."""

CTX_SIZE = 2048
WARM_UP = ((128, 24),) * 8 + ((512, 8),) * 4
"""Prompt and output tokens of what is computed before, four at once, so that all is measured."""

MOST_REQUESTS = 1000


class MeasureError(Exception):
    """The run could not be made or read; one line."""


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """One request, as its client saw it. Times in seconds."""

    at: float
    """After the start of the load."""
    prompt_tokens: int
    completion_tokens: int
    ttft: float
    completion: float


class Measured(msgspec.Struct, frozen=True):
    """A run of one box."""

    machine: str
    disturbances: list[str]
    """What else used the machine just before: then the figures are noise."""
    workers: int
    slots: int
    prefill_tok_s: float
    step_base_s: float
    step_seq_s: float
    requests: list[Seen]
    steps_s: tuple[float, ...] = ()
    """Of 1, 2, … sequences; see Costs."""

    @property
    def arrivals(self) -> list[Arrival]:
        return [Arrival(r.at, r.prompt_tokens, r.completion_tokens) for r in self.requests]

    def costs(self, noise: float) -> Costs:
        """The model of costs, calibrated by what the workers measured."""
        return Costs(
            prefill_tok_s=self.prefill_tok_s,
            step_base_s=self.step_base_s,
            step_seq_s=self.step_seq_s,
            steps_s=self.steps_s,
            noise=noise,
            slots=self.slots,
        )


def read(path: Path) -> Measured:
    """A file that `measure` has written. Raises MeasureError."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Measured)
    except (OSError, msgspec.DecodeError) as error:
        raise MeasureError(f"{path}: {error}") from error
    if not found.requests:
        raise MeasureError(f"{path}: no requests")
    return found


def measure(
    arrivals_at: Callable[[Costs, int], Sequence[Arrival]],
    *,
    slots: int,
    seed: int,
    say: Callable[[str], None],
) -> Measured:
    """Play arrivals to a server on this box.

    Args:
        arrivals_at: the load for workers of such costs, and so many of them.

    Raises:
        MeasureError: a request failed, or the workers do not know their speeds.
    """
    shipped = Path(model.resolve("starter").path)
    weights = peers.requantize(shipped, say)
    writer = PromptWriter(Vocab.load(shipped), random.Random(seed))
    disturbances = machine.disturbances()
    with servers.lbhost(weights, ctx_size=CTX_SIZE, flags=("--slots", str(slots))) as server:
        say("warming up")
        _apply(server, [Job(writer.write(p), p, m) for p, m in WARM_UP], clients=4)
        status = servers.ask(server, "GET", "/status")
        costs = _costs(status, slots)
        arrivals = arrivals_at(costs, len(status["workers"]))
        if len(arrivals) > MOST_REQUESTS:
            raise MeasureError(f"at most {MOST_REQUESTS} requests are measured")
        say(f"{len(arrivals)} requests in {arrivals[-1].at:.0f} s and a little more")
        jobs = [Job(writer.write(p), p, m, at) for at, p, m in arrivals]
        requests = _apply(server, jobs)
        costs = _costs(servers.ask(server, "GET", "/status"), slots)
    start = min(request.sent for request in requests)
    seen = [
        Seen(
            request.sent - start,
            request.prompt_tokens,
            request.completion_tokens,
            request.ttft,
            request.texts[-1] - request.sent,
        )
        for request in sorted(requests, key=lambda r: r.sent)
    ]
    return Measured(
        machine=machine.describe(),
        disturbances=disturbances,
        workers=len(status["workers"]),
        slots=slots,
        prefill_tok_s=costs.prefill_tok_s,
        step_base_s=costs.step_base_s,
        step_seq_s=costs.step_seq_s,
        requests=seen,
        steps_s=costs.steps_s,
    )


def _apply(server: Server, jobs: list[Job], clients: int = 0) -> list[stats.Request]:
    """From a process of its own, as scripts/bench does."""
    timeout_s = 300 + max(job.at or 0.0 for job in jobs)
    plan = Plan(server.host, server.port, servers.ALIAS, jobs, clients, timeout_s)
    outcome = generator.generate("benchmarks.load", plan, Outcome, timeout_s + 30)
    if outcome.failures:
        raise MeasureError(f"{len(outcome.failures)} requests failed: {outcome.failures[0]}")
    return outcome.requests


def _costs(status: dict[str, Any], slots: int) -> Costs:
    """The mean of what the workers say."""
    told = measures.speeds(status["workers"])
    for name in measures.SPEEDS:
        if name not in told:
            raise MeasureError(f"no worker has measured its {name}")
    means = {name: told[name] for name in measures.SPEEDS}
    return Costs(**means, steps_s=measures.steps_s(told), slots=slots)


class Compared(msgspec.Struct, frozen=True):
    """One figure, both ways."""

    name: str
    measured: float
    simulated: float

    @property
    def ratio(self) -> float:
        return self.simulated / self.measured

    @property
    def near(self) -> bool:
        return abs(self.ratio - 1) <= WITHIN


def compare(measured: Sequence[Seen], simulated: Sequence[tuple[float, float]]) -> list[Compared]:
    """The figures of a run beside those of its simulation.

    Args:
        simulated: TTFT and completion of each request, in seconds.
    """
    found = []
    for q in (0.5, 0.9, 0.95):
        for name, ours, theirs in (
            ("TTFT", [ttft for ttft, _ in simulated], [seen.ttft for seen in measured]),
            ("completion", [done for _, done in simulated], [s.completion for s in measured]),
        ):
            real = stats.quantile(theirs, q)
            found.append(Compared(f"{name} p{100 * q:g}", real, stats.quantile(ours, q)))
    return found


def table(compared: Sequence[Compared]) -> str:
    """A line for each figure."""
    lines = [f"{'figure':16}{'measured':>10}{'simulated':>11}{'ratio':>8}"]
    for one in compared:
        figures = f"{number(one.measured):>10}{number(one.simulated):>11}{number(one.ratio):>8}"
        lines.append(f"{one.name:16}{figures}{'' if one.near else '  OFF'}")
    return "\n".join(lines)
