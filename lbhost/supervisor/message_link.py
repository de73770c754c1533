"""A link on which the other side sends messages alone: descriptors go one way only."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Generic, TypeVar

from lbhost import log
from lbhost.packet_link import PacketLink

M = TypeVar("M")


class MessageLink(PacketLink[tuple[M, list[int]]], Generic[M]):
    """See packet_link.py. `on_message` gets each message; descriptors that come are closed.

    Args:
        broken: what the log says when the link cannot be read any further.
    """

    def __init__(
        self,
        end: socket.socket,
        receive: Callable[[socket.socket], tuple[M, list[int]] | None],
        on_message: Callable[[M], None],
        on_end: Callable[[], None],
        broken: str,
    ) -> None:
        def take(packet: tuple[M, list[int]]) -> None:
            message, fds = packet
            for fd in fds:
                os.close(fd)
            on_message(message)

        def tell(error: Exception) -> None:
            log.get().error(broken, error=str(error))

        super().__init__(end, receive, take, on_end, tell)
