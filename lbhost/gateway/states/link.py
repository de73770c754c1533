"""The gateway's end of a states link. Owns the socket; what the messages mean is plane.py's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from lbhost import log, state_link
from lbhost.errors import WireError


class StatesLink:
    """To one process of one worker. Raises OSError if the descriptor is no socket."""

    def __init__(
        self, fd: int, on_message: Callable[[state_link.FromWorker, int | None], None]
    ) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._on_message = on_message
        self._open = True
        asyncio.get_running_loop().add_reader(fd, self.read)

    def send(self, number: int, fd: int) -> bool:
        """Send a state; False if the worker cannot take it now."""
        try:
            return self._open and state_link.send(self._socket, state_link.State(number), fd)
        except ConnectionError:
            return False  # its end is about to be read

    def read(self) -> None:
        """Take in all that has come."""
        while self._open:
            try:
                packet = state_link.receive_in_gateway(self._socket)
            except BlockingIOError:
                return
            except (OSError, WireError) as error:
                log.get().error("states link broken", reason=str(error))
                packet = None
            if packet is None:
                self.close()
                return
            self._on_message(*packet)

    def close(self) -> None:
        """No message comes after that."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
