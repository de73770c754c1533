"""All workers: the one place that changes a worker's state.

Owns the worker records and the identity rows of the board. Applies lifecycle.py's table,
starts and ends processes accordingly, and judges progress and heat once a tick. What the
operator's commands mean lies in operations.py.
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

from lbhost import control
from lbhost.board import Board, IdentityRow, Wanted, WorkerState
from lbhost.config import Settings
from lbhost.linux import cpu_s
from lbhost.placement.placement import Placement
from lbhost.supervisor import lifecycle, liveness, thermal
from lbhost.supervisor.budget import Restarts, after_crash
from lbhost.supervisor.children import Children
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.launcher import Launcher
from lbhost.supervisor.lifecycle import Event
from lbhost.supervisor.worker import Worker

STOP_LIMIT_S = 3.0
"""A worker that was told to stop gets so long before SIGKILL."""
HELLO_LIMIT_S = 5.0
"""A fork server that is asked for a fork answers, through the child, in 10 ms."""
STARTING = liveness.quiet_budget(30.0, 600.0)
"""Making a context takes 30 ms to seconds; loading a model into a GPU takes minutes."""
GOOD_RUN_S = 1.0
"""After that a crash is a new one: its worker is replaced at once, and the budget alone counts."""
_LOST_FORK_S = 0.05

_S = WorkerState


class Pool:
    """The workers by id."""

    def __init__(
        self,
        settings: Settings,
        board: Board,
        launcher: Launcher,
        children: Children,
        events: EventLog,
    ) -> None:
        self.workers: dict[int, Worker] = {}
        self._settings = settings
        self._board = board
        self._launcher = launcher
        self._children = children
        self._events = events
        self._epochs: dict[int, int] = {}
        self._changed = asyncio.Event()

    # --- what others ask for --------------------------------------------------------------

    def add(self, worker: Worker) -> None:
        """A new worker, which is started if it is wanted up."""
        worker.epoch = self._epochs.get(worker.id, 0)
        self.workers[worker.id] = worker
        self._publish(worker)
        self.settle(worker)

    def start(self, worker: Worker) -> None:
        """Make a process for a worker that has none."""
        if worker.retry is not None:
            worker.retry.cancel()
        if worker.state is _S.BACKOFF:
            worker.restarts += 1
        worker.retry = worker.retry_at_s = None
        worker.epoch += 1
        self._epochs[worker.id] = worker.epoch
        worker.forked, worker.pid, worker.ready_ns, worker.complaint = False, None, 0, None
        self._apply(worker, Event.START)
        self._launch(worker)

    def drain(self, worker: Worker, timeout_s: float) -> None:
        """No new requests; those that run may finish within timeout_s."""
        self._apply(worker, Event.DRAIN)
        worker.deadline_s = time.monotonic() + timeout_s
        self._tell(worker, control.Drain())

    def withdraw(self, worker: Worker) -> None:
        """Take a drain back."""
        self._apply(worker, Event.WITHDRAW)
        self._tell(worker, control.Resume())

    def stop(self, worker: Worker, why: str = "") -> None:
        """End its process now, whatever runs in it."""
        if worker.retry is not None:
            worker.retry.cancel()
            worker.retry = worker.retry_at_s = None
        self._apply(worker, Event.STOP, why)
        if worker.state is not _S.STOPPING:
            self.settle(worker)
        elif worker.pid is None and not worker.forked:
            self._apply(worker, Event.ENDED)
            self.settle(worker)
        else:
            worker.deadline_s = time.monotonic() + STOP_LIMIT_S
            self._tell(worker, control.Stop())

    def want(self, worker: Worker, wanted: Wanted) -> None:
        """Note what the operator wants; changes no state."""
        worker.wanted = wanted
        self._publish(worker)

    def reset_crashes(self, worker: Worker) -> None:
        """The operator asks for a new try: earlier crashes do not count."""
        worker.crashes = Restarts()

    def repin(self, worker: Worker, cpus: tuple[int, ...]) -> None:
        """Move a running worker to other CPUs."""
        worker.placement = Placement(cpus, worker.placement.threads)
        if worker.pid is not None:
            with contextlib.suppress(OSError):  # it has just ended, or a CPU went offline
                for thread in os.listdir(f"/proc/{worker.pid}/task"):  # noqa: PTH208
                    os.sched_setaffinity(int(thread), cpus)
        self._publish(worker)

    def settle(self, worker: Worker) -> None:
        """Let a stopped worker go if it is retiring, start it again if it is wanted up."""
        if worker.state is not _S.STOPPED or self.workers.get(worker.id) is not worker:
            return
        if worker.retiring:
            del self.workers[worker.id]
            self._board.identity.write(worker.id, IdentityRow(epoch=worker.epoch))
            self._notify()
        elif worker.wanted is Wanted.UP:
            self.start(worker)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds; it is looked at after every change of a worker."""
        while not condition():
            await self._changed.wait()

    # --- what services tell ---------------------------------------------------------------

    def fork_server_ready(self) -> None:
        """Fork those that have been waiting for the fork server."""
        for worker in self.workers.values():
            if worker.state is _S.STARTING and not worker.forked:
                self._launch(worker)

    def gateway_ready(self) -> None:
        """A new gateway needs a new data link to every worker."""
        for worker in self.workers.values():
            if worker.state in lifecycle.SERVING:
                self._launcher.connect(worker)

    # --- the tick -------------------------------------------------------------------------

    def tick(self, now_s: float, *, looked: bool, gateway_fresh: bool) -> None:
        """Deadlines, liveness and heat.

        Args:
            looked: whether the last tick was in time; if not, nobody is judged by this one.
            gateway_fresh: whether the gateway's rows on the board can be believed.
        """
        for worker in list(self.workers.values()):
            if not looked:
                worker.watch = None
                continue
            if worker.deadline_s is not None and now_s >= worker.deadline_s:
                self._overdue(worker)
            elif worker.state is _S.STARTING and worker.forked and worker.pid is None:
                self._await_hello(worker, now_s)
            elif worker.pid is not None and worker.state is not _S.STOPPING:
                self._look(worker, now_s, gateway_fresh=gateway_fresh)
        self._mind_heat()

    def _overdue(self, worker: Worker) -> None:
        worker.deadline_s = None
        if worker.state is _S.DRAINING:
            self.stop(worker, "the time to drain is over")
        elif worker.state is _S.STOPPING:
            if worker.pid is not None:
                self._children.signal(worker.pid, signal.SIGKILL)
            else:  # it was asked for and never came: end of file will end it if it does
                self._gone(worker, worker.epoch, "never started")

    def _await_hello(self, worker: Worker, now_s: float) -> None:
        fork_server = self._launcher.fork_server
        if now_s - worker.since_s > HELLO_LIMIT_S and fork_server is not None:
            worker.since_s = now_s
            self._events.add(
                "error", "health_kill", "fork server does not fork: killing it", worker.id
            )
            fork_server.health_kills += 1
            fork_server.kill()

    def _look(self, worker: Worker, now_s: float, *, gateway_fresh: bool) -> None:
        assert worker.pid is not None
        used = cpu_s(worker.pid)
        if used is None:
            return  # it is ending; its pidfd will say so
        row = self._board.progress.read(worker.id)
        if row is None or row.epoch != worker.epoch:
            seen, busy, predicted = (0, 0), False, 0.0
        else:
            seen, predicted = (row.steps, row.heartbeat_ns), row.predicted_step_s
            busy = bool(row.slots_busy or row.waiting or row.prefill_pending)
        if gateway_fresh:
            traffic = self._board.traffic.read(worker.id)
            busy = busy or (
                traffic is not None and traffic.epoch == worker.epoch and traffic.in_flight > 0
            )
        if worker.state is _S.STARTING:
            busy, budget = True, STARTING
        else:
            budget = liveness.step_budget(predicted)
        look = liveness.Look(now_s, busy, seen, used)
        worker.watch, verdict = liveness.judge(worker.watch, look, budget)
        if verdict is not liveness.Verdict.FINE:
            worker.watch = None
            worker.health_kills += 1
            worker.complaint = verdict.value
            self._events.add(
                "error", "health_kill", f"{worker.name} is {verdict.value}: killing it", worker.id
            )
            self._children.signal(worker.pid, signal.SIGKILL)

    def _mind_heat(self) -> None:
        states = {w.id: w.state for w in self.workers.values()}
        temps = {w.id: self._temp_c(w) for w in self.workers.values()}
        if all(temp is None for temp in temps.values()) and _S.RESTING not in states.values():
            return
        settings = self._settings
        for i, event in thermal.decide(
            states, temps, warm_c=settings.warm_c, hot_c=settings.hot_c
        ).items():
            temp = temps[i]
            note = "temperature unknown" if temp is None else f"{temp:.0f} °C"
            level = "warning" if event is Event.HOT else "info"
            self._apply(self.workers[i], event, note, level=level)

    def _temp_c(self, worker: Worker) -> float | None:
        if worker.placement.gpu is not None:
            gpu = self._board.gpus.read(worker.placement.gpu)
            return None if gpu is None else gpu.temp_c
        temps = [
            core.temp_c
            for cpu in worker.placement.cpus
            if cpu < len(self._board.cores) and (core := self._board.cores.read(cpu)) is not None
        ]
        return max((temp for temp in temps if temp is not None), default=None)

    def close(self) -> None:
        """Let go of all links and of the next tries: nobody waits for the workers any more."""
        for worker in self.workers.values():
            if worker.retry is not None:
                worker.retry.cancel()
                worker.retry = worker.retry_at_s = None
            if worker.link is not None:
                worker.link.close()
                worker.link = None

    # --- processes ------------------------------------------------------------------------

    def _launch(self, worker: Worker) -> None:
        if not self._launcher.can_launch(worker):
            return  # fork_server_ready() comes back to it
        epoch = worker.epoch
        worker.since_s = time.monotonic()
        try:
            self._launcher.launch(
                worker,
                partial(self._message, worker),
                partial(self._link_ended, worker, epoch),
                lambda how, _well: self._gone(worker, epoch, how),
            )
        except OSError as error:
            self._gone(worker, epoch, f"cannot be started: {error.strerror or error}")

    def _message(self, worker: Worker, message: control.Control) -> None:
        if isinstance(message, control.Hello):
            self._hello(worker, message.pid)
        elif isinstance(message, control.Ready):
            if worker.state is _S.STARTING:
                worker.ready_ns = time.monotonic_ns()
                self._launcher.connect(worker)  # before the gateway can read READY
                self._apply(worker, Event.READY)
        elif isinstance(message, control.Drained):
            if worker.state is _S.DRAINING:
                self.stop(worker)
        elif isinstance(message, control.Failed):
            worker.complaint = message.message

    def _hello(self, worker: Worker, pid: int) -> None:
        if worker.pid is not None:
            return
        epoch = worker.epoch
        worker.pid = pid
        if self._children.watch(pid, lambda how, _well: self._gone(worker, epoch, how)):
            self._publish(worker)
        else:
            self._gone(worker, epoch, "ended at once")

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
        if worker.state is _S.STARTING and not self._launcher.can_launch(worker):
            worker.link, worker.forked = None, False  # the fork server died: not the worker's fault
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
        worker.pid = None
        worker.forked = False
        crashed = lifecycle.on_exit(worker.state, worker.wanted, budget_left=True)
        if crashed is Event.ENDED:
            worker.last_exit = "stopped"
            self._apply(worker, Event.ENDED)
            self.settle(worker)
            return
        worker.last_exit = f"{worker.complaint}: {how}" if worker.complaint else how
        self._events.add(
            "error", "worker_exit", f"{worker.name} ended: {worker.last_exit}", worker.id
        )
        self._crashed(worker)

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
        event = lifecycle.on_exit(worker.state, worker.wanted, budget_left=delay is not None)
        if delay is None:
            note = "the restart budget is spent; `lbhost resume` tries again"
            self._apply(worker, event, note, level="error")
            return
        worker.retry_at_s = now + delay
        worker.retry = asyncio.get_running_loop().call_later(delay, self.start, worker)
        self._apply(worker, event, f"next try in {delay:.2g} s", level="warning")

    # --- states ---------------------------------------------------------------------------

    def _apply(self, worker: Worker, event: Event, note: str = "", level: str = "info") -> None:
        before = worker.state
        worker.state = lifecycle.apply(before, event)
        worker.since_s = time.monotonic()
        worker.deadline_s = worker.watch = None
        self._publish(worker)
        text = f"{worker.name}: {before.name.lower()} -> {worker.state.name.lower()}"
        self._events.add(level, "worker_state", f"{text} ({note})" if note else text, worker.id)

    def _publish(self, worker: Worker) -> None:
        self._board.identity.write(worker.id, worker.identity())
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _tell(self, worker: Worker, message: control.Control) -> None:
        if worker.link is not None:
            worker.link.send(message)
