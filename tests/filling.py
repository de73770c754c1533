"""Pipes that are full: for those who must not wait for a reader."""

from __future__ import annotations

import os


def fill(fd: int) -> int:
    """Fill a pipe; how many bytes it took."""
    os.set_blocking(fd, False)
    count = 0
    try:
        while True:
            count += os.write(fd, b"x" * 1024)
    except BlockingIOError:
        os.set_blocking(fd, True)
        return count
