"""The gateway's end of a link to a virtual worker: what is sent arrives at once."""

from __future__ import annotations

from collections.abc import Callable

from lbhost import wire
from lbhost.gateway.scheduling.worker_link import WorkerLink


class VirtualLink(WorkerLink):
    """See the module.

    Args:
        take: the worker's; it gets what is sent.
    """

    def __init__(
        self,
        worker: int,
        epoch: int,
        take: Callable[[wire.ToWorker], None],
        on_step: Callable[[WorkerLink, wire.FromWorker], None],
        on_lost: Callable[[WorkerLink], None],
    ) -> None:
        super().__init__(worker, epoch, on_step, on_lost)
        self._take = take
        self._open = True

    @property
    def alive(self) -> bool:
        return self._open

    def send(self, frame: bytes) -> None:
        if self._open:
            self._take(wire.decode_to_worker(frame[4:]))

    def deliver(self, step: wire.Step) -> None:
        self._on_step(self, step)

    def close(self) -> None:
        """End of file. The worker's end is told by nobody: it is gone, or all is over."""
        if self._open:
            self._open = False
            self._on_lost(self)
