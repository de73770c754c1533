"""What the service manager (systemd) is told: ready, stopping, alive. The sd_notify protocol.

A datagram of `NAME=value` lines to the unix socket in $NOTIFY_SOCKET. Without one nothing is
said. Never waits and never fails: what its full queue does not take is said again with the next
sign of life, since a READY that is lost would be waited for for ever.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


class ServiceManager:
    """Our line to it. `close` in the end."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours = environ.get("WATCHDOG_PID") in {None, str(os.getpid())}
        self._watched = ours and environ.get("WATCHDOG_USEC", "0") != "0"
        self._unsaid = ""

    def ready(self, status: str) -> None:
        """Requests are answered from now on."""
        self._say(f"READY=1\nSTATUS={status}")

    @property
    def present(self) -> bool:
        """Whether there is one to be told."""
        return bool(self._address)

    def hand_over(self, pid: int) -> None:
        """Another process is the server from now on, and says the rest.

        Signs of life are taken from that one alone: ours would be a warning in the journal each.
        """
        self._watched = False
        self._say(f"MAINPID={pid}")

    def stopping(self, limit_s: float) -> None:
        """The end has begun and takes at most so long, whatever TimeoutStopSec= says."""
        self._say(
            "STOPPING=1\nSTATUS=running requests may finish\n"
            f"EXTEND_TIMEOUT_USEC={round(limit_s * 1e6)}"
        )

    def alive(self) -> None:
        """The loop goes round. Said every tick, which is far more often than it is asked for."""
        if self._unsaid:
            self._say(self._unsaid)
        if self._watched:
            self._tell("WATCHDOG=1")

    def close(self) -> None:
        """Nothing is said after that."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say(self, message: str) -> None:
        self._unsaid = "" if self._tell(message) else message

    def _tell(self, message: str) -> bool:
        """False if nobody listens, or too slowly."""
        if self._socket is None:
            return True
        flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
        try:
            self._socket.sendto(message.encode(), flags, self._address)
        except OSError:
            return False
        return True
