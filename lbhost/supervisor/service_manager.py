"""What the service manager (systemd) is told: ready, stopping, alive. The sd_notify protocol.

A datagram of `NAME=value` lines to the unix socket in $NOTIFY_SOCKET. Without one nothing is
said. Never waits and never fails: who does not listen misses it.
"""

from __future__ import annotations

import contextlib
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

    def ready(self, status: str) -> None:
        """Requests are answered from now on."""
        self._tell(f"READY=1\nSTATUS={status}")

    def stopping(self, limit_s: float) -> None:
        """The end has begun and takes at most so long, whatever TimeoutStopSec= says."""
        self._tell(
            "STOPPING=1\nSTATUS=running requests may finish\n"
            f"EXTEND_TIMEOUT_USEC={round(limit_s * 1e6)}"
        )

    def alive(self) -> None:
        """The loop goes round. Said every tick, which is far more often than it is asked for."""
        if self._watched:
            self._tell("WATCHDOG=1")

    def close(self) -> None:
        """Nothing is said after that."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, message: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # nobody listens, or too slowly
                self._socket.sendto(
                    message.encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address
                )
