"""A wall clock for a server and all that it starts, which jumps when it is told to; see clock.c."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

from faults.box import BoxError

SOURCE = Path(__file__).with_suffix(".c")


def compiler() -> str | None:
    """What builds it; None if nothing does."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


class Clock:
    """Built in `folder`, right at first. Every process with `environ` has it."""

    def __init__(self, folder: Path) -> None:
        """Raises BoxError if it cannot be built."""
        folder.mkdir()
        self._file = folder / "clock"
        self.step(0)
        library = folder / "clock.so"
        command = [compiler() or "cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
        try:
            subprocess.run([*command, "-ldl"], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise BoxError(f"the clock cannot be built: {error}") from error
        self.environ = {"LD_PRELOAD": str(library)}

    def reaches(self, pid: int) -> bool:
        """Whether a process goes by it. One that has ended does not matter."""
        try:
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return True
        return str(self._file) in maps

    def step(self, seconds: int) -> None:
        """From now on it is so far ahead, or behind."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("=q", seconds))
