"""A disk of its own for a server's log and KV states, small enough to be filled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.box import BoxError

SIZE = 24 << 20
_FILLER = "filler"


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A tmpfs of SIZE at a new folder, until the end of the block.

    Raises:
        BoxError: this user may not mount.
    """
    folder.mkdir()
    options = f"size={SIZE},mode=700"
    try:
        _run("mount", "-t", "tmpfs", "-o", options, "lbhost-chaos", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        raise BoxError(f"no small disk can be mounted: {error}") from error
    try:
        yield folder
    finally:
        _run("umount", "--lazy", str(folder))


def fill(folder: Path, spare: int) -> None:
    """Leave no more than `spare` bytes."""
    empty(folder)
    room = os.statvfs(folder)
    left = room.f_bavail * room.f_bsize - spare
    with (folder / _FILLER).open("wb") as file:
        if left > 0:
            os.posix_fallocate(file.fileno(), 0, left)


def empty(folder: Path) -> None:
    """Give it all back."""
    (folder / _FILLER).unlink(missing_ok=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
