"""A worker that computes nothing: its steps take as long as a model of costs says.

Owns its requests and when its steps end. Plans like the engine (planning.py), measures itself
with the engine's meters, and speaks the messages of wire.py. Steps that are all alike are
played as one event; only first tokens and ends are told, since nothing else moves the gateway.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Sequence

import msgspec

from lbhost import board, wire
from lbhost.gateway.scheduling.readings import WorkerReading
from lbhost.order import Prompt
from lbhost.worker.batch import Chunk
from lbhost.worker.timing import Timing
from lbhost.worker.widths import Phase
from simulation.clock import START_S, VirtualLoop
from simulation.costs import Costs
from simulation.gaps import Gaps
from simulation.hardware import Core
from simulation.link import VirtualLink
from simulation.planning import Planner
from simulation.requests import Request, named

RUN_S = 0.5
"""Steps that are alike are played together for about so long: a core's share may change."""

FALLBACK_TOKEN_S = 0.01
"""A token's expected time while nothing is measured."""

READING_S = 0.005
"""A reading is good for so long, as in the gateway."""


def _timing(costs: Costs) -> Timing:
    """A young worker's."""
    return Timing(fallback_token_s=FALLBACK_TOKEN_S, tiled=True, slots=costs.slots)


class Seat:
    """A request in a slot, or waiting for one."""

    __slots__ = ("attempt", "number", "output_left", "prefill_left", "rank", "request")

    def __init__(self, attempt: int, rank: int, request: Request, number: int) -> None:
        self.attempt = attempt
        self.rank = rank
        self.request = request
        self.number = number
        """How many came to this worker before."""
        self.prefill_left = request.prompt_tokens
        self.output_left = request.output_tokens


class _Run(msgspec.Struct):
    """Steps that are alike, one after the other."""

    began: float
    step_s: float
    cpu_s: float
    """Of one step."""
    count: int
    decoding: int
    chunks: Sequence[Chunk]
    phase: Phase
    width: int


class VirtualWorker:
    """One worker, at home on one core.

    Args:
        cores: of the whole box, by CPU number.
        requests: all of the simulation's, by number.
        announced: slots that the gateway is told of; more than costs.slots: the rest waits here.
    """

    def __init__(
        self,
        index: int,
        loop: VirtualLoop,
        costs: Costs,
        cores: Sequence[Core],
        planner: Planner,
        rng: random.Random,
        requests: Sequence[Request],
        gaps: Gaps,
        announced: int,
    ) -> None:
        self.index = index
        self.epoch = 1
        self.core = cores[index]
        self.costs = costs
        self.link: VirtualLink | None = None
        self.seats: list[Seat] = []
        """In slots, by their arrival here."""
        self.waiting: deque[Seat] = deque()
        self.prefill_pending = 0
        """Prompt tokens here and not yet computed."""
        self.busy_s = 0.0
        """Seconds of cores, lent ones included."""
        self.steps = 0
        self._loop = loop
        self._cores = cores
        self._planner = planner
        self._timing = _timing(costs)
        self._lent: tuple[int, ...] = ()
        self._wide_steps = 0
        self._rng = rng
        self._requests = requests
        self._gaps = gaps
        self._run: _Run | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._telling = False
        self._arrivals = 0
        self._reading: WorkerReading | None = None
        self._read_s = -1.0
        self._identity = board.IdentityRow(
            present=True,
            epoch=self.epoch,
            state=board.WorkerState.READY,
            wanted=board.Wanted.UP,
            cpus=(index,),
            slots=announced,
            started_ns=int((START_S - 3600.0) * 1e9),
        )
        self._hung_s: float | None = None

    # --- the gateway's messages -------------------------------------------------------

    def take(self, message: wire.ToWorker) -> None:
        """A message has come over the link."""
        if self._hung_s is not None:
            return
        if isinstance(message, wire.Submit):
            request = self._requests[named(message.prompt)]
            self.waiting.append(Seat(message.request, message.rank, request, self._arrivals))
            self._arrivals += 1
            self.prefill_pending += request.prompt_tokens
        elif isinstance(message, wire.Cancel):
            self._end_early(message.request, wire.FinishReason.CANCELLED)
        elif isinstance(message, wire.Move):
            self._end_early(message.request, wire.FinishReason.MOVED)
        elif isinstance(message, wire.Lend):
            self._lent = message.cpus
        self._read_s = -1.0
        if self._run is not None:
            self._cut_short(self._run)
        elif not self._telling:
            self._begin()

    def _end_early(self, attempt: int, reason: wire.FinishReason) -> None:
        for seat in [*self.seats, *self.waiting]:
            if seat.attempt == attempt:
                self._leave(seat)
                finish = wire.Finish(reason)
                delta = wire.Delta(attempt, (), "", finish)
                self._loop.call_soon(self._tell, [delta])
                return

    def _leave(self, seat: Seat) -> None:
        self.prefill_pending -= seat.prefill_left
        if seat in self.waiting:
            self.waiting.remove(seat)
        else:
            self.seats.remove(seat)

    def _tell(self, deltas: list[wire.Delta]) -> None:
        if self.link is not None and self.link.alive:
            self._telling = True
            self.link.deliver(wire.Step(tuple(deltas), self.prefill_pending))
            self._telling = False

    # --- steps ------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start the next step, if there is anything to compute."""
        while self.waiting and len(self.seats) < self.costs.slots:
            self.seats.append(self.waiting.popleft())
        if not self.seats:
            return
        now = self._loop.now
        prompts = [Prompt(s.number, s.prefill_left, s.rank) for s in self.seats if s.prefill_left]
        decoding = len(self.seats) - len(prompts)
        phase = Phase.PREFILL if prompts else Phase.DECODE
        widest = 1 + len(self._lent)
        width = self._timing.choose(phase, widest)
        chunks: Sequence[Chunk] = ()
        if prompts:
            chunks = self._planner.chunks(decoding, prompts, self._timing.speeds(width))
        cpu_s = self.costs.step_s(decoding, [chunk.count for chunk in chunks], width)
        if self.costs.noise:
            cpu_s *= math.exp(self._rng.gauss(0, self.costs.noise))
        # All threads of a step wait for the slowest one.
        slowest = min(
            [self.core.left(now)] + [self._cores[n].left(now) for n in self._lent[: width - 1]]
        )
        step_s = cpu_s / slowest
        count = 1
        if not prompts:
            shortest = min(seat.output_left for seat in self.seats)
            count = min(shortest, max(1, int(RUN_S / step_s)))
        self._run = _Run(now, step_s, cpu_s, count, decoding, chunks, phase, width)
        self._timer = self._loop.call_at(now + count * step_s, self._end)

    def _cut_short(self, run: _Run) -> None:
        """Something has come: the step that runs is the last of these."""
        begun = int((self._loop.now - run.began) / run.step_s) + 1
        if begun < run.count:
            run.count = begun
            assert self._timer is not None
            self._timer.cancel()
            self._timer = self._loop.call_at(run.began + begun * run.step_s, self._end)

    def _end(self) -> None:
        """A step has ended, or several that were alike."""
        run = self._run
        assert run is not None
        self._run = None
        self._read_s = -1.0
        self.steps += run.count
        self.busy_s += run.count * run.step_s * run.width
        self._measure(run)
        self._gaps.add(run.step_s, run.count * run.decoding)
        deltas = self._advance(run)
        if deltas:
            self._tell(deltas)
        if self._run is None and self.link is not None:
            self._begin()

    def _measure(self, run: _Run) -> None:
        """What the engine learns from a step; see BaseEngine."""
        prefilled = sum(chunk.count for chunk in run.chunks)
        self._timing.observe(run.width, run.decoding, prefilled, cpu_s=run.cpu_s, wall_s=run.step_s)
        if run.width > 1:
            self._wide_steps += run.count

    def _advance(self, run: _Run) -> list[wire.Delta]:
        now = self._loop.now
        counts = {chunk.number: chunk.count for chunk in run.chunks}
        deltas: list[wire.Delta] = []
        over: list[Seat] = []
        for seat in self.seats:
            request = seat.request
            if seat.prefill_left:
                computed = counts.get(seat.number, 0)
                seat.prefill_left -= computed
                self.prefill_pending -= computed
                if seat.prefill_left:
                    continue
                seat.output_left -= 1
                if request.first is None:
                    request.first = now
            else:
                seat.output_left -= run.count
                request.longest_gap = max(request.longest_gap, run.step_s)
                if seat.output_left:
                    continue
            finish = None
            if seat.output_left == 0:
                over.append(seat)
                finish = wire.Finish(
                    wire.FinishReason.STOP,
                    prompt_tokens=request.prompt_tokens,
                    completion_tokens=request.output_tokens,
                )
            deltas.append(wire.Delta(seat.attempt, (0,), "", finish))
        for seat in over:
            self._leave(seat)
        return deltas

    @property
    def now(self) -> float:
        """Simulated seconds."""
        return self._loop.now

    # --- what is known of it ------------------------------------------------------------

    def reading(self) -> WorkerReading:
        """What the board would say, at most READING_S old."""
        now = self._loop.now
        if self._reading is None or not 0 <= now - self._read_s < READING_S:
            self._reading = self._read(now)
            self._read_s = now
        return self._reading

    def _read(self, now: float) -> WorkerReading:
        run = self._run
        heartbeat, step_s = now, 0.0
        if run is not None:
            heartbeat = run.began + int((now - run.began) / run.step_s) * run.step_s
            step_s = run.cpu_s
        if self._hung_s is not None:
            heartbeat = self._hung_s
        share = self.core.share(now, run is not None)
        speeds = self._timing.meter.speeds
        progress = board.ProgressRow(
            epoch=self.epoch,
            heartbeat_ns=int(heartbeat * 1e9),
            steps=self.steps,
            predicted_step_s=step_s,
            slots_busy=len(self.seats),
            waiting=len(self.waiting),
            prefill_pending=self.prefill_pending,
            prefill_tok_s=speeds.prefill_tok_s,
            step_base_s=speeds.step_base_s,
            step_seq_s=speeds.step_seq_s,
            steps_s=speeds.steps_s,
            wide_steps=self._wide_steps,
            lent=() if run is None else self._lent[: run.width - 1],
        )
        row = self.core.row
        return WorkerReading(self._identity, progress, share, row.idle, row.others, row.temp_c)

    # --- its end ------------------------------------------------------------------------

    def hang(self) -> None:
        """It does not go on, and nobody is told."""
        self._hung_s = self._loop.now
        if self._timer is not None:
            self._timer.cancel()

    def die(self) -> None:
        """Its process ends, with all that it holds."""
        if self._timer is not None:
            self._timer.cancel()
        self._run = None
        self._hung_s = None
        self.seats.clear()
        self.waiting.clear()
        self.prefill_pending = 0
        self._lent = ()
        self._timing = _timing(self.costs)
        self._identity = msgspec.structs.replace(self._identity, state=board.WorkerState.BACKOFF)
        self._read_s = -1.0
        link, self.link = self.link, None
        if link is not None:
            link.close()

    def restart(self) -> None:
        """A new process; whoever calls makes the link."""
        self.epoch += 1
        self._identity = msgspec.structs.replace(
            self._identity,
            epoch=self.epoch,
            state=board.WorkerState.READY,
            started_ns=self._loop.time_ns(),
        )
        self._read_s = -1.0
