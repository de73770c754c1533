"""Files whose paths somebody gives us, opened without ever waiting: regular ones, and no others.

A named pipe would hold who opens it until somebody writes, and a device may have no end.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from lbhost.errors import UsageError


def opened(path: Path) -> BinaryIO:
    """The file, to be read and closed by the caller; links are followed.

    Raises:
        UsageError: it is no regular file.
        OSError: it cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError("not a regular file")
    return os.fdopen(fd, "rb")


def content(path: Path, most_bytes: int) -> bytes:
    """All of a file.

    Raises:
        UsageError: it is no regular file, or too large.
        OSError: it cannot be read.
    """
    with opened(path) as file:
        found = file.read(most_bytes + 1)
    if len(found) > most_bytes:
        raise UsageError(f"over {most_bytes} bytes")
    return found
