"""A new server that is to take over from this one: started, given the sockets, waited for.

Owns the new process until it serves; whatever goes wrong before that ends it, and this server goes
on as if nothing had been asked. Afterwards it belongs to the service manager, or this process stays
as its anchor: see supervisor.py.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping, Sequence

from lbhost import control
from lbhost.errors import ConflictError
from lbhost.supervisor.children import Children
from lbhost.supervisor.succession import (
    LINK_VARIABLE,
    Done,
    Inherit,
    Line,
    Message,
    Next,
    Refused,
    Serving,
    TakeOver,
    TookOver,
)

READY_LIMIT_S = 300.0
"""A large model comes from a slow disk, and a shape may have to be measured."""
TAKE_LIMIT_S = 10.0
COMMAND = (sys.executable, "-P", "-m", "lbhost", "serve")
"""What is installed, whatever lies in the folder that this one was started in."""


class Successor:
    """See the module."""

    def __init__(self, children: Children, on_end: Callable[[], None]) -> None:
        """`on_end` is called when a server that had taken over has ended."""
        self.pid: int | None = None
        """Of the newest server that came of this one."""
        self.how = ""
        """How that ended, and…"""
        self.well = False
        """…whether it did so as it should."""
        self.serves = False
        self._children = children
        self._on_end = on_end
        self._line: Line | None = None
        self._changed = asyncio.Event()
        self._refusal: str | None = None
        self._took = False
        self._next: int | None = None

    async def bring_up(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        given: Inherit,
        fds: Sequence[int],
    ) -> None:
        """Start it and wait until it serves.

        Args:
            arguments: of `serve`.
            fds: what goes with `given`.

        Raises:
            ConflictError: it did not; it is gone.
        """
        try:
            self._start(arguments, environ, given, fds)
            async with asyncio.timeout(READY_LIMIT_S):
                while not self.serves and self._refusal is None:
                    await self._wait()
        except TimeoutError:
            self._refusal = f"it did not serve within {READY_LIMIT_S:g} s"
        except OSError as error:
            raise ConflictError(f"no new server: {error.strerror}; this one goes on") from error
        if self._refusal is not None:
            raise ConflictError(f"the new server does not start: {self._refusal}; this one goes on")

    async def hand_over(self, message: TakeOver) -> None:
        """Everything is its own from now on; returns once it can be administered."""
        assert self.pid is not None
        assert self._line is not None
        self._children.disown(self.pid)
        self._line.send(message)
        try:
            async with asyncio.timeout(TAKE_LIMIT_S):
                while not self._took and self.pid is not None:
                    await self._wait()
        except TimeoutError:
            return  # it serves; somebody will look at what is wrong with its admin socket

    def abandon(self) -> None:
        """End it: it is not wanted any more, or does not come up."""
        if self._refusal is None:
            self._refusal = "it is not wanted any more"
        if self.pid is not None:
            self._children.signal(self.pid, signal.SIGKILL)
        self.close()
        self._notify()

    def done(self) -> None:
        """This server has ended what it had."""
        if self._line is not None:
            self._line.send(Done())

    async def ended(self) -> None:
        """Return once the newest server that came of this one has ended."""
        while self.pid is not None:
            await self._wait()

    def signal(self, number: int) -> None:
        """Pass a signal on."""
        if self.pid is not None:
            self._children.signal(self.pid, signal.Signals(number))

    def close(self) -> None:
        """Let go of the line."""
        if self._line is not None:
            self._line.close()

    def _start(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        given: Inherit,
        fds: Sequence[int],
    ) -> None:
        """Raises OSError."""
        ours, theirs = control.socketpair()
        with theirs:
            env = {k: v for k, v in environ.items() if k != "WATCHDOG_PID"}
            env[LINK_VARIABLE] = str(theirs.fileno())
            try:
                self.pid = self._children.spawn_server(
                    [*COMMAND, *arguments], theirs.fileno(), env, self._ended
                )
            except OSError:
                ours.close()
                raise
        self._line = Line(ours, self._message)
        self._line.send(given, fds)

    def _message(self, message: Message) -> None:
        match message:
            case Serving():
                self.serves = True
            case Refused(text):
                self._refusal = text
            case TookOver():
                self._took = True
            case Next(pid):
                self._next = pid
        self._notify()

    def _ended(self, how: str, well: bool) -> None:
        if self._line is not None:
            self._line.drain()
        self.how, self.well = how, well
        self.pid = None
        if self._next is not None:  # however it ended: the server is another one by now
            self._follow(self._next)
        elif not self.serves and self._refusal is None:
            self._refusal = f"it ended ({how}); its log says why"
        self._notify()
        if self.pid is None and self.serves:
            self._on_end()

    def _follow(self, pid: int) -> None:
        """Its own successor is our child now: we are the subreaper above both."""
        self._next = None
        try:
            known = self._children.watch(pid, self._ended)
        except OSError as error:
            self.how = f"pid {pid} cannot be watched: {error.strerror}"
            return
        if known:
            self.pid = pid
            self._children.disown(pid)

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
