"""One control link as the supervisor's loop sees it: never blocks, says when it ends.

Owns the supervisor's end of the socketpair and the descriptors that come with packets.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence

from lbhost import control, log
from lbhost.errors import WireError


class ControlLink:
    """The supervisor's end. `on_message` gets each packet, `on_end` is called once at its end."""

    def __init__(
        self,
        end: socket.socket,
        on_message: Callable[[control.Control], None],
        on_end: Callable[[], None],
    ) -> None:
        end.setblocking(False)
        self._socket = end
        self._on_message = on_message
        self._on_end = on_end
        self._open = True
        asyncio.get_running_loop().add_reader(end.fileno(), self._readable)

    def send(self, message: control.Control, fds: Sequence[int] = ()) -> bool:
        """Send a message; False if the other side is gone or so stuck that its link is full.

        Nothing else is done about it: the process's end or its lack of progress is noticed
        elsewhere.
        """
        if not self._open:
            return False
        try:
            control.send(self._socket, message, fds)
        except OSError as error:
            log.get().debug("control link", message=type(message).__name__, error=str(error))
            return False
        return True

    def drain(self) -> None:
        """Take what a process that has ended left in the link: its last words."""
        if self._open:
            self._readable()

    def close(self) -> None:
        """Close our end, which tells the child to end itself. No callback comes after that."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()

    def _readable(self) -> None:
        while self._open:
            try:
                packet = control.receive(self._socket)
            except BlockingIOError:
                return
            except (WireError, OSError) as error:
                log.get().error("control link broken", error=str(error))
                packet = None
            if packet is None:
                self.close()
                self._on_end()
                return
            message, fds = packet
            for fd in fds:
                os.close(fd)  # nobody sends descriptors up
            self._on_message(message)
