"""A process that always comes back: the gateway or the fork server.

Owns one child, its control link and its backoff, which never ends: without these two there is
no server, so lbhost keeps trying and says so. Knows nothing of what the child does.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from lbhost import control
from lbhost.linux import cpu_s, runnable, waited_s
from lbhost.status import ProcessStatus
from lbhost.supervisor import liveness
from lbhost.supervisor.budget import Restarts, after_crash
from lbhost.supervisor.children import Children
from lbhost.supervisor.control_link import ControlLink
from lbhost.supervisor.events import EventLog

NEVER_READY_LIMIT = 3
"""Starts that may fail before the process was ever ready; then the server cannot start."""


class Owner(Protocol):
    """What a service tells its supervisor."""

    def service_message(self, service: Service, message: control.Control) -> None:
        """A control message other than Failed."""

    def service_down(self, service: Service) -> None:
        """Its process is gone, however it went."""

    def service_hopeless(self, service: Service, why: str) -> bool:
        """It cannot start at all. Only said before it was ever ready.

        Returns:
            Whether that is the end of everything; else it is tried again like after any crash.
        """


class Service:
    """One such process. `state` is starting, ready, stopping, backoff or stopped."""

    def __init__(
        self,
        name: str,
        module: str,
        env: Mapping[str, str],
        first: Callable[[], tuple[control.Control, Sequence[int]]],
        owner: Owner,
        children: Children,
        events: EventLog,
        window_s: float,
        label: str | None = None,
    ) -> None:
        self.name = name
        """The kind of its events."""
        self.label = label or name
        """What it is called in them."""
        self.state = "stopped"
        self.pid: int | None = None
        self.last_exit: str | None = None
        self.restarts = 0
        self.health_kills = 0
        self._module = module
        self._env = env
        self._first = first
        self._owner = owner
        self._children = children
        self._events = events
        self.window_s = window_s
        self._link: ControlLink | None = None
        self._past = Restarts()
        self._ready_at_s: float | None = None
        self._retired = False
        """It was told to end when it is through: that it does is no crash."""
        self._ever_ready = False
        self._complaint: str | None = None
        self._watch: liveness.Watch | None = None
        self._retry: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Make the process; what goes wrong ends in backoff like any crash."""
        self._retry = None
        self.state = "starting"
        self._ready_at_s = self._watch = self._complaint = None
        try:
            ours, theirs = control.socketpair()
        except OSError as error:
            self._crashed(f"cannot be started: {error.strerror or error}")
            return
        with theirs:
            try:
                self.pid = self._children.spawn(
                    self._module, theirs.fileno(), self._env, self._exited
                )
            except OSError as error:
                ours.close()
                self._crashed(f"cannot be started: {error.strerror or error}")
                return
        self._link = ControlLink(ours, self._message, self._link_ended)
        if not self._link.send(*self._first()):
            self.kill()  # it would wait for that for ever

    def send(self, message: control.Control, fds: Sequence[int] = ()) -> bool:
        """Send it a message; False if it is not there to take it."""
        return self._link is not None and self._link.send(message, fds)

    def retire(self, message: control.Control, fds: Sequence[int] = ()) -> None:
        """Tell it to end when it is through with what it has. Who is beyond hearing that is on its
        way down, and not started again either."""
        self._retired = True
        self.send(message, fds)

    def ready(self) -> None:
        """It has said that it can work. Too late if it was told to end meanwhile."""
        if self.state != "starting":
            return
        self.state = "ready"
        self._ever_ready = True
        self._ready_at_s = time.monotonic()
        self._watch = None
        self._events.add("info", self.name, f"{self.label} ready (pid {self.pid})")

    def stop(self, grace_s: float = 0.0) -> None:
        """Ask it to end; it is not started again."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self.pid is None:
            self.state = "stopped"
            return
        self.state = "stopping"
        self.send(control.Stop(grace_s))

    def close(self) -> None:
        """Let go of its link and of the next try. Its process is gone, or nobody waits for it."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._link is not None:
            self._link.close()
            self._link = None

    def kill(self) -> None:
        """SIGKILL: a stopped or wedged process takes nothing else."""
        if self.pid is not None:
            self._children.signal(self.pid, signal.SIGKILL)

    def look(
        self, now_s: float, progress: tuple[int, ...], budget: liveness.Budget, *, busy: bool
    ) -> None:
        """Judge its progress; kill it if there is none."""
        used = None if self.pid is None else cpu_s(self.pid)
        if used is None:
            self._watch = None
            return
        assert self.pid is not None
        waited = waited_s(self.pid) if busy else None
        wanting = busy and runnable(self.pid)
        look = liveness.Look(now_s, busy, progress, used, waited, wanting)
        self._watch, verdict = liveness.judge(self._watch, look, budget)
        if verdict is not liveness.Verdict.FINE:
            self._watch = None
            self.health_kills += 1
            self.kill()
            self._events.add("error", "health_kill", f"{self.label} is {verdict.value}: killing it")

    def forget_looks(self) -> None:
        """Nobody has been looking for a while: judge afresh."""
        self._watch = None

    def status(self) -> ProcessStatus:
        """For the admin API."""
        return ProcessStatus(
            state=self.state, pid=self.pid, restarts=self.restarts, last_exit=self.last_exit
        )

    def _message(self, message: control.Control) -> None:
        if isinstance(message, control.Failed):
            self._complaint = message.message
        else:
            self._owner.service_message(self, message)

    def _link_ended(self) -> None:
        """It is ending, or closed its link without that: then it is of no use any more."""
        pid = self.pid
        if pid is not None:
            asyncio.get_running_loop().call_later(
                1.0, lambda: self.kill() if self.pid == pid else None
            )

    def _exited(self, how: str, well: bool) -> None:
        if self._link is not None:
            self._link.drain()
            self._link.close()
            self._link = None
        self.pid = None
        self.last_exit = self._complaint or how
        if self.state == "stopping" or (self._retired and well):
            self.state = "stopped"
            self._owner.service_down(self)
            return
        self._owner.service_down(self)
        self._crashed(self._complaint or how)

    def _crashed(self, why: str) -> None:
        if self._retired:  # another one does its work
            self.state, self.last_exit = "stopped", why
            self._events.add("error", self.name, f"{self.label} ended: {why}")
            return
        now = time.monotonic()
        ran = 0.0 if self._ready_at_s is None else now - self._ready_at_s
        self._past, delay = after_crash(
            self._past,
            now_s=now,
            ran_s=ran,
            jitter=random.uniform(-1, 1),
            window_s=self.window_s,
            budget=None,
        )
        assert delay is not None, "a budget without end is never spent"
        self.state = "backoff"
        self.last_exit = why
        hopeless = self._complaint is not None or self._past.streak >= NEVER_READY_LIMIT
        if not self._ever_ready and hopeless and self._owner.service_hopeless(self, why):
            return
        self.restarts += 1
        self._retry = asyncio.get_running_loop().call_later(delay, self.start)
        when = f"in {delay:.2g} s" if delay else "at once"
        self._events.add("error", self.name, f"{self.label} ended: {why}; starting it again {when}")
