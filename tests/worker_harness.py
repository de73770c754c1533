"""A real template and real workers for tests: this process plays supervisor and gateway."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import msgspec

from lbhost import control, wire
from lbhost.board import Board, ProgressRow
from lbhost.config import Settings
from lbhost.linux import become_subreaper
from lbhost.model import resolve
from lbhost.placement.placement import Placement
from lbhost.purpose import GENERATES, Purpose
from lbhost.supervisor.launcher import environment, with_huge_pages
from lbhost.weights import FilePart

DEADLINE_S = 60.0


def receive(link: socket.socket) -> control.Control | None:
    """The next control message within the deadline, None at end of file."""
    assert select.select([link], [], [], DEADLINE_S)[0], "no control message came"
    packet = control.receive(link)
    return packet[0] if packet else None


class Answer(msgspec.Struct):
    """What one request produced."""

    text: str = ""
    tokens: list[int] = []
    finish: wire.Finish | None = None


class Worker:
    """A forked worker, its control link and one data link."""

    def __init__(self, board: Board, number: int, link: socket.socket, pid: int) -> None:
        self.board = board
        self.number = number
        self.control = link
        self.pid = pid
        self.data = self.new_link()
        self._frames = wire.Frames()
        self.answers: dict[int, Answer] = {}
        self.vectors: dict[int, wire.Vectors] = {}

    def new_link(self) -> socket.socket:
        """Hand over one end of a new data link, return the other."""
        ours, theirs = socket.socketpair()
        control.send(self.control, control.Link(self.number, 1), [theirs.fileno()])
        theirs.close()
        return ours

    def send(self, message: wire.ToWorker) -> None:
        self.data.sendall(wire.encode(message))

    def read(self) -> list[wire.Delta]:
        """Wait for bytes; the deltas they complete, which are added to `answers` too."""
        assert select.select([self.data], [], [], DEADLINE_S)[0], "the worker sent nothing"
        deltas: list[wire.Delta] = []
        for body in self._frames.feed(self.data.recv(1 << 20)):
            message = wire.decode_from_worker(body)
            if isinstance(message, wire.Vectors):
                self.vectors[message.request] = message
            else:
                deltas.extend(message.deltas)
        for delta in deltas:
            answer = self.answers.setdefault(delta.request, Answer())
            answer.text += delta.text
            answer.tokens.extend(delta.tokens)
            answer.finish = delta.finish
        return deltas

    def answer(self, request: int) -> Answer:
        """Read until a request has ended."""
        while True:
            done = self.answers.get(request)
            if done is not None and done.finish is not None:
                return done
            self.read()

    def vectors_of(self, request: int) -> wire.Vectors:
        """Read until a request's vectors have come."""
        while request not in self.vectors:
            self.read()
        return self.vectors[request]

    def row(self) -> ProgressRow:
        row = self.board.progress.read(self.number)
        assert row is not None
        return row

    def wait_gone(self) -> int:
        """Reap the worker; its exit code, negative for a signal."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        raise AssertionError("the worker is still there")

    def close(self) -> None:
        """Kill and reap the worker, if need be, and close the links."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.control.close()
        self.data.close()


class Template:
    """`python -m lbhost.worker.fork_server`, loaded."""

    def __init__(
        self,
        model_path: str,
        settings: Settings,
        n_ctx: int,
        *,
        node: int | None = None,
        weights: tuple[FilePart, ...] = (),
        purpose: Purpose = GENERATES,
    ) -> None:
        become_subreaper()
        self.board = Board.create(workers=4, cores=1, gpus=0)
        self.control, theirs = control.socketpair()
        command = [sys.executable, "-m", "lbhost.worker.fork_server"]
        self.process = subprocess.Popen(
            [*command, "--control-fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=with_huge_pages(environment(os.environ)),
        )
        theirs.close()
        configure = control.Configure(
            settings, model_path, "test", n_ctx, node=node, weights=weights, purpose=purpose
        )
        control.send(self.control, configure, [self.board.fd])
        self.first = receive(self.control)

    def fork(self, number: int = 0) -> Worker:
        """A worker that is READY."""
        ours, theirs = control.socketpair()
        cpu = min(os.sched_getaffinity(0))
        placement = Placement(cpus=(cpu,), threads=1)
        control.send(self.control, control.Fork(number, 1, placement), [theirs.fileno()])
        theirs.close()
        hello, ready = receive(ours), receive(ours)
        assert isinstance(hello, control.Hello)
        assert isinstance(ready, control.Ready), ready
        return Worker(self.board, number, ours, hello.pid)

    def close(self) -> None:
        self.control.close()
        self.process.wait(DEADLINE_S)
        self.board.close()
        del self.board  # and with it the mapping, which holds a descriptor too


@contextlib.contextmanager
def template(
    settings: Settings | None = None,
    *,
    n_ctx: int = 512,
    model_path: str | None = None,
    node: int | None = None,
    weights: tuple[FilePart, ...] = (),
    purpose: Purpose = GENERATES,
) -> Iterator[Template]:
    """A template that is gone afterwards."""
    made = Template(
        model_path or resolve("starter").path,
        settings or Settings(),
        n_ctx,
        node=node,
        weights=weights,
        purpose=purpose,
    )
    try:
        yield made
    finally:
        made.close()
