"""A worker's links to gateways: frames and KV states, in and out, never blocking.

Owns the sockets that the supervisor handed over. Knows nothing of what comes over them to
the engine.
"""

from __future__ import annotations

import os
import socket
from collections import deque

from lbhost import log, state_link, wire
from lbhost.errors import WireError

MAX_BACKLOG = 64 * 1024 * 1024
"""Bytes that may wait for a gateway which does not read; then its link is dropped."""

_READ = 256 * 1024


class DataLink:
    """One stream to a gateway. `closed` once it is of no use any more."""

    def __init__(self, number: int, connection: socket.socket) -> None:
        self.number = number
        connection.setblocking(False)
        self._socket = connection
        self._frames = wire.Frames()
        self._backlog: deque[memoryview] = deque()
        self._backlog_bytes = 0
        self.closed = False

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def backlogged(self) -> bool:
        """Whether bytes wait for the gateway to read."""
        return bool(self._backlog)

    def receive(self) -> list[wire.ToWorker]:
        """The messages that are there now. Sets `closed` at end of file or on a bad frame."""
        messages: list[wire.ToWorker] = []
        try:
            while True:
                data = self._socket.recv(_READ)
                if not data:
                    self.closed = True
                    break
                messages.extend(wire.decode_to_worker(body) for body in self._frames.feed(data))
                if len(data) < _READ:
                    break
        except BlockingIOError:
            return messages  # that was all
        except (ConnectionError, WireError):
            self.closed = True
        return messages

    def send(self, frame: bytes) -> None:
        """Send now what the socket takes, keep the rest for `flush`."""
        self._backlog.append(memoryview(frame))
        self._backlog_bytes += len(frame)
        self.flush()
        if self._backlog_bytes > MAX_BACKLOG:
            self.closed = True

    def flush(self) -> None:
        """Send what is waiting, as far as the socket takes it."""
        while self._backlog and not self.closed:
            try:
                sent = self._socket.send(self._backlog[0], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except ConnectionError:
                self.closed = True
                return
            self._backlog_bytes -= sent
            rest = self._backlog.popleft()[sent:]
            if rest:
                self._backlog.appendleft(rest)

    def close(self) -> None:
        """Close the socket."""
        self.closed = True
        self._socket.close()


class StatesLink:
    """The link beside it for KV states. `closed` once nobody takes any."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self.closed = False

    def take(self, number: int) -> int | None:
        """The descriptor of the state that was sent under a number, now the caller's.

        None if it has not come, which is the link's fault alone: it was sent before the Submit
        that names it. States before it, whose Submit never came, are closed.
        """
        while True:
            try:
                packet = state_link.receive_in_worker(self._socket)
            except BlockingIOError:
                return None
            except (OSError, WireError) as error:
                log.get().warning("the states link is of no use", reason=str(error))
                return None
            if packet is None:
                return None
            state, fd = packet
            if state.number == number:
                return fd
            os.close(fd)

    def send(self, message: state_link.FromWorker, fd: int | None) -> None:
        """Send it, if there is room; nobody relies on it."""
        try:
            state_link.send(self._socket, message, fd)
        except ConnectionError:
            self.closed = True

    def close(self) -> None:
        """Close the socket, and with it what nobody has taken from it."""
        self.closed = True
        self._socket.close()
