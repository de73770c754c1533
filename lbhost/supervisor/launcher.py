"""How a worker's process is made, and how it is connected to the gateway.

A CPU worker is forked by the fork server; a GPU worker is a process of its own, since CUDA does
not survive a fork. After Hello they are alike. Decides nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence

from lbhost import control
from lbhost.supervisor.children import Children, Exited
from lbhost.supervisor.control_link import ControlLink
from lbhost.supervisor.service import Service
from lbhost.supervisor.worker import Worker

WORKER_MODULE = "lbhost.worker"

First = Callable[[], tuple[control.Configure, Sequence[int]]]


def environment(environ: Mapping[str, str], gpu_uuid: str | None = None) -> dict[str, str]:
    """A child's environment: only its own GPU visible, whose driver does not survive a fork, and
    no thread pools at import (llama.cpp asks for its threads by number, whatever these say). The
    API key is the gateway's alone, which gets it on its link."""
    kept = {name: value for name, value in environ.items() if name != "LBHOST_API_KEY"}
    return {
        **kept,
        "CUDA_VISIBLE_DEVICES": gpu_uuid or "",
        "OMP_NUM_THREADS": "1",
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
        self, fork_server: Service | None, gateway: Service, children: Children, first: First
    ) -> None:
        self.fork_server = fork_server
        self.gateway = gateway
        self._children = children
        self._first = first

    def can_launch(self, worker: Worker) -> bool:
        """Whether what the worker is made from is there."""
        if worker.placement.gpu is not None:
            return True
        return self.fork_server is not None and self.fork_server.state == "ready"

    def launch(
        self,
        worker: Worker,
        on_message: Callable[[control.Control], None],
        on_end: Callable[[], None],
        on_exit: Exited,
    ) -> bool:
        """Ask for the process of this epoch; its link then tells the rest.

        Returns:
            False if it could not even be asked for.

        Raises:
            OSError: no process could be made.
        """
        fork = control.Fork(worker.id, worker.epoch, worker.placement)
        ours, theirs = control.socketpair()
        with theirs:
            if worker.placement.gpu is None:
                assert self.fork_server is not None, "CPU workers have a fork server"
                if not self.fork_server.send(fork, [theirs.fileno()]):
                    ours.close()
                    return False
            else:
                env = with_huge_pages(environment(os.environ, worker.placement.gpu_uuid))
                try:
                    worker.pid = self._children.spawn(WORKER_MODULE, theirs.fileno(), env, on_exit)
                except OSError:
                    ours.close()
                    raise
        worker.link = ControlLink(ours, on_message, on_end)
        worker.forked = True
        if worker.placement.gpu is not None:
            worker.link.send(*self._first())
            worker.link.send(fork)
        return True

    def connect(self, worker: Worker) -> None:
        """A new data link between the worker and the gateway, if the gateway is there."""
        if worker.link is None or self.gateway.state != "ready":
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            message = control.Link(worker.id, worker.epoch)
            if worker.link.send(message, [ours.fileno()]):
                self.gateway.send(message, [theirs.fileno()])
