"""Folders of this user alone: what is in them must be neither read nor replaced by others."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from lbhost.errors import StartupError


def private(path: Path, flag: str) -> Path:
    """Make sure that the folder exists and is ours alone; return it as an absolute path.

    Args:
        flag: that it was given by ("--runtime-dir").

    Raises:
        StartupError: it cannot be made, is not ours, or is open to others.
    """
    what = f"the {flag.removeprefix('--').replace('-', ' ')} {path}"
    path = Path(os.path.abspath(path))  # noqa: PTH100  (resolve() would follow a foreign link)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # what it is comes out below
            path.mkdir(mode=0o700)
        found = path.lstat()
    except OSError as error:
        raise StartupError(f"cannot make {what}: {error.strerror}") from error
    if stat.S_ISLNK(found.st_mode):
        raise StartupError(f"{what} is a link: name the folder itself with {flag}")
    if not stat.S_ISDIR(found.st_mode):
        raise StartupError(f"{what} is not a folder: move it away, or choose another {flag}")
    if found.st_uid != os.geteuid():
        raise StartupError(f"{what} belongs to another user (uid {found.st_uid})")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise StartupError(
            f"{what} is open to other users (mode {mode:03o}): choose another {flag}, or "
            "`chmod 700` it if it is for lbhost alone"
        )
    return path


def default_runtime_dir(environ: Mapping[str, str]) -> Path:
    """Where admin.sock lives unless told otherwise: one folder per user."""
    base = environ.get("XDG_RUNTIME_DIR")
    if base:
        return Path(base) / "lbhost"
    return Path("/tmp") / f"lbhost-{os.getuid()}"
