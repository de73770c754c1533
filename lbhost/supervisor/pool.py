"""The workers of one model, made into what is wanted of them.

Carries out what reconcile.py decides, after every change and once a tick: states in its roster,
processes by processes.py. What the operator's commands mean lies in operations.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from lbhost import control, log
from lbhost.board import ProgressRow, WorkerState
from lbhost.linux import anonymous_bytes
from lbhost.placement.memory import gib
from lbhost.placement.placement import Placement
from lbhost.supervisor import lifecycle, looking, rolling
from lbhost.supervisor import reconcile as decide
from lbhost.supervisor.desired import ModelWanted
from lbhost.supervisor.launcher import Launcher
from lbhost.supervisor.lifecycle import Event
from lbhost.supervisor.liveness import Verdict
from lbhost.supervisor.memory_limit import DRAIN_S, MemoryLimit, Used
from lbhost.supervisor.memory_limit import Verdict as Over
from lbhost.supervisor.processes import Processes
from lbhost.supervisor.roster import Roster
from lbhost.supervisor.shared import Shared
from lbhost.supervisor.thermal import Place, Thermal
from lbhost.supervisor.worker import Worker

_S = WorkerState


class Pool(Roster):
    """A roster whose workers follow what is wanted of them."""

    def __init__(self, desired: ModelWanted, launcher: Launcher, shared: Shared) -> None:
        super().__init__(desired, shared)
        self.rolled: rolling.Over | None = None
        """How the last rolling restart ended."""
        self._homes = shared.homes
        self._thermal = Thermal(shared.board, desired.settings)
        self._memory = MemoryLimit()
        self._launcher = launcher
        self.processes = Processes(self, launcher, shared.children, shared.events, self.reconcile)
        self._reconciling = False
        self._timer: asyncio.TimerHandle | None = None
        self._rolling_told = ""

    # --- what is wanted, and what is ------------------------------------------------------

    def homes(self) -> dict[int, Placement | None]:
        """Where each worker that counts is at home."""
        return {i: want.home for i, want in self.desired.members().items()}

    def places(self) -> dict[int, Placement]:
        """Where each process runs."""
        return {w.id: w.place for w in self.workers.values() if w.state in lifecycle.ALIVE}

    def step(self) -> rolling.Step:
        """Where the rolling restart is."""
        states = {i: (w.state, w.epoch) for i, w in self.workers.items()}
        return rolling.step(self.desired, states)

    # --- the reconciler's shell -----------------------------------------------------------

    def reconcile(self) -> None:
        """Make what is into what is wanted, as far as that goes now."""
        if self._reconciling:
            return  # an action of the round below has changed something: it looks again
        self._reconciling = True
        try:
            self._ensure_fork_servers()
            # Each round carries every worker at least a state further, or is the last.
            for _ in range(2 * len(_S) * (len(self.workers) + 1)):
                actions = decide.reconcile(self.desired, self._actual(), time.monotonic())
                # All of them: any() would leave out those after the first.
                if not any([self._do(action) for action in actions]):  # noqa: C419
                    break
            else:
                log.get().error("the workers do not settle", model=self.desired.name)
        finally:
            self._reconciling = False
        self._tell_rolling()
        self._set_timer()

    def _actual(self) -> decide.Actual:
        gateway = self._launcher.gateway
        pid = gateway.pid if gateway.state == "ready" else None
        return decide.Actual(
            workers={i: worker.seen(pid) for i, worker in self.workers.items()},
            fork_servers=self._launcher.fork_servers.ready(),
            gateway=pid is not None,
            allowed=self._homes.allowed,
            request_limit_s=self.desired.settings.request_timeout_s,
        )

    def _ensure_fork_servers(self) -> None:
        wanted = [want for want in self.desired.workers.values() if not want.leaving]
        at_home = {want.home.node for want in wanted if want.home and want.home.gpu is None}
        running = {w.home.node for w in wanted if w.runs and w.home and w.home.gpu is None}
        if self.desired.asleep:
            unload = self.desired.settings.idle_unload
            at_home = set() if unload else at_home | self._launcher.fork_servers.nodes()
        self._launcher.fork_servers.ensure(running, at_home)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = decide.due_s(self.desired, self._actual())
        if due is not None and due > time.monotonic():  # what is overdue, the tick repeats
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(due - time.monotonic(), self.reconcile)

    def _do(self, action: decide.Action) -> bool:
        """Carry out an action. False if it has changed nothing: to be tried again later."""
        if isinstance(action, decide.RollingOver):
            self._rolling_over(action.how)
            return True
        worker, processes = self.workers[action.worker], self.processes
        match action:
            case decide.Start(_, place):
                worker.restarts += worker.state is _S.BACKOFF
                self.desired.change(worker.id, down_by_s=None)  # that was for the one before
                self.begin(worker, place)
            case decide.Launch(_, place):
                return processes.launch(worker, place)
            case decide.Drain():
                worker.drain += 1
                worker.drained = False
                self.apply(worker, Event.DRAIN)
                processes.send(worker, control.Drain(worker.drain))  # deaf: its time runs out
                processes.tell_leaving(worker)
            case decide.Withdraw():
                if not processes.send(worker, control.Resume()):
                    return False  # it would go on rejecting everything
                self.apply(worker, Event.WITHDRAW)
            case decide.Stop(_, why):
                processes.stop(worker, why)
            case decide.Kill():
                return processes.kill(worker)
            case decide.Repin(_, place):
                worker.place = place
                processes.pin(worker)
                self.publish(worker)
            case decide.Connect():
                return processes.connect(worker)
            case decide.Forget():
                self.forget(worker)
        return True

    def _rolling_over(self, over: rolling.Over) -> None:
        plan, self.desired.rolling, self.rolled = self.desired.rolling, None, over
        assert plan is not None, "only a rolling restart that is wanted ends"
        for i in plan.targets:
            if i in self.workers:  # who was not restarted yet is not to be any more
                epoch = min(self.desired.workers[i].epoch, self.workers[i].epoch)
                self.want(self.workers[i], epoch=epoch)
        if plan.spare in self.workers:
            self.want(self.workers[plan.spare], leaving=True)
        self.notify()

    def _tell_rolling(self) -> None:
        step = self.step()
        text = "" if step.rolling is None or step.turn is None else step.text
        if text and text != self._rolling_told:
            self._events.add("info", "rolling", self.naming(text), step.turn)
        self._rolling_told = text

    # --- the tick -------------------------------------------------------------------------

    def tick(
        self,
        now_s: float,
        progress: Mapping[int, ProgressRow],
        *,
        looked: bool,
        gateway_fresh: bool,
    ) -> None:
        """Liveness and heat; what is overdue or has not succeeded is done again.

        Args:
            progress: as just read.
            looked: whether the last tick was in time; if not, nobody is judged by this one.
            gateway_fresh: whether the gateway's rows on the board can be believed.
        """
        waiting = [w for w in self.workers.values() if w.state is _S.STARTING and w.pid is None]
        asked = frozenset(w.place.node for w in waiting if w.place.gpu is None)
        self._launcher.fork_servers.look(now_s, asked, looked=looked)
        for worker in list(self.workers.values()):
            if not looked:
                worker.watch = None
            elif worker.pid is not None and worker.state is not _S.STOPPING:
                row = progress.get(worker.id)
                traffic = self._board.traffic.read(worker.id) if gateway_fresh else None
                verdict = looking.look(worker, row, traffic, now_s)
                if verdict is not Verdict.FINE:
                    self.processes.condemn(worker, verdict)
        self._apply_heat(now_s)
        self._look_at_memory(now_s)
        self.reconcile()

    def _apply_heat(self, now_s: float) -> None:
        places = [Place(w.id, w.state, w.place) for w in self.workers.values()]
        self._thermal.adopt(self.desired.settings)
        for worker, (event, note) in self._thermal.events(places, now_s).items():
            level = "warning" if event is Event.HOT else "info"
            self.apply(self.workers[worker], event, note, level=level)
            if event is Event.HOT:
                self.processes.tell_leaving(self.workers[worker])

    def _look_at_memory(self, now_s: float) -> None:
        used = []
        for worker in self.workers.values():
            taken = None if worker.pid is None else anonymous_bytes(worker.pid)
            worker.own_bytes = None if taken is None else max(0, taken - worker.inherited_bytes)
            if worker.own_bytes is not None and worker.state in lifecycle.UP:
                used.append(Used(worker.id, worker.epoch, worker.own_bytes))
        self._memory.adopt(self.desired.settings)
        running = [w for w in self.workers.values() if self.wanted(w).runs]
        others_down = any(w.state not in lifecycle.UP for w in running)
        found = self._memory.judge(used, others_down=others_down, now_s=now_s)
        for worker_id, verdict in found.items():
            self._over_limit(self.workers[worker_id], verdict, now_s)

    def _over_limit(self, worker: Worker, verdict: Over, now_s: float) -> None:
        """Replace it as a restart does, its requests moving to the others meanwhile."""
        has = f"{gib(worker.own_bytes or 0)} of its own, over its limit of "
        text = f"{worker.name} has {has}{gib(self._memory.limit_bytes or 0)}"
        if verdict is Over.LET_BE:
            text += ": it was replaced for that too often, and runs on; is --memory-limit too low?"
            self._events.add("error", "memory_limit", text, worker.id)
            return
        worker.memory_restarts += 1
        self._events.add("warning", "memory_limit", f"{text}: replacing it", worker.id)
        if verdict is Over.REPLACE_NOW:  # nor does it wait for its turn in a rolling restart
            self.processes.stop(worker, "far over its memory limit")
        else:
            self.want(worker, epoch=worker.epoch + 1, down_by_s=now_s + DRAIN_S)

    def pin(self) -> None:
        """Hold every running worker to its CPUs: a cpuset that went and came has taken them."""
        for worker in self.workers.values():
            self.processes.pin(worker)

    def close(self) -> None:
        """Let go of all links and of the timer: nobody waits for the workers any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.processes.close()
