"""One end of a SEQPACKET link as a loop reads it: never blocks, says when it ends.

Owns this end of the socketpair. What a packet is, the function that reads it says; see
message_link.py of the supervisor, link.py and heritage.py of the gateway's states.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Generic, TypeVar

from lbhost.errors import WireError

P = TypeVar("P")

AT_ONCE = 2048
"""Packets that are taken before others have their turn in the loop: several times what a socket
holds. Who sends without end, a process that was taken over, would keep it for ever else."""


class PacketLink(Generic[P]):
    """Reads from now on, in the running loop."""

    def __init__(
        self,
        end: socket.socket,
        receive: Callable[[socket.socket], P | None],
        on_packet: Callable[[P], None],
        on_end: Callable[[], None],
        on_broken: Callable[[Exception], None],
    ) -> None:
        """
        Args:
            receive: the next packet, None at end of file; raises BlockingIOError where there is
                nothing yet, WireError or OSError.
            on_packet: gets each packet, with the descriptors that came with it.
            on_end: is called once, at the end of file or after what `receive` raises.
            on_broken: is told of that first.
        """
        end.setblocking(False)
        self._socket = end
        self._receive = receive
        self._on_packet = on_packet
        self._on_end = on_end
        self._on_broken = on_broken
        self._open = True
        asyncio.get_running_loop().add_reader(end.fileno(), self.drain)

    def fileno(self) -> int:
        """Of our end; -1 once that is closed."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Take all that is there: also what a process that has ended left, its last words."""
        for _ in range(AT_ONCE):
            if not self._open:
                return
            try:
                packet = self._receive(self._socket)
            except BlockingIOError:
                return
            except (OSError, WireError) as error:
                self._on_broken(error)
                packet = None
            if packet is None:
                self.close()
                self._on_end()
                return
            self._on_packet(packet)

    def close(self) -> None:
        """Close our end, which tells the other side to end. No callback comes after that."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
