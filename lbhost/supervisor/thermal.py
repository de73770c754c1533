"""Brings the board's temperatures and the pure decision of placement/heat.py together.

Remembers when each sensor's workers were last made to rest or woken; applies nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import msgspec

from lbhost.board import Board, WorkerState
from lbhost.config import Settings
from lbhost.placement import heat
from lbhost.placement.heat import Change, Domain, Limits
from lbhost.placement.placement import Placement
from lbhost.supervisor.lifecycle import Event


class Place(msgspec.Struct, frozen=True):
    """A worker as heat sees it."""

    worker: int
    state: WorkerState
    placement: Placement


class Thermal:
    """Heat's events for one board's workers."""

    def __init__(self, board: Board, settings: Settings) -> None:
        self._board = board
        self._changed_s: dict[str, float] = {}
        self.adopt(settings)

    def adopt(self, settings: Settings) -> None:
        """Other limits from the next look on."""
        self._limits = heat.limits_of(settings.warm_c, settings.hot_c)

    def events(self, places: Collection[Place], now_s: float) -> dict[int, tuple[Event, str]]:
        """HOT and COOL events for the workers that should get one now, each with the reading."""
        domains = self._domains(places)
        ready = frozenset(p.worker for p in places if p.state is WorkerState.READY)
        resting = frozenset(p.worker for p in places if p.state is WorkerState.RESTING)
        if not domains and not resting:
            return {}
        found: dict[int, tuple[Event, str]] = {}
        for worker, change in heat.decide(domains, ready, resting, now_s).items():
            event = Event.HOT if change is Change.REST else Event.COOL
            of = [d for d in domains if worker in d.workers]
            self._changed_s.update((d.name, now_s) for d in of)
            known = [d.temp_c for d in of if d.temp_c is not None]
            found[worker] = event, f"{max(known):.0f} °C" if known else "temperature unknown"
        return found

    def _domains(self, places: Collection[Place]) -> list[Domain]:
        """The sensors that tell something of these workers."""
        found: dict[str, Domain] = {}
        for place in places:
            for name, temp_c, limits in self._sensors(place.placement):
                domain = found.get(name)
                workers = (*(domain.workers if domain else ()), place.worker)
                changed = self._changed_s.get(name, -math.inf)
                found[name] = Domain(name, tuple(sorted({*workers})), temp_c, limits, changed)
        return list(found.values())

    def _sensors(self, placement: Placement) -> list[tuple[str, float | None, Limits]]:
        if placement.gpu is not None:
            gpu = self._board.gpus.read(placement.gpu)
            temp_c = None if gpu is None else gpu.temp_c
            return [] if temp_c is None else [(f"gpu {placement.gpu}", temp_c, self._limits)]
        found: list[tuple[str, float | None, Limits]] = []
        for cpu in placement.cpus:
            core = self._board.cores.read(cpu) if cpu < len(self._board.cores) else None
            if core is None or core.temp_c is None:
                continue
            name = f"sensor {core.sensor}" if core.sensor >= 0 else f"cpu {cpu}"
            found.append((name, core.temp_c, heat.of_chip(core, self._limits)))
        return found
