"""How one server takes over from another: the new one starts beside the old one, and then it is
the server.

Owns the lines to the server before this one and to the one after it. The old one goes on until
the new one serves: what fails before that ends the new one and nothing else. From then on both
have the listening socket, the new one alone accepts, and the old one ends what it has begun. Where
no service manager is told of the new process, the first one stays as its anchor: who started it
waits for its pid and signals it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable

from lbhost import control
from lbhost.errors import ConflictError
from lbhost.linux import die_with_parent, live_without_parent
from lbhost.source import Source
from lbhost.supervisor.children import Children
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.runtime import RuntimeDir
from lbhost.supervisor.service_manager import ServiceManager
from lbhost.supervisor.startup import Prepared
from lbhost.supervisor.succession import (
    Context,
    Done,
    Inherit,
    Inheritance,
    Line,
    Message,
    Next,
    Refused,
    Serving,
    TakeOver,
    TookOver,
)
from lbhost.supervisor.successor import Successor


class Predecessor:
    """The server before this one."""

    def __init__(
        self,
        link: socket.socket,
        take: Callable[[tuple[Context, ...]], None],
        lost: Callable[[], None],
        anchor: socket.socket | None = None,
    ) -> None:
        """
        Args:
            take: called when everything is ours, with how the models were served last.
            lost: called if it ends before that.
            anchor: the line to the process that stays, where that is not the server before us.
        """
        self.anchor = 0
        """See TakeOver."""
        self.over = asyncio.Event()
        """Its requests have ended."""
        self._take = take
        self._lost = lost
        self.taken = False
        """Whether everything is ours."""
        self._line = Line(link, self._message, self._end)
        self._to_anchor: Line | None = None
        """The server before us had it from the one before, and so on: it outlives them."""
        if anchor is not None:
            self._to_anchor = Line(anchor, lambda _: None, self._anchor_gone)

    def serving(self) -> None:
        """Requests are answered here."""
        self._line.send(Serving(os.getpid()))

    def took_over(self) -> None:
        """The admin socket is ours."""
        self._line.send(TookOver())

    def refuse(self, message: str) -> None:
        """We cannot start."""
        self._line.send(Refused(message))

    def followed_by(self, pid: int) -> None:
        """Another one has taken over from us: tell the process that stays, whom it stands for."""
        (self._to_anchor or self._line).send(Next(pid))

    def line_to_anchor(self) -> tuple[int, ...]:
        """The descriptor that the server after us needs for that; none where nobody stays."""
        fd = (self._to_anchor or self._line).fileno()
        return (fd,) if self.anchor and fd >= 0 else ()

    def close(self) -> None:
        """Let go of the lines."""
        self._line.close()
        if self._to_anchor is not None:
            self._to_anchor.close()

    def _message(self, message: Message) -> None:
        match message:
            case TakeOver(anchor, contexts):
                self.taken, self.anchor = True, anchor
                self._hold_on()
                self._take(contexts)
            case Done():
                self.over.set()

    def _end(self) -> None:
        self.over.set()
        if self.taken:
            self._hold_on()
        else:
            self._lost()

    def _anchor_gone(self) -> None:
        """It stays as long as we do, so that it was killed: what die_with_parent does where it is
        our parent, and what it cannot do while the server before us still is."""
        if self.taken:
            signal.raise_signal(signal.SIGKILL)

    def _hold_on(self) -> None:
        """Die with the anchor once that is our parent, and with nobody else."""
        live_without_parent()
        if self.anchor and os.getppid() == self.anchor:
            die_with_parent()


class Handover:
    """See the module."""

    def __init__(
        self,
        prepared: Prepared,
        listener: socket.socket,
        runtime: RuntimeDir,
        endpoint: str,
        children: Children,
        manager: ServiceManager,
        events: EventLog,
        contexts: Callable[[], tuple[Context, ...]],
        let_go: Callable[[int], None],
        wake: Callable[[], None],
    ) -> None:
        """
        Args:
            contexts: how the models are served now.
            let_go: called when another server serves: this one only ends what it has. Gets the
                line on which its gateway gives its KV states.
            wake: called when the loop has to look at this again.
        """
        self.given = False
        """Whether another server has taken over; this one only ends what it has."""
        self.settled = False
        """Whether that one can be administered, too."""
        self.predecessor: Predecessor | None = None
        self._prepared = prepared
        self._listener = listener
        self._runtime = runtime
        self._endpoint = endpoint
        self._children = children
        self._manager = manager
        self._events = events
        self._contexts = contexts
        self._let_go = let_go
        self._wake = wake
        self._successor: Successor | None = None

    def begin(
        self,
        inheritance: Inheritance,
        take: Callable[[tuple[Context, ...]], None],
        lost: Callable[[], None],
    ) -> None:
        """This server is to take over. See Predecessor."""
        self.predecessor = Predecessor(inheritance.link, take, lost, inheritance.anchor)

    @property
    def waits(self) -> bool:
        """Whether nothing is ours yet."""
        return self.predecessor is not None and not self.predecessor.taken

    async def give(self, why: str, source: Source | None) -> str:
        """Start a new server as this one was started, and let it take over.

        Raises:
            ConflictError: it does not start, this one goes on; or one is taking over already.
        """
        if source is None:
            raise ConflictError("this server does not know how it was started: restart it")
        if self._successor is not None:
            raise ConflictError("a new server is starting already")
        successor = self._successor = Successor(self._children, self._wake)
        try:
            ours, theirs = control.socketpair()  # for the gateways' KV states
        except OSError as error:
            self._successor = None
            raise ConflictError(f"no new server: {error.strerror}; this one goes on") from error
        with ours:
            try:
                with theirs:
                    await self._bring_up(successor, why, source, theirs.fileno())
            except BaseException:
                self._successor = None
                successor.abandon()
                raise
            return await self._commit(successor, ours)

    async def _bring_up(self, successor: Successor, why: str, source: Source, states: int) -> None:
        """Raises ConflictError: it does not start."""
        before = self.predecessor
        if before is not None:
            await before.over.wait()  # three at a time would need three KV caches
        self._events.add("info", "handover", f"{why}: starting a new server beside this one")
        models = self._prepared.models
        given = Inherit(
            endpoint=self._endpoint,
            runtime_dir=str(self._runtime.path),
            model_path=models[0].file.path,
            n_ctx=models[0].n_ctx,
            contexts=self._contexts(),
        )
        to_anchor = () if before is None else before.line_to_anchor()
        fds = (self._listener.fileno(), self._runtime.folder, states, *to_anchor)
        await successor.bring_up(source.arguments(), os.environ, given, fds)

    async def _commit(self, successor: Successor, states: socket.socket) -> str:
        pid = successor.pid
        if pid is None:
            self._successor = None
            raise ConflictError("the new server ended as soon as it served; this one goes on")
        before = self.predecessor
        self._manager.hand_over(pid)
        self._runtime.hand_on()
        self.given = True
        message = TakeOver(self._anchor(), self._contexts())
        self._let_go(states.fileno())  # no operator is obeyed any more
        await successor.hand_over(message)
        if before is not None:
            before.followed_by(pid)
        self.settled = True
        self._wake()
        text = f"the server with pid {pid} has taken over"
        self._events.add("info", "handover", f"{text}; this one ends what it has begun")
        return text

    def _anchor(self) -> int:
        if self._manager.present:
            return 0
        before = self.predecessor
        return before.anchor if before is not None and before.anchor else os.getpid()

    def signal(self, number: int) -> None:
        """A signal is the newest server's, too."""
        if self._successor is not None and self._successor.serves:
            self._successor.signal(number)

    def give_up(self) -> None:
        """This server ends: one that is still starting does too."""
        if self._successor is not None and not self.given:
            self._successor.abandon()

    async def stand(self) -> str | None:
        """This server has ended what it had. As the anchor, stay until the newest one ends.

        Returns:
            How that ended, if not as it should.
        """
        successor = self._successor
        assert successor is not None, "somebody has taken over"
        successor.done()
        if self._anchor() != os.getpid():
            return None
        await successor.ended()
        return None if successor.well else successor.how

    def close(self, failure: str | None) -> None:
        """Let go of the lines.

        Args:
            failure: why this server could not start, if that is why.
        """
        if self._successor is not None:
            self._successor.close()
        if self.predecessor is not None:
            if failure is not None and not self.predecessor.taken:
                self.predecessor.refuse(failure)
            self.predecessor.close()
