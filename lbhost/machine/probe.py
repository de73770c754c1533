"""A sensor file that is read over and over: opened once, then one pread per reading.

Files under /sys come and go (drivers reload, CPUs go offline, hwmon numbers change). A probe
that fails closes and stays dead, so that a dead sensor costs nothing; whoever owns it looks
for the sensor again now and then.
"""

from __future__ import annotations

import os
from pathlib import Path


class Probe:
    """One file under /sys or /proc."""

    __slots__ = ("_fd", "_size", "alive")

    def __init__(self, path: Path, size: int = 64) -> None:
        """Open the file. `size` is how much of it is read."""
        self._size = size
        self._fd = -1
        self.alive = False
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.alive = True
        except OSError:
            self.alive = False

    def read(self) -> bytes | None:
        """The file's beginning as of now; None if it is gone."""
        if self._fd < 0:
            return None
        try:
            return os.pread(self._fd, self._size, 0)
        except BlockingIOError:
            return None  # some thermal drivers say EAGAIN while they measure
        except OSError:
            self.close()
            return None

    def integer(self) -> int | None:
        """The one decimal number in the file; None if it is gone or holds something else."""
        data = self.read()
        try:
            return None if data is None else int(data)
        except ValueError:
            return None

    def close(self) -> None:
        """Let go of the file. Safe to call twice."""
        self.alive = False
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
