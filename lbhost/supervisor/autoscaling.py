"""The autoscaler's shell: what the gateway counts becomes what is wanted of each model.

Looks once a tick, and at once when the gateway says that a request has come for a model that
sleeps. Decides nothing (autoscale.py) and starts or stops nothing: it writes desired.py as the
operator's commands do, and says so in an event.
"""

from __future__ import annotations

import time

from lbhost.board import Board, CoreRow, ModelRow, ScaleRow
from lbhost.errors import LbhostError
from lbhost.supervisor import lifecycle
from lbhost.supervisor.autoscale import Autoscaler, Bounds, Decision, Look
from lbhost.supervisor.fleet import Fleet, Served
from lbhost.supervisor.operations import Operations
from lbhost.supervisor.shared import Shared

FRESH_NS = 2_000_000_000
"""How old the gateway's row of a model may be to be believed."""

NO_ROOM_S = 10.0
"""A model for which there was no room for one more worker is not given one for so long."""

HELD_AGAIN_S = 600.0
"""A model that is held back by others' fixed numbers is told of again after so long without."""

MOST_S = 1e12
"""Seconds of work that a gateway may have counted."""

LEAST_SHARE = 0.2
"""Of a core; what others leave of it may be less for a moment."""


class Autoscaling:
    """Those models of a fleet that have other workers as their load asks."""

    def __init__(self, fleet: Fleet, operations: Operations, shared: Shared) -> None:
        self._fleet = fleet
        self._operations = operations
        self._homes = shared.homes
        self._events = shared.events
        self._board: Board = shared.board
        self._scaler = Autoscaler()
        self._woken: set[int] = set()
        """Models for which a request has come that the board does not tell of yet."""
        self._rows: dict[int, ModelRow] = {}
        """What the gateway last said: its counters go on where it was silent for a while."""
        self._full_until_s: dict[str, float] = {}
        self._refused: dict[str, str] = {}
        """Why there was no room, as last told."""
        self._told: dict[int, bool] = {}
        self._held: dict[str, tuple[str, float]] = {}
        """Who was held back by whom when that was last so, and when that was."""

    def wake(self, number: int) -> None:
        """A request has come for a model that sleeps."""
        if not 0 <= number < len(self._fleet.models):
            return
        if self._fleet.models[number].pool.desired.asleep:
            self._woken.add(number)
            self.look(time.monotonic())

    def look(self, now_s: float) -> None:
        """Decide for all models, and have it done. At the end, only for who is waited for: requests
        that a retiring gateway has are served to their end."""
        due = self._woken or not self._operations.stopping
        if due and any(map(_autoscaled, self._fleet)):
            self._decide(now_s)
        self._woken.clear()
        self.tell()

    def tell(self) -> None:
        """Let the gateway know who sleeps, or has been woken and is not up yet: it turns no request
        away then."""
        for number, model in enumerate(self._fleet):
            waking = self._told.get(number, False) and not _settled(model)
            asleep = model.pool.desired.asleep or waking
            if self._told.get(number) != asleep:
                self._board.scale.write(number, ScaleRow(asleep=asleep))
                self._told[number] = asleep

    def _decide(self, now_s: float) -> None:
        looks = {
            model.name: self._look(number, model, now_s) for number, model in enumerate(self._fleet)
        }
        cores = self._homes.topology.effective_cores
        decided = self._scaler.decide(looks, cores, now_s)
        self._tell_held_back(now_s)
        # Those that give first: the others then come to the cores that are free.
        for name, decision in sorted(
            decided.items(), key=lambda one: one[1].workers - looks[one[0]].workers
        ):
            self._do(self._fleet.named(name), decision, now_s)

    def _tell_held_back(self, now_s: float) -> None:
        """Once for as long as it lasts: who could use cores that models of a fixed number have."""
        for name, holders in self._scaler.held_back.items():
            before, since_s = self._held.get(name, ("", now_s))
            self._held[name] = (holders, now_s)
            if holders != before or now_s - since_s >= HELD_AGAIN_S:
                text = (
                    f"it would have more workers, but the cores belong to {holders}, whose number "
                    "of workers is fixed or pinned"
                )
                pool = self._fleet.named(name).pool
                self._events.add("warning", "autoscale", pool.naming(text))

    def _look(self, number: int, model: Served, now_s: float) -> Look:
        row = self._board.models.read(number)
        woken = number in self._woken
        fresh = row is not None and time.monotonic_ns() - row.heartbeat_ns <= FRESH_NS
        if row is not None and fresh and _believable(row):
            known, self._rows[number] = True, row
        else:  # the gateway is away, or cannot serve it: what it has stays
            known, row = woken, self._rows.get(number, ModelRow())
        if self._operations.stopping:
            known = woken
        pool = model.pool
        has = _up(model)
        on_gpu = any(placement.gpu is not None for placement in model.made.placements)
        return Look(
            bounds=self._bounds(model, has, now_s, known=known),
            workers=has,
            requests=row.requests,
            work_s=row.work_s,
            backlog_s=row.backlog_s,
            queued=max(row.queue_depth, int(woken)),
            in_flight=row.in_flight,
            slots=pool.desired.slots,
            cores=0 if on_gpu else pool.desired.settings.threads,
            share=1.0 if on_gpu else self._share(model),
            weight=pool.desired.weight,
            starting=has > 0 and not _settled(model),
        )

    def _bounds(self, model: Served, has: int, now_s: float, *, known: bool) -> Bounds:
        desired = model.pool.desired
        settings, down = desired.settings, _down(model)
        most = max(1, model.most - down)
        if now_s < self._full_until_s.get(model.name, 0.0):
            most = max(1, has)
        busy = self._operations.rolling is not None and has > 0
        scales = self._operations.scales(model.pool)
        taken_down = down > 0 and has == 0 and not desired.asleep  # by an operator, all of it
        fixed = not (known and _autoscaled(model)) or busy or scales or taken_down
        least = min(settings.least_workers, most)
        return Bounds(least, most, settings.idle_timeout_s, fixed=fixed)

    def _share(self, model: Served) -> float:
        """What others leave of the cores that the model's workers are on, on average."""
        left = []
        for worker in model.pool.workers.values():
            if worker.state in lifecycle.UP:
                rows = [self._board.cores.read(cpu) for cpu in worker.place.cpus]
                left += [1.0 - ((row or CoreRow()).usual_others or 0.0) for row in rows]
        return max(LEAST_SHARE, sum(left) / len(left)) if left else 1.0

    def _do(self, model: Served, decision: Decision, now_s: float) -> None:
        pool, has = model.pool, _up(model)
        if decision.workers > has and not self._has_room(model, decision.workers, now_s):
            return
        text = f"workers {has} -> {decision.workers}: {decision.reason}"
        if 0 in (has, decision.workers):
            text = f"{'sleeps' if has else 'wakes'}, {text}"
        self._events.add("info", "autoscale", pool.naming(text))
        pool.desired.asleep = decision.workers == 0
        self.tell()  # before the last worker goes, so that no request is turned away
        self._operations.set_workers(pool, decision.workers, of_those_up=True)

    def _has_room(self, model: Served, count: int, now_s: float) -> bool:
        """Whether so many workers fit here; why not is told once."""
        try:
            self._operations.check_scale(model.name, count + _down(model))
        except LbhostError as error:
            self._full_until_s[model.name] = now_s + NO_ROOM_S
            if self._refused.get(model.name) != error.message:
                self._refused[model.name] = error.message
                text = model.pool.naming(f"no more workers: {error.message}")
                self._events.add("warning", "autoscale", text)
            return False
        self._refused.pop(model.name, None)
        return True


def _believable(row: ModelRow) -> bool:
    """Whether a gateway counts such work: what a process that was taken over writes there must not
    end the supervisor, which reckons with it."""
    return abs(row.work_s) <= MOST_S and abs(row.backlog_s) <= MOST_S


def _autoscaled(model: Served) -> bool:
    return model.pool.desired.autoscaled


def _up(model: Served) -> int:
    """Workers that are wanted up. Those that an operator has taken down count for nothing, and
    stay as they are."""
    return sum(want.up for want in model.pool.desired.members().values())


def _down(model: Served) -> int:
    return len(model.pool.desired.members()) - _up(model)


def _settled(model: Served) -> bool:
    """Whether a worker has come up, or none will, or an operator has taken all down."""
    members = model.pool.desired.members().values()
    down = bool(members) and not any(want.up for want in members)
    up = any(worker.state in lifecycle.UP for worker in model.pool.workers.values())
    return up or down or model.hopeless is not None
