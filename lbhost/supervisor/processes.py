"""The processes of one model's workers: made, linked, pinned, ended, and what they tell.

Carries out what pool.py says, one worker at a time, and notes what has come of it in the
roster. A message or an end of an earlier epoch changes nothing.
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
from lbhost.board import WorkerState
from lbhost.linux import is_stopped, threads
from lbhost.placement.placement import Placement
from lbhost.supervisor import lifecycle
from lbhost.supervisor.blame import by_its_work
from lbhost.supervisor.budget import after_crash
from lbhost.supervisor.children import Children
from lbhost.supervisor.desired import WorkerWanted
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.launcher import Launcher
from lbhost.supervisor.lifecycle import Event
from lbhost.supervisor.liveness import Verdict
from lbhost.supervisor.roster import Roster
from lbhost.supervisor.worker import Worker, wanted

_LOST_FORK_S = 0.05

_S = WorkerState


class Processes:
    """What is done to the processes of a roster's workers."""

    def __init__(
        self,
        roster: Roster,
        launcher: Launcher,
        children: Children,
        events: EventLog,
        after: Callable[[], None],
    ) -> None:
        """
        Args:
            after: called when a process has told something or is gone.
        """
        self._roster = roster
        self._launcher = launcher
        self._children = children
        self._events = events
        self._after = after

    def launch(self, worker: Worker, place: Placement) -> bool:
        """Ask for a worker's process. False if nobody takes that now: to be tried again."""
        epoch = worker.epoch
        worker.place = place
        try:
            return self._launcher.launch(
                worker,
                partial(self.message, worker, epoch),
                partial(self._link_ended, worker, epoch),
                lambda how, _well: self._gone(worker, epoch, how),
            )
        except OSError as error:
            self._gone(worker, epoch, f"cannot be started: {error.strerror or error}")
            return True

    def stop(self, worker: Worker, why: str) -> None:
        """Ask it to end, for a reason that is told."""
        asked = worker.asked
        self._roster.apply(worker, Event.STOP, why)
        if worker.state is _S.STOPPING and not asked:
            self._roster.apply(worker, Event.ENDED)
        elif worker.state is _S.STOPPING:
            self.send(worker, control.Stop())  # deaf: SIGKILL comes after STOP_LIMIT_S

    def kill(self, worker: Worker) -> bool:
        """End it at once. False while its end has yet to come."""
        if worker.pid is not None:
            self._children.signal(worker.pid, signal.SIGKILL)
            return False
        # It was asked for and never came: end of file will end it if it does.
        self._gone(worker, worker.epoch, "never started")
        return True

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

    def connect(self, worker: Worker) -> bool:
        """Give it a data link to the present gateway. False: to be tried again."""
        if not self._launcher.connect(worker):
            return False
        worker.gateway = self._launcher.gateway.pid
        return True

    def send(self, worker: Worker, message: control.Control) -> bool:
        """Send it a message; False if it is not there to take it."""
        return worker.link is not None and worker.link.send(message)

    def condemn(self, worker: Worker, verdict: Verdict) -> None:
        """Kill one that does not do its work; its end then counts as a crash."""
        if worker.pid is None:
            return
        worker.watch = None
        worker.health_kills += 1
        worker.complaint = verdict.value
        worker.found_hung, worker.stopped = True, is_stopped(worker.pid)
        self._children.signal(worker.pid, signal.SIGKILL)
        text = f"{worker.name} is {verdict.value}: killing it"
        self._events.add("error", "health_kill", text, worker.id)

    def close(self) -> None:
        """Let go of all links: nobody waits for the workers any more."""
        for worker in self._roster.workers.values():
            worker.output.end()
            if worker.link is not None:
                worker.link.close()
                worker.link = None

    # --- what they tell -------------------------------------------------------------------

    def message(self, worker: Worker, epoch: int, message: control.Control) -> None:
        """What its link has brought; of an earlier epoch: nothing."""
        if worker.epoch != epoch:
            return
        if isinstance(message, control.Hello):
            worker.inherited_bytes = message.inherited_bytes
            self._hello(worker, message.pid)
        elif isinstance(message, control.Ready):
            if worker.state is _S.STARTING:
                worker.ready_ns = time.monotonic_ns()
                self.connect(worker)  # before the gateway can read READY
                self._roster.apply(worker, Event.READY)
        elif isinstance(message, control.Drained):
            worker.drained = worker.drained or message.number == worker.drain
        elif isinstance(message, control.Failed):
            worker.complaint = message.message
        self._after()

    def _hello(self, worker: Worker, pid: int) -> None:
        if worker.place.gpu is None:
            self._launcher.fork_servers.forked(worker.place.node)
        if worker.pid is not None:
            return
        epoch = worker.epoch
        if not self._children.is_new(pid):  # a fork server that was taken over could have it killed
            self._gone(worker, epoch, f"named process {pid}, which is no new child of ours")
            return
        try:
            known = self._children.watch(pid, lambda how, _well: self._gone(worker, epoch, how))
            why = "ended at once"
        except OSError as error:  # no descriptor left: what cannot be watched must not live
            known, why = False, f"cannot be watched: {error.strerror}"
            os.kill(pid, signal.SIGKILL)  # our child, not reaped yet: the pid is still its own
        if known:
            worker.pid = pid
            self._roster.publish(worker)
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
        worker.output.drain()
        if worker.gateway is not None:
            self._tell_end(worker, how)
        worker.pid = worker.gateway = None
        worker.asked = False
        if self._exit_event(worker, budget_left=True) is Event.ENDED:
            worker.last_exit = "stopped"
            self._roster.apply(worker, Event.ENDED)
        else:
            worker.last_exit = f"{worker.complaint}: {how}" if worker.complaint else how
            self._crashed(worker)
        self._after()

    def tell_leaving(self, worker: Worker) -> None:
        """The gateway had better move what it has."""
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
        now, settings = time.monotonic(), self._roster.desired.settings
        ran = now - worker.ready_ns / 1e9 if worker.ready_ns else 0.0
        worker.ready_ns = 0
        worker.crashes, delay = after_crash(
            worker.crashes,
            now_s=now,
            ran_s=ran,
            jitter=random.uniform(-1, 1),
            window_s=settings.restart_window_s,
            budget=settings.restart_budget,
        )
        event = self._exit_event(worker, budget_left=delay is not None)
        first = f"{worker.name} ended: {worker.last_exit}"
        if delay is None:
            note = "the restart budget is spent; `lbhost resume` tries again"
            self._roster.apply(worker, event, note, level="error", ended=first)
        else:
            note = f"next try in {delay:.2g} s" if delay else "started again at once"
            at_s = now + delay
            self._roster.apply(worker, event, note, level="warning", ended=first, retry_at_s=at_s)

    def _exit_event(self, worker: Worker, *, budget_left: bool) -> Event:
        want = self._roster.wanted(worker)
        shown = wanted(want) if want.home is not None else wanted(WorkerWanted(None, up=False))
        return lifecycle.on_exit(worker.state, shown, budget_left=budget_left)
