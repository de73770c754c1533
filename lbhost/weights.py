"""Which files the weights came from: every process that loads them must find the same ones.

A model's file may be replaced or overwritten while a server runs. New weights beside an old
vocabulary, or two workers of different models, would answer nonsense: who finds another file
refuses it. Knows nothing of what is in the files.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from lbhost.errors import ModelChangedError, ModelFileError


class FilePart(msgspec.Struct, frozen=True):
    """One file as the kernel knows it."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int


def parts(path: Path) -> list[Path]:
    """The files of a model: itself, or all of `NAME-00001-of-00003.gguf`."""
    match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if not match:
        return [path]
    stem, first, count = match[1], int(match[2]), int(match[3])
    if count == 0:
        raise ModelFileError(f"{path}: its name says that it has no parts; rename it")
    if first != 1:
        raise ModelFileError(f"{path}: name the first part, {stem}-00001-of-{count:05}.gguf")
    return [path.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]


def identify(paths: Iterable[Path]) -> tuple[FilePart, ...]:
    """The files as they are now, links followed.

    Raises:
        ModelFileError: one is missing or cannot be looked at.
    """
    return tuple(_look(path) for path in paths)


@contextlib.contextmanager
def unchanged(parts: Sequence[FilePart]) -> Iterator[None]:
    """What is read from the files within this block is read from the very same ones.

    Raises:
        ModelChangedError: a file is another one before or after.
        ModelFileError: one is missing.
    """
    _require(parts)
    yield
    _require(parts)


def _require(parts: Sequence[FilePart]) -> None:
    for part in parts:
        found = _look(Path(part.path))
        if found != part:
            what = "replaced" if found.inode != part.inode else "changed"
            raise ModelChangedError(
                f"{part.path} was {what} since the server started: `lbhost reload` serves the "
                "new file; or put the old one back"
            )


def _look(path: Path) -> FilePart:
    try:
        stat = path.stat()
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: no such model file") from error
    except OSError as error:
        raise ModelFileError(f"{path}: cannot read it: {error.strerror}") from error
    return FilePart(str(path), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
