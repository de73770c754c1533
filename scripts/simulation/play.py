"""One run: arrivals go through lbhost's own dispatcher to virtual workers, in simulated time.

Builds the gateway's scheduling as gateway.py does, with simulated clock, links and readings.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from benchmarks.stats import Arrival
from lbhost import wire
from lbhost.board import CoreRow
from lbhost.choices import Policy
from lbhost.config import Settings
from lbhost.errors import LbhostError
from lbhost.gateway.scheduling.dispatcher import Dispatcher
from lbhost.gateway.scheduling.job import Job
from lbhost.gateway.scheduling.moving import Reason
from lbhost.gateway.scheduling.readings import HOT, WorkerReading
from lbhost.gateway.scheduling.router import Router
from lbhost.gateway.scheduling.sessions import Attempt, Sessions
from lbhost.gateway.scheduling.worker_link import WorkerLink
from lbhost.placement.heat import limits_of
from lbhost.placement.share import core_heat
from simulation import routing
from simulation.clock import START_S, VirtualLoop
from simulation.gaps import Gaps
from simulation.hardware import Core
from simulation.link import VirtualLink
from simulation.oracle import Oracle
from simulation.planning import AsTheyCome, Own, Planner
from simulation.requests import Request, named
from simulation.scenario import End, Scenario
from simulation.worker import VirtualWorker

AT_ONCE = 1 << 20
"""Slots that a worker announces to which requests are given as they come."""

TURN_S = 0.002
"""From a client's answer to its next request here, in a closed loop."""

CALM_S = 1.0
"""Between a warm-up and the load."""

LIMIT_S = 86_400.0
"""Nobody gives up, unless asked for: a policy may not look better by what it has refused."""


class Played(msgspec.Struct, frozen=True):
    """What one run gave."""

    policy: str
    requests: Sequence[Request]
    gaps: Gaps
    busy_s: Sequence[float]
    """Of each worker."""
    length_s: float
    """From the start to the last end."""
    took_s: float
    """Seconds of CPU time that the simulation used."""


def play(
    policy: str,
    arrivals: Sequence[Arrival],
    scenario: Scenario,
    *,
    clients: int = 0,
    warm_up: Sequence[Arrival] = (),
) -> Played:
    """Play arrivals under a policy of routing.NAMES. The same arguments give the same run.

    Args:
        clients: a closed loop of so many, each of which sends the next request when its last one
            is answered; the arrivals' times are of no account then. 0: they arrive at their times.
        warm_up: what comes at once before all that, and is answered by then; told of in `gaps` and
            `length_s` only.
    """
    began = time.process_time()
    loop = VirtualLoop()
    try:
        game = _Game(policy, [*warm_up, *arrivals], scenario, loop, clients)
        loop.run_until_complete(game.run(len(warm_up)))
    finally:
        loop.close()
    return Played(
        policy,
        game.requests[len(warm_up) :],
        game.gaps,
        [worker.busy_s for worker in game.workers],
        loop.now - START_S,
        time.process_time() - began,
    )


class _Game:
    """The parts of a run, and the order in which they are put together."""

    def __init__(
        self,
        policy: str,
        arrivals: Sequence[Arrival],
        scenario: Scenario,
        loop: VirtualLoop,
        clients: int = 0,
    ) -> None:
        self._loop = loop
        self._clients = clients
        self._sent = 0
        self._scenario = scenario
        self._most_output = scenario.most_output
        self.gaps = Gaps()
        self.requests = [
            Request(i, START_S + a.at, a.prompt_tokens, a.completion_tokens)
            for i, a in enumerate(arrivals)
        ]
        self._left = len(self.requests)
        self._over = asyncio.Event()
        own = policy in routing.OWN
        settings = Settings(
            policy=Policy(policy) if own else Policy.COST,
            slots=scenario.costs.slots,
            lend=scenario.lend and policy != routing.PROXY,
            queue_size=100_000,
            queue_timeout_s=scenario.queue_timeout_s or LIMIT_S,
            request_timeout_s=LIMIT_S,
        )
        self._cores = [
            Core(
                settings,
                random.Random(f"{scenario.seed} core {i}"),
                scenario.noise,
                scenario.disturbances(i),
            )
            for i in range(scenario.workers)
        ]
        self.workers = [self._worker(i, settings, policy) for i in range(scenario.workers)]
        sessions = Sessions(_Readings(self.workers, settings), settings.slots)
        rng = random.Random(f"{scenario.seed} router")
        self._served: Callable[[Job, float], None] | None = None
        self._dispatcher = Dispatcher(
            settings,
            sessions,
            self,
            rng=rng,
            clock=loop.time,
            clock_ns=loop.time_ns,
            router=None if own else self._router(policy, settings, sessions, rng),
            open_link=self._open_link,
            move_for_speed=False,  # virtual workers tell no tokens between the first and the last
        )

    def _worker(self, index: int, settings: Settings, policy: str) -> VirtualWorker:
        scenario = self._scenario
        rng = random.Random(f"{scenario.seed} worker {index}")
        planner: Planner = Own(settings.inter_token_target_ms / 1000)
        announced = scenario.costs.slots
        if policy == routing.PROXY:
            planner, announced = AsTheyCome(), AT_ONCE
        return VirtualWorker(
            index,
            self._loop,
            scenario.costs,
            self._cores,
            planner,
            rng,
            self.requests,
            self.gaps,
            announced,
        )

    def _router(
        self, policy: str, settings: Settings, sessions: Sessions, rng: random.Random
    ) -> Router:
        if policy == routing.PREQUAL:
            prequal = routing.Prequal(rng)
            self._served = prequal.served
            return routing.OtherRouter(settings, sessions, rng, prequal.choose)
        if policy == routing.ORACLE:
            oracle = Oracle(self.workers, self.requests)
            return routing.OtherRouter(settings, sessions, rng, oracle.choose)
        fewest = msgspec.structs.replace(settings, policy=Policy.LEAST_CONNECTIONS)
        return Router(fewest, sessions, rng)

    async def _open_link(
        self,
        fd: int,
        worker: int,
        epoch: int,
        on_step: Callable[[WorkerLink, wire.FromWorker], None],
        on_lost: Callable[[WorkerLink], None],
    ) -> WorkerLink:
        far = self.workers[worker]
        far.link = VirtualLink(worker, far.epoch, far.take, on_step, on_lost)
        return far.link

    async def run(self, warm_up: int = 0) -> None:
        """Until every request has ended; the first `warm_up` ones go before all others."""
        for worker in self.workers:
            await self._dispatcher.attach(-1, worker.index, worker.epoch)
        for end in self._scenario.ends:
            self._loop.call_at(START_S + end.at_s, self._end, end)
        if warm_up:
            await self._warm_up(warm_up)
        if self._clients:
            for _ in range(self._clients):
                self._next()
        elif self._left:
            self._loop.call_at(self.requests[self._sent].arrived, self._arrive, self._sent)
        if self._left:
            self._over.clear()
            await self._over.wait()
        self._dispatcher.close()

    async def _warm_up(self, count: int) -> None:
        clients, self._clients = self._clients, 0
        rest = self._left - count
        self._left = self._sent = count
        for request in self.requests[:count]:
            self._submit(request)
        await self._over.wait()
        self._clients, self._left = clients, rest
        await asyncio.sleep(CALM_S)
        for worker in self.workers:
            worker.busy_s = 0.0
        for request in self.requests[count:]:
            request.arrived += self._loop.now - START_S

    def _arrive(self, number: int) -> None:
        if number + 1 < len(self.requests):
            self._loop.call_at(self.requests[number + 1].arrived, self._arrive, number + 1)
        self._submit(self.requests[number])

    def _next(self) -> None:
        """A client of a closed loop sends what is next, if anything is left."""
        if self._sent < len(self.requests):
            request = self.requests[self._sent]
            self._sent += 1
            request.arrived = self._loop.now
            self._submit(request)

    def _submit(self, request: Request) -> None:
        try:
            self._dispatcher.submit(request.work(self._most_output), request.arrived)
        except LbhostError as error:
            self._gone(request, error)

    def _end(self, end: End) -> None:
        worker = self.workers[end.worker]
        if end.hangs_s:
            worker.hang()
        self._loop.call_later(end.hangs_s, worker.die)
        self._loop.call_later(end.hangs_s + end.restart_s, self._restart, worker)

    def _restart(self, worker: VirtualWorker) -> None:
        worker.restart()
        self._starting = self._loop.create_task(
            self._dispatcher.attach(-1, worker.index, worker.epoch)
        )

    def _gone(self, request: Request, error: LbhostError | None) -> None:
        request.ended = self._loop.now
        if error is not None:
            request.error = type(error).__name__
        self._left -= 1
        if not self._left:
            self._over.set()
        elif self._clients:
            self._loop.call_later(TURN_S, self._next)

    # --- observer.Observer ---------------------------------------------------------------

    def sent(self, attempt: Attempt, now: float) -> None:
        pass

    def tokens(self, attempt: Attempt, count: int, now: float) -> None:
        pass

    def released(self, attempt: Attempt, finish: wire.Finish) -> None:
        pass

    def retried(self, job: Job) -> None:
        pass

    def moved(self, job: Job, why: Reason) -> None:
        pass

    def ended(self, job: Job, now: float) -> None:
        if self._served is not None:
            self._served(job, now)
        self._gone(self.requests[named(job.work.prompt)], job.error)


class _Readings:
    """The board of a simulation."""

    def __init__(self, workers: Sequence[VirtualWorker], settings: Settings) -> None:
        self._workers = workers
        self._limits = limits_of(settings.warm_c, settings.hot_c)

    def worker(self, index: int) -> WorkerReading | None:
        return self._workers[index].reading()

    def present(self) -> list[tuple[int, WorkerReading]]:
        return [(worker.index, worker.reading()) for worker in self._workers]

    def cores(self) -> Iterator[tuple[int, CoreRow]]:
        for worker in self._workers:
            worker.reading()
            yield worker.index, worker.core.row

    def hot(self, core: CoreRow) -> bool:
        return core_heat(core, self._limits, 1) <= HOT

    def quota_cpus(self) -> float | None:
        return None
