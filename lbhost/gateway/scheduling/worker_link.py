"""The gateway's end of a data link: frames out, Steps in, end of file told once.

Owns the socket. Knows nothing of requests; what a Step means is the dispatcher's matter.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import TypeAlias, cast

from lbhost import log, wire
from lbhost.errors import WireError

MAX_UNSENT = 64 * 1024 * 1024
"""Bytes that may wait for a worker that does not read. Slots bound it; this is the backstop."""


class WorkerLink(asyncio.Protocol):
    """A data link to one process of one worker."""

    def __init__(
        self,
        worker: int,
        epoch: int,
        on_step: Callable[[WorkerLink, wire.FromWorker], None],
        on_lost: Callable[[WorkerLink], None],
    ) -> None:
        self.worker = worker
        self.epoch = epoch
        self._on_step = on_step
        self._on_lost = on_lost
        self._frames = wire.Frames()
        self._transport: asyncio.WriteTransport | None = None

    @classmethod
    async def open(
        cls,
        fd: int,
        worker: int,
        epoch: int,
        on_step: Callable[[WorkerLink, wire.FromWorker], None],
        on_lost: Callable[[WorkerLink], None],
    ) -> WorkerLink:
        """Take over the descriptor. Raises OSError if it is no stream socket."""
        link = cls(worker, epoch, on_step, on_lost)
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=sock)
        except BaseException:
            sock.close()
            raise
        return link

    @property
    def alive(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, frame: bytes) -> None:
        """Write or buffer a frame. A dead link swallows it: `on_lost` comes, or has come."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(frame)
        if transport.get_write_buffer_size() > MAX_UNSENT:
            transport.abort()
            log.get().error("worker does not read its link, dropping it", worker=self.worker)

    def close(self) -> None:
        """Drop the link; `on_lost` follows."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are what the name says, but inherit from nothing of asyncio's.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._frames.feed(data):
                self._on_step(self, wire.decode_from_worker(body))
        except WireError as error:
            self.close()
            log.get().error("worker broke the protocol", worker=self.worker, reason=error.message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._on_lost(self)


OpenLink: TypeAlias = Callable[
    [int, int, int, Callable[[WorkerLink, wire.FromWorker], None], Callable[[WorkerLink], None]],
    Awaitable[WorkerLink],
]
"""What WorkerLink.open is; the simulator's links lead to no process."""
