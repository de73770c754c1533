"""Standard output and error that never raise and never block: telling must not stop the work.

Whoever reads them may have gone away, may have stopped reading, or its disk may be full.
A line that cannot be written now is dropped and counted, and the count is told with the next
line that gets through. O_NONBLOCK is not set: the open file is shared with the shell and with
every other process; a pipe is opened anew for that, where /proc and its owner allow it. No
thread either: the fork server must have none.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import sys
from typing import Any

LINE_LIMIT = select.PIPE_BUF
"""Bytes of a line; a pipe that polls as writable takes so many at once."""
WHOLE_LIMIT = 32 * 1024
"""Bytes of a line to a file, or to a socket, which takes so many as a whole or not at all."""
_LEFT_OUT = b" [...] "


class SafeStream:
    """What `print`, logging and tracebacks write to. Lines go out whole or not at all."""

    encoding = "utf-8"

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = ""
        self.dropped = 0
        """Lines that nobody will see, not yet told."""

    def write(self, text: str) -> int:
        """Take text; every complete line is written now, or dropped."""
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > WHOLE_LIMIT:
            lines.append(self._rest)
            self._rest = ""
        for line in lines:
            self._line(line)
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back but an unfinished line."""

    def isatty(self) -> bool:
        try:
            return os.isatty(self._fd)
        except OSError:
            return False

    def fileno(self) -> int:
        return self._fd

    def _line(self, line: str) -> None:
        if self.dropped:
            told = f"({self.dropped} lines could not be written)\n".encode()
            if self._put(told):
                self.dropped = 0
        if not self._put(_cut(line.encode(errors="replace"), self._limit() - 1) + b"\n"):
            self.dropped += 1

    def _limit(self) -> int:
        try:
            mode = os.fstat(self._fd).st_mode
        except OSError:
            return LINE_LIMIT
        return WHOLE_LIMIT if stat.S_ISREG(mode) or stat.S_ISSOCK(mode) else LINE_LIMIT

    def _put(self, data: bytes) -> bool:
        try:
            mode = os.fstat(self._fd).st_mode
            if stat.S_ISSOCK(mode):
                return _send(self._fd, data)
            own = _opened_anew(self._fd) if stat.S_ISFIFO(mode) else None
            if own is not None:
                try:
                    return os.write(own, data) == len(data)
                finally:
                    os.close(own)
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            ready = poll.poll(0)
            if not ready or not ready[0][1] & select.POLLOUT:
                return False
            return os.write(self._fd, data) == len(data)
        except (OSError, ValueError):
            return False


def _opened_anew(fd: int) -> int | None:
    """A pipe with a mode of its own: another process may fill it after a look at its room.

    Raises OSError: nobody reads it. None: it cannot be opened so.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
    except (FileNotFoundError, PermissionError):
        return None


def _cut(line: bytes, limit: int) -> bytes:
    """A line without its middle, if it is too long: a traceback in JSON says at its end what it
    was that went wrong.
    """
    if len(line) <= limit:
        return line
    head = limit // 4
    tail = limit - head - len(_LEFT_OUT)
    parts = (line[:head], _LEFT_OUT, line[-tail:])
    return b"".join(part.decode(errors="ignore").encode() for part in parts)


def _send(fd: int, data: bytes) -> bool:
    """To a socket, such as systemd's journal stream, which could block on more than its room."""
    with socket.socket(fileno=os.dup(fd)) as connection:
        return connection.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(data)


def protect() -> None:
    """Replace sys.stdout and sys.stderr; what every process of a server does first."""
    stdout: Any = SafeStream(1)
    stderr: Any = SafeStream(2)
    sys.stdout, sys.stderr = stdout, stderr
