"""What was measured, kept in the user's cache: one small JSON file each.

A file that is damaged, of another version or not readable is as good as none: it is measured again.
Writes are atomic; two servers that start at once write the same.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from lbhost.tuning.identity import Identity
from lbhost.tuning.shapes import Shape, Speeds

_T = TypeVar("_T", bound=msgspec.Struct)


class MeasuredShape(msgspec.Struct, frozen=True):
    """The shape that won, and by what."""

    identity: Identity
    shape: Shape
    speeds: dict[str, Speeds]
    """By the shape's name."""
    version: int = 1


def folder(environ: Mapping[str, str]) -> Path:
    """Where lbhost keeps what it can make again: $XDG_CACHE_HOME/lbhost or ~/.cache/lbhost."""
    base = environ.get("XDG_CACHE_HOME", "")
    # The specification says that a relative path is invalid and to be ignored.
    home = Path(base) if base.startswith("/") else Path(environ.get("HOME") or "/") / ".cache"
    return home / "lbhost"


def read(path: Path, kind: type[_T]) -> _T | None:
    """A record; None if there is none that can be used."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def write(path: Path, record: msgspec.Struct) -> None:
    """Keep a record: the whole of it or, after an error, what was there before.

    Raises:
        OSError
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=path.stem + ".", suffix=".new", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(record), indent=2))
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def shape_path(environ: Mapping[str, str], identity: Identity) -> Path:
    """Where the shape for this case is."""
    return folder(environ) / "shapes" / f"{identity.key}.json"


def shape(environ: Mapping[str, str], identity: Identity) -> MeasuredShape | None:
    """The shape that was measured for this case, if one was."""
    found = read(shape_path(environ, identity), MeasuredShape)
    return (
        found if found is not None and found.identity == identity and found.version == 1 else None
    )
