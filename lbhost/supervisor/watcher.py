"""What the supervisor looks at: sensors, memory and its children every tick, the box now and then.

Owns nothing but what it saw last. What follows for a worker or the gateway is theirs to do:
each judges its own progress by the rows that are read here once a tick.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from lbhost.board import Board, GatewayRow, ProgressRow
from lbhost.machine.sampler import Sampler, Watched
from lbhost.supervisor import liveness
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.fleet import Fleet
from lbhost.supervisor.homes import Homes
from lbhost.supervisor.memory_watch import MemoryWatch
from lbhost.supervisor.service import Service

GATEWAY_STALE_S = 5.0
GATEWAY_FRESH_NS = 2_000_000_000
"""How old the gateway's heartbeat may be for its rows to be believed."""
STARTING_QUIET_S = 60.0
"""A gateway that starts may read a model from a slow disk meanwhile."""


class Watcher:
    """The looking of one supervisor."""

    def __init__(
        self,
        board: Board,
        sampler: Sampler,
        fleet: Fleet,
        homes: Homes,
        gateway: Service,
        events: EventLog,
    ) -> None:
        self._board = board
        self._sampler = sampler
        self._fleet = fleet
        self._homes = homes
        self._gateway = gateway
        self._events = events
        self._memory = MemoryWatch(events)
        self._wide_steps: dict[int, int] = {}
        """By pid, as of the last sample."""
        self._looked = False

    def look(self, now_s: float, *, looked: bool) -> None:
        """One tick.

        Args:
            looked: whether the last tick was in time; if not, nobody is judged by this one.
        """
        progress = self._fleet.progress()
        self._sampler.sample(self._watched(progress), self._services())
        if not self._looked:  # measuring shapes before the first look may have taken all cores
            self._looked = True
            self._sampler.forget_foreigners()
        self._memory.look(self._board.host.read(0))
        gateway = self._board.gateway.read(0)
        self._look_at_gateway(gateway, now_s, looked=looked)
        fresh = (
            gateway is not None
            and self._gateway.state == "ready"
            and gateway.pid == self._gateway.pid
            and time.monotonic_ns() - gateway.heartbeat_ns < GATEWAY_FRESH_NS
        )
        self._fleet.tick(now_s, progress, looked=looked, gateway_fresh=fresh)

    def begin(self) -> None:
        """Everything is up: what starting it has used of the cores is no neighbour's use."""
        self._sampler.forget_foreigners()

    def look_at_box(self) -> None:
        """What the cgroup, the affinity mask and hotplug leave us may change at any time."""
        before = self._homes.describe()
        if self._homes.look_again():
            self._sampler.adopt(self._homes.topology)
            for pool in self._fleet.pools:
                self._homes.assign(pool.desired, self._fleet.beside(pool))
            self._fleet.reconcile()
            if self._homes.describe() != before:
                text = f"this server has {self._homes.describe()} now (before: {before})"
                self._events.add("warning", "server", text)
        self._fleet.pin()

    def _watched(self, progress: Mapping[int, ProgressRow]) -> list[Watched]:
        found, wide_steps = [], {}
        for worker in self._fleet.workers.values():
            if worker.pid is None:
                continue
            row = progress.get(worker.id)
            steps = 0 if row is None else row.wide_steps
            wide_steps[worker.pid] = steps
            wide = steps != self._wide_steps.get(worker.pid, 0)
            found.append(Watched(worker.id, worker.pid, worker.place.cpus, wide))
        self._wide_steps = wide_steps
        return found

    def _services(self) -> list[int]:
        """This process and all below it that are no workers; what the gateway has started, its
        prompt helpers, the sampler finds itself."""
        pids = [service.pid for service in (self._gateway, *self._fleet.fork_servers())]
        return [os.getpid(), *(pid for pid in pids if pid is not None)]

    def _look_at_gateway(self, row: GatewayRow | None, now_s: float, *, looked: bool) -> None:
        if not looked:
            self._gateway.forget_looks()
        elif self._gateway.state == "starting":
            self._gateway.look(now_s, (), liveness.quiet_budget(STARTING_QUIET_S), busy=True)
        elif self._gateway.state == "ready":
            beat = row.heartbeat_ns if row is not None else 0
            budget = liveness.quiet_budget(GATEWAY_STALE_S, GATEWAY_STALE_S * liveness.SPIN_FACTOR)
            self._gateway.look(now_s, (beat,), budget, busy=True)
