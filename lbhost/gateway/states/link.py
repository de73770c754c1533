"""The gateway's end of a states link. Owns the socket; what the messages mean is plane.py's."""

from __future__ import annotations

import socket
from collections.abc import Callable

from lbhost import log, state_link
from lbhost.packet_link import PacketLink


class StatesLink(PacketLink[tuple[state_link.FromWorker, int | None]]):
    """To one process of one worker. Raises OSError if the descriptor is no socket."""

    def __init__(
        self, fd: int, on_message: Callable[[state_link.FromWorker, int | None], None]
    ) -> None:
        super().__init__(
            socket.socket(fileno=fd),
            state_link.receive_in_gateway,
            lambda packet: on_message(*packet),
            lambda: None,
            lambda error: log.get().error("states link broken", reason=str(error)),
        )

    def send(self, number: int, fd: int) -> bool:
        """Send a state; False if the worker cannot take it now."""
        try:
            return self._open and state_link.send(self._socket, state_link.State(number), fd)
        except ConnectionError:
            return False  # its end is about to be read
