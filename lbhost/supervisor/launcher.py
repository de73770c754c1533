"""How a worker's process is made, and how it is connected to the gateway.

A CPU worker is forked by the fork server; a GPU worker is a process of its own, since CUDA does
not survive a fork. After Hello they are alike. Decides nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from signal import SIGKILL

from lbhost import control, log
from lbhost.placement.placement import Placement
from lbhost.sandbox.environment import scrubbed
from lbhost.supervisor.children import Children, Exited
from lbhost.supervisor.control_link import ControlLink
from lbhost.supervisor.fork_servers import ForkServers
from lbhost.supervisor.service import Service
from lbhost.supervisor.worker import Worker

WORKER_MODULE = "lbhost.worker"

First = Callable[[int | None], tuple[control.Configure, Sequence[int]]]
"""The first message to a child, for a NUMA node, and its descriptors."""


_SPINS = "1000"
"""How often a helper thread looks before it sleeps: some microseconds, so that it soon leaves a
lent core. 1,000 to 100,000 are equally fast, 0 takes away what a second thread gains."""


def environment(environ: Mapping[str, str], gpu_uuid: str | None = None) -> dict[str, str]:
    """A child's environment: no secret, only its own GPU visible, whose driver does not survive a
    fork, and no thread pools at import (llama.cpp asks for its threads by number, whatever these
    say)."""
    return {
        **scrubbed(environ),
        "CUDA_VISIBLE_DEVICES": gpu_uuid or "",
        "OMP_NUM_THREADS": "1",
        "GOMP_SPINCOUNT": environ.get("GOMP_SPINCOUNT", _SPINS),
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def with_huge_pages(environ: Mapping[str, str]) -> dict[str, str]:
    """The same for a process that holds weights or a KV cache: malloc asks for huge pages.

    llama.cpp clears the whole KV cache at start; a context of 4 x 4096 tokens of the starter
    model then stands after 100 ms of CPU time instead of 250 (measured, THP on `madvise`).
    """
    wanted = "glibc.malloc.hugetlb=1"
    given = environ.get("GLIBC_TUNABLES")
    if given and "glibc.malloc.hugetlb" in given:
        return dict(environ)
    return {**environ, "GLIBC_TUNABLES": f"{given}:{wanted}" if given else wanted}


class Launcher:
    """Makes worker processes and their links."""

    def __init__(
        self,
        fork_servers: ForkServers,
        gateway: Service,
        children: Children,
        first: First,
        model: int = 0,
    ) -> None:
        """
        Args:
            model: the number of the model that its workers compute.
        """
        self.fork_servers = fork_servers
        self.gateway = gateway
        self._children = children
        self._first = first
        self._model = model

    def can_launch(self, place: Placement) -> bool:
        """Whether what a worker is made from is there."""
        return place.gpu is not None or place.node in self.fork_servers.ready()

    def launch(
        self,
        worker: Worker,
        on_message: Callable[[control.Control], None],
        on_end: Callable[[], None],
        on_exit: Exited,
    ) -> bool:
        """Ask for the process of this epoch; its link then tells the rest.

        Returns:
            False if the fork server does not take it now: to be tried again.

        Raises:
            OSError: no process could be made.
        """
        settings = self._first(None)[0].settings  # newer than the fork server may be
        fork = control.Fork(worker.id, worker.epoch, worker.place, settings, relayed=True)
        ours, theirs = control.socketpair()
        try:
            output = worker.output.open(worker.epoch)
        except OSError:
            ours.close()
            theirs.close()
            raise
        with theirs, output:
            if worker.place.gpu is None:
                fork_server = self.fork_servers.of(worker.place.node)
                if fork_server is None or not fork_server.send(
                    fork, [theirs.fileno(), output.fileno()]
                ):
                    ours.close()
                    return False
            else:
                env = with_huge_pages(environment(os.environ, worker.place.gpu_uuid))
                try:
                    worker.pid = self._children.spawn(
                        WORKER_MODULE, theirs.fileno(), env, on_exit, output.fileno()
                    )
                except OSError:
                    ours.close()
                    raise
        worker.link = ControlLink(ours, on_message, on_end)
        worker.asked = True
        if worker.pid is not None:
            sent = worker.link.send(*self._first(None)) and worker.link.send(fork)
            if not sent:  # it would wait for its orders for ever; its end is a crash like any other
                self._children.signal(worker.pid, SIGKILL)
        return True

    def connect(self, worker: Worker) -> bool:
        """New links between the worker and the gateway: for data and for states.

        Returns:
            False if the gateway is not there, one of them takes no message now, or no socket
            could be made: to be tried again.
        """
        if worker.link is None or self.gateway.state != "ready":
            return False
        with contextlib.ExitStack() as open_ends:
            fds: list[list[int]] = [[], []]
            try:
                for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):  # data, states
                    for end, side in zip(socket.socketpair(socket.AF_UNIX, kind), fds, strict=True):
                        side.append(open_ends.enter_context(end).fileno())
            except OSError as error:
                log.get().warning("no data link", worker=worker.id, error=str(error))
                return False
            message = control.Link(worker.id, worker.epoch, self._model)
            return worker.link.send(message, fds[0]) and self.gateway.send(message, fds[1])
