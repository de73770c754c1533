"""Who may use the admin API: this user and root, but none of the server's own children.

The socket's mode (0600, in a folder of mode 0700) keeps others out already; the kernel's word on
who has connected holds where a mode was changed. A worker or helper that has been taken over is
this user's too: it must not get to the commands by a socket that it can reach.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import Any, NamedTuple

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lbhost import log
from lbhost.errors import ForbiddenError
from lbhost.linux import parent

_MOST_ANCESTORS = 64

UNFINISHED_S = 30.0
"""A request that has not come whole within this never will."""


class Peer(NamedTuple):
    """Who is at the other end of a unix socket."""

    pid: int
    """0: in a PID namespace that is not ours."""
    uid: int


def peer_of(connection: socket.socket) -> Peer:
    """Raises OSError."""
    pid, uid, _gid = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    )
    return Peer(pid, uid)


def may_command(peer: Peer) -> bool:
    """Whether this process takes orders from it."""
    return peer.uid in (os.geteuid(), 0) and not is_ours(peer.pid)


def is_ours(pid: int) -> bool:
    """Whether we have made it, or what made it. We are the subreaper: nobody gets away.

    Who has ended may have been ours: its connection lives on in whoever else has it.
    """
    ours, above = os.getpid(), pid
    for _ in range(_MOST_ANCESTORS):
        found = parent(above)
        if found is None and above == pid != 0:
            return True
        above = found or 0
        if above == ours:
            return True
        if above <= 1:
            return False
    return True


class PeerProtocol(HttpToolsProtocol):
    """uvicorn's protocol; whoever may not is told so, whatever it asks. Who does not end what it
    asks is hung up on: connections are few, and the operator's must be among them."""

    _refused = False
    _hang_up: asyncio.TimerHandle | None = None
    """While a request is to come, or to be completed."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._hang_up = self.loop.call_later(UNFINISHED_S, transport.abort)
        peer = peer_of(transport.get_extra_info("socket"))
        self._refused = not may_command(peer)
        if self._refused:
            log.get().warning("admin connection refused", pid=peer.pid, uid=peer.uid)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._hang_up is None:  # not the connection's first
            self._hang_up = self.loop.call_later(UNFINISHED_S, self.transport.abort)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._keep()

    def connection_lost(self, exc: Exception | None) -> None:
        self._keep()
        super().connection_lost(exc)

    def _keep(self) -> None:
        if self._hang_up is not None:
            self._hang_up.cancel()
            self._hang_up = None

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)
            return
        error = ForbiddenError("this socket is for the server's own user")
        body = msgspec.json.encode(error.body())
        head = (
            f"HTTP/1.1 {error.status} Forbidden\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
