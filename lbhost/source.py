"""Where a server's settings came from, so that they can be read again, or given to another start.

The flags and the environment of a process stay as they were; what may change is the file.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from lbhost import config, setting_sources
from lbhost.config import Settings
from lbhost.errors import UsageError


class Source(msgspec.Struct, frozen=True):
    """The flags, environment and file of a `serve`."""

    flags: Mapping[str, Any]
    """By key; those that were given."""
    environ: Mapping[str, str]
    file: Path | None = None
    """An absolute path; None: LBHOST_CONFIG's, if that is set."""

    def load(self) -> Settings:
        """The settings as they are now. Raises UsageError."""
        return setting_sources.load(self.flags, self.environ, self.file)

    def load_again(self) -> Settings:
        """As `load`, for a running server: it never waits for who writes into a pipe.

        Raises:
            UsageError: also if the file is none that can be read twice.
        """
        path = self.file or self.environ.get("LBHOST_CONFIG")
        with contextlib.suppress(OSError):  # `load` says what is wrong with it
            if path and not stat.S_ISREG(Path(path).stat().st_mode):
                raise UsageError(f"{path}: not a regular file, so it cannot be read again")
        return self.load()

    def arguments(self) -> list[str]:
        """Of `serve`, to start with the same flags and file once more."""
        arguments = [_argument(config.flag_name(key), value) for key, value in self.flags.items()]
        return [*arguments, *([f"--config={self.file}"] if self.file else [])]


def _argument(flag: str, value: str | bool) -> str:
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag}={value}"
