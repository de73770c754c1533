"""The workers of one model: the one place that changes a worker's state.

Owns the worker records and the identity rows of the board. Carries out what reconcile.py
decides, after every change and once a tick, through lifecycle.py's table; tells of a change
only when it is made. What the operator's commands mean lies in operations.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial

from lbhost import control, log
from lbhost.board import Board, IdentityRow, WorkerState
from lbhost.config import Settings
from lbhost.linux import is_stopped, threads
from lbhost.placement.placement import Placement
from lbhost.supervisor import lifecycle, looking, rolling
from lbhost.supervisor import reconcile as decide
from lbhost.supervisor.blame import by_its_work
from lbhost.supervisor.budget import Restarts, after_crash
from lbhost.supervisor.children import Children
from lbhost.supervisor.cores import Ledger, ledger
from lbhost.supervisor.desired import ModelWanted, WorkerWanted
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.homes import Homes
from lbhost.supervisor.launcher import Launcher
from lbhost.supervisor.lifecycle import Event
from lbhost.supervisor.liveness import Verdict
from lbhost.supervisor.thermal import Place, Thermal
from lbhost.supervisor.worker import Worker, wanted

GOOD_RUN_S = 1.0
"""After that a crash is a new one: its worker is replaced at once, and the budget alone counts."""
_LOST_FORK_S = 0.05

_S = WorkerState


class Pool:
    """The workers of one model by id, and what is wanted of them."""

    def __init__(
        self,
        desired: ModelWanted,
        homes: Homes,
        settings: Settings,
        board: Board,
        launcher: Launcher,
        children: Children,
        events: EventLog,
    ) -> None:
        self.desired = desired
        """Whoever changes it calls `reconcile`."""
        self.workers: dict[int, Worker] = {}
        self.rolled: rolling.Over | None = None
        """How the last rolling restart ended."""
        self._homes = homes
        self._settings = settings
        self._board = board
        self._thermal = Thermal(board, settings)
        self._launcher = launcher
        self._children = children
        self._events = events
        self._epochs: dict[int, int] = {}
        self._changed = asyncio.Event()
        self._reconciling = False
        self._timer: asyncio.TimerHandle | None = None
        self._rolling_told = ""

    # --- what is wanted, and what is ------------------------------------------------------

    def add(self, worker_id: int, place: Placement, want: WorkerWanted) -> Worker:
        """A new worker; `reconcile` starts it."""
        worker = Worker(worker_id, place, self.desired.slots, self.desired.n_ctx)
        worker.epoch = self._epochs.get(worker_id, 0)
        self.desired.workers[worker_id] = want
        self.workers[worker_id] = worker
        self._publish(worker)
        return worker

    def want(self, worker: Worker, **changes: object) -> None:
        """Want something else of a worker; `reconcile` does it."""
        self.desired.change(worker.id, **changes)
        self._publish(worker)

    def wanted(self, worker: Worker) -> WorkerWanted:
        """What is wanted of a worker; of one that is gone: that."""
        gone = WorkerWanted(home=None, up=False, leaving=True)
        return gone if self.lost(worker) else self.desired.workers[worker.id]

    def lost(self, worker: Worker) -> bool:
        """Whether it has been forgotten."""
        return self.workers.get(worker.id) is not worker

    def reset_crashes(self, worker: Worker) -> None:
        """The operator asks for a new try: earlier crashes do not count."""
        worker.crashes = Restarts()

    def ledger(self) -> Ledger:
        """Whose each core is, and who else runs there."""
        homes = {i: want.home for i, want in self.desired.members().items()}
        alive = [w for w in self.workers.values() if w.state in lifecycle.ALIVE]
        return ledger(homes, {w.id: w.place for w in alive})

    def step(self) -> rolling.Step:
        """Where the rolling restart is."""
        states = {i: (w.state, w.epoch) for i, w in self.workers.items()}
        return rolling.step(self.desired, states)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds; it is looked at after every change of a worker."""
        while not condition():
            await self._changed.wait()

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
                log.get().error("the workers do not settle", model=self.desired.file.alias)
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
            request_limit_s=self._settings.request_timeout_s,
        )

    def _ensure_fork_servers(self) -> None:
        wanted = [want for want in self.desired.workers.values() if not want.leaving]
        at_home = {want.home.node for want in wanted if want.home and want.home.gpu is None}
        running = {w.home.node for w in wanted if w.runs and w.home and w.home.gpu is None}
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
        worker = self.workers[action.worker]
        match action:
            case decide.Start(_, place):
                self._start(worker, place)
            case decide.Launch(_, place):
                return self._launch(worker, place)
            case decide.Drain():
                worker.drain += 1
                worker.drained = False
                self._apply(worker, Event.DRAIN)
                self._send(worker, control.Drain(worker.drain))  # deaf: its time runs out
                self._tell_leaving(worker)
            case decide.Withdraw():
                if not self._send(worker, control.Resume()):
                    return False  # it would go on rejecting everything
                self._apply(worker, Event.WITHDRAW)
            case decide.Stop(_, why):
                self._stop(worker, why)
            case decide.Kill():
                return self._kill(worker)
            case decide.Repin(_, place):
                self._repin(worker, place)
            case decide.Connect():
                return self._connect(worker)
            case decide.Forget():
                self._forget(worker)
        return True

    def _start(self, worker: Worker, place: Placement) -> None:
        if worker.state is _S.BACKOFF:
            worker.restarts += 1
        worker.epoch += 1
        self._epochs[worker.id] = worker.epoch
        worker.pid, worker.ready_ns, worker.complaint, worker.place = None, 0, None, place
        worker.found_hung = worker.stopped = False
        self._apply(worker, Event.START)

    def _launch(self, worker: Worker, place: Placement) -> bool:
        epoch = worker.epoch
        worker.place = place
        try:
            return self._launcher.launch(
                worker,
                partial(self._message, worker, epoch),
                partial(self._link_ended, worker, epoch),
                lambda how, _well: self._gone(worker, epoch, how),
            )
        except OSError as error:
            self._gone(worker, epoch, f"cannot be started: {error.strerror or error}")
            return True

    def _stop(self, worker: Worker, why: str) -> None:
        asked = worker.asked
        self._apply(worker, Event.STOP, why)
        if worker.state is _S.STOPPING and not asked:
            self._apply(worker, Event.ENDED)
        elif worker.state is _S.STOPPING:
            self._send(worker, control.Stop())  # deaf: SIGKILL comes after STOP_LIMIT_S

    def _kill(self, worker: Worker) -> bool:
        if worker.pid is not None:
            self._children.signal(worker.pid, signal.SIGKILL)
            return False
        # It was asked for and never came: end of file will end it if it does.
        self._gone(worker, worker.epoch, "never started")
        return True

    def _repin(self, worker: Worker, place: Placement) -> None:
        worker.place = place
        self.pin(worker)
        self._publish(worker)

    def pin(self, worker: Worker) -> None:
        """Hold a running worker's threads to its CPUs, if they have come to be elsewhere.

        Threads that it has on lent CPUs are its own to pin.
        """
        if worker.pid is None or worker.state is _S.STOPPING:
            return
        cpus = set(worker.place.cpus)
        with contextlib.suppress(OSError):  # it has just ended
            elsewhere = os.sched_getaffinity(worker.pid)
            if elsewhere == cpus:
                return
            for thread in threads(worker.pid):
                with contextlib.suppress(OSError):  # this one has, or a CPU went offline
                    if os.sched_getaffinity(thread) == elsewhere:
                        os.sched_setaffinity(thread, cpus)

    def _connect(self, worker: Worker) -> bool:
        if not self._launcher.connect(worker):
            return False
        worker.gateway = self._launcher.gateway.pid
        return True

    def _forget(self, worker: Worker) -> None:
        del self.workers[worker.id]
        del self.desired.workers[worker.id]
        self._board.identity.write(worker.id, IdentityRow(epoch=worker.epoch))
        self._notify()

    def _rolling_over(self, over: rolling.Over) -> None:
        plan, self.desired.rolling, self.rolled = self.desired.rolling, None, over
        assert plan is not None, "only a rolling restart that is wanted ends"
        for i in plan.targets:
            if i in self.workers:  # who was not restarted yet is not to be any more
                epoch = min(self.desired.workers[i].epoch, self.workers[i].epoch)
                self.want(self.workers[i], epoch=epoch)
        if plan.spare in self.workers:
            self.want(self.workers[plan.spare], leaving=True)
        self._notify()

    def _tell_rolling(self) -> None:
        step = self.step()
        text = "" if step.rolling is None or step.turn is None else step.text
        if text and text != self._rolling_told:
            self._events.add("info", "rolling", text, step.turn)
        self._rolling_told = text

    # --- the tick -------------------------------------------------------------------------

    def tick(self, now_s: float, *, looked: bool, gateway_fresh: bool) -> None:
        """Liveness and heat; what is overdue or has not succeeded is done again.

        Args:
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
                self._look(worker, now_s, gateway_fresh=gateway_fresh)
        self._apply_heat(now_s)
        self.reconcile()

    def _look(self, worker: Worker, now_s: float, *, gateway_fresh: bool) -> None:
        verdict = looking.look(self._board, worker, now_s, gateway_fresh=gateway_fresh)
        if verdict is not Verdict.FINE and worker.pid is not None:
            worker.watch = None
            worker.health_kills += 1
            worker.complaint = verdict.value
            worker.found_hung, worker.stopped = True, is_stopped(worker.pid)
            self._children.signal(worker.pid, signal.SIGKILL)
            self._events.add(
                "error", "health_kill", f"{worker.name} is {verdict.value}: killing it", worker.id
            )

    def _apply_heat(self, now_s: float) -> None:
        places = [Place(w.id, w.state, w.place) for w in self.workers.values()]
        for worker, (event, note) in self._thermal.events(places, now_s).items():
            level = "warning" if event is Event.HOT else "info"
            self._apply(self.workers[worker], event, note, level=level)
            if event is Event.HOT:
                self._tell_leaving(self.workers[worker])

    def close(self) -> None:
        """Let go of all links and of the timer: nobody waits for the workers any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for worker in self.workers.values():
            if worker.link is not None:
                worker.link.close()
                worker.link = None

    # --- what processes tell --------------------------------------------------------------

    def _message(self, worker: Worker, epoch: int, message: control.Control) -> None:
        if worker.epoch != epoch:
            return
        if isinstance(message, control.Hello):
            self._hello(worker, message.pid)
        elif isinstance(message, control.Ready):
            if worker.state is _S.STARTING:
                worker.ready_ns = time.monotonic_ns()
                self._connect(worker)  # before the gateway can read READY
                self._apply(worker, Event.READY)
        elif isinstance(message, control.Drained):
            worker.drained = worker.drained or message.number == worker.drain
        elif isinstance(message, control.Failed):
            worker.complaint = message.message
        self.reconcile()

    def _hello(self, worker: Worker, pid: int) -> None:
        if worker.place.gpu is None:
            self._launcher.fork_servers.forked(worker.place.node)
        if worker.pid is not None:
            return
        epoch = worker.epoch
        try:
            known = self._children.watch(pid, lambda how, _well: self._gone(worker, epoch, how))
            why = "ended at once"
        except OSError as error:  # no descriptor left: what cannot be watched must not live
            known, why = False, f"cannot be watched: {error.strerror}"
            os.kill(pid, signal.SIGKILL)  # our child, not reaped yet: the pid is still its own
        if known:
            worker.pid = pid
            self._publish(worker)
        else:
            self._gone(worker, epoch, why)

    def _link_ended(self, worker: Worker, epoch: int) -> None:
        loop = asyncio.get_running_loop()
        if worker.pid is None:
            loop.call_later(_LOST_FORK_S, self._lost_fork, worker, epoch)
        else:
            loop.call_later(1.0, self._kill_if_still, worker, epoch)

    def _lost_fork(self, worker: Worker, epoch: int) -> None:
        """A fork was asked for and its link ended without a Hello."""
        if worker.epoch != epoch or worker.pid is not None:
            return
        if worker.state is _S.STARTING and not self._launcher.can_launch(worker.place):
            worker.link, worker.asked = None, False  # the fork server died: not the worker's fault
        else:
            self._gone(worker, epoch, "the fork server could not fork it")

    def _kill_if_still(self, worker: Worker, epoch: int) -> None:
        """A worker that has closed its control link is of no use, even if it lingers."""
        if worker.epoch == epoch and worker.pid is not None:
            self._children.signal(worker.pid, signal.SIGKILL)

    def _gone(self, worker: Worker, epoch: int, how: str) -> None:
        if worker.epoch != epoch or worker.state not in lifecycle.ALIVE:
            return
        if worker.link is not None:
            worker.link.drain()
            worker.link.close()
            worker.link = None
        if worker.gateway is not None:
            self._tell_end(worker, how)
        worker.pid = worker.gateway = None
        worker.asked = False
        if self._exit_event(worker, budget_left=True) is Event.ENDED:
            worker.last_exit = "stopped"
            self._apply(worker, Event.ENDED)
        else:
            worker.last_exit = f"{worker.complaint}: {how}" if worker.complaint else how
            self._crashed(worker)
        self.reconcile()

    def _tell_leaving(self, worker: Worker) -> None:
        self._launcher.gateway.send(control.Leaving(worker.id, worker.epoch))

    def _tell_end(self, worker: Worker, how: str) -> None:
        """The gateway has to know whether a request may have done it. Deaf: it assumes none."""
        blamed = by_its_work(
            how,
            asked=worker.state is _S.STOPPING,
            found_hung=worker.found_hung,
            stopped=worker.stopped,
        )
        self._launcher.gateway.send(control.Ended(worker.id, worker.epoch, blamed))

    def _crashed(self, worker: Worker) -> None:
        now = time.monotonic()
        ran = now - worker.ready_ns / 1e9 if worker.ready_ns else 0.0
        worker.ready_ns = 0
        worker.crashes, delay = after_crash(
            worker.crashes,
            now_s=now,
            ran_s=ran,
            jitter=random.uniform(-1, 1),
            good_run_s=GOOD_RUN_S,
            window_s=self._settings.restart_window_s,
            budget=self._settings.restart_budget,
        )
        event = self._exit_event(worker, budget_left=delay is not None)
        first = f"{worker.name} ended: {worker.last_exit}"
        if delay is None:
            note = "the restart budget is spent; `lbhost resume` tries again"
            self._apply(worker, event, note, level="error", ended=first)
        else:
            note = f"next try in {delay:.2g} s"
            self._apply(worker, event, note, level="warning", ended=first, retry_at_s=now + delay)

    def _exit_event(self, worker: Worker, *, budget_left: bool) -> Event:
        want = self.wanted(worker)
        shown = wanted(want) if want.home is not None else wanted(WorkerWanted(None, up=False))
        return lifecycle.on_exit(worker.state, shown, budget_left=budget_left)

    # --- states ---------------------------------------------------------------------------

    def _apply(
        self,
        worker: Worker,
        event: Event,
        note: str = "",
        level: str = "info",
        ended: str | None = None,
        retry_at_s: float | None = None,
    ) -> None:
        """Change the state, then tell of it.

        Args:
            ended: how its process ended, told before.
        """
        before = worker.state
        worker.state = lifecycle.apply(before, event)
        worker.since_s = time.monotonic()
        worker.retry_at_s, worker.watch = retry_at_s, None
        self._publish(worker)
        if ended is not None:
            self._events.add("error", "worker_exit", ended, worker.id)
        text = f"{worker.name}: {before.name.lower()} -> {worker.state.name.lower()}"
        self._events.add(level, "worker_state", f"{text} ({note})" if note else text, worker.id)

    def _publish(self, worker: Worker) -> None:
        self._board.identity.write(worker.id, worker.identity(self.wanted(worker)))
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _send(self, worker: Worker, message: control.Control) -> bool:
        return worker.link is not None and worker.link.send(message)
