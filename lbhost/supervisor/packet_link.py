"""One end of a SEQPACKET link as a loop sees it: never blocks, says when it ends.

Owns this end of the socketpair and the descriptors that come with packets. What a packet says is
told by the function that reads it; see control_link.py and succession.py.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Generic, TypeVar

from lbhost import log
from lbhost.errors import WireError

M = TypeVar("M")


class PacketLink(Generic[M]):
    """Reads from now on, in the running loop."""

    def __init__(
        self,
        end: socket.socket,
        receive: Callable[[socket.socket], tuple[M, list[int]] | None],
        on_message: Callable[[M], None],
        on_end: Callable[[], None],
        broken: str,
    ) -> None:
        """
        Args:
            receive: the next message and its descriptors, None at end of file; raises
                BlockingIOError where there is nothing yet, WireError or OSError.
            on_message: gets each message; its descriptors are closed, nobody sends any this way.
            on_end: is called once, at the end of file or after what `receive` raises.
            broken: what the log says in the latter case.
        """
        end.setblocking(False)
        self._socket = end
        self._receive = receive
        self._on_message = on_message
        self._on_end = on_end
        self._broken = broken
        self._open = True
        asyncio.get_running_loop().add_reader(end.fileno(), self._readable)

    def fileno(self) -> int:
        """Of our end; -1 once that is closed."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Take what a process that has ended left in the link: its last words."""
        self._readable()

    def close(self) -> None:
        """Close our end, which tells the other side to end. No callback comes after that."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()

    def _readable(self) -> None:
        while self._open:
            try:
                packet = self._receive(self._socket)
            except BlockingIOError:
                return
            except (OSError, WireError) as error:
                log.get().error(self._broken, error=str(error))
                packet = None
            if packet is None:
                self.close()
                self._on_end()
                return
            message, fds = packet
            for fd in fds:
                os.close(fd)
            self._on_message(message)
