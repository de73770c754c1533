"""KV states in a folder, so that a server that is started again has them.

A file is a state as state_file.py lays it out, and a digest of all of it behind: tokens too, which
a state in memory cannot lose. What is damaged, cut short, another's or of another context is not
used. Blocks: disk_thread.py keeps it away from the event loop. Its folder has one for each
identity (worker/states.py), the newest files are those that were of use last; above its budget the
oldest go.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from lbhost import state_file
from lbhost.errors import StateError
from lbhost.state_file import Header

DIGEST_BYTES = 32
_CHUNK = 4 << 20
_SUFFIX = ".state"
_UNFINISHED = ".new"
_ABANDONED_S = 600.0
"""An unfinished file of this age was left by a server that was killed."""
_CLOCKS_S = 60.0
"""A file of this much later than now was written while the clock was ahead."""


class Kept(msgspec.Struct, frozen=True):
    """A state that was read."""

    header: Header
    fd: int
    """A sealed memfd; the caller's."""
    file: Path
    used_s: float
    """Unix time at which it was last of use."""


class Disk:
    """One folder, of this user alone (folders.py)."""

    def __init__(self, folder: Path, budget: int) -> None:
        """`budget`: bytes that all files in it may take."""
        self.folder = folder
        self._budget = budget

    def write(self, fd: int, header: Header, used_s: float) -> Path | None:
        """Keep a state; an older file of the same tokens is replaced.

        Args:
            used_s: Unix time at which it was last of use.

        Returns:
            None: there is no room for it beside those that were of use since.

        Raises:
            OSError: the disk is full, or the folder is gone.
        """
        size = header.size + DIGEST_BYTES
        if size > self._budget or not self._make_room(size, used_s):
            return None
        folder = self.folder / header.identity.hex()
        folder.mkdir(mode=0o700, exist_ok=True)
        name = hashlib.blake2b(state_file.pack(header), digest_size=16).hexdigest()
        path = folder / f"{name}{_SUFFIX}"
        # not by our number: in a container the next process has the same one
        unfinished = path.with_suffix(f"{_SUFFIX}.{secrets.token_hex(4)}{_UNFINISHED}")
        try:
            with os.fdopen(_private(unfinished), "wb") as file:
                digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
                for chunk in _chunks(fd, header.size):
                    digest.update(chunk)
                    file.write(chunk)
                file.write(digest.digest())
            os.utime(unfinished, (used_s, used_s))
            unfinished.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
        return path

    def read(self, identity: bytes, most_bytes: float) -> Iterator[Kept]:
        """The states of an identity, the newest first, of so many bytes in all: one for which
        there is no room is left out.

        What is of no use is removed. What cannot be read now (no memory or descriptor is left) may
        be of use the next time: it stays.
        """
        left = most_bytes
        for path, found in self._files(self.folder / identity.hex()):
            if found.st_size - DIGEST_BYTES > left:
                continue
            try:
                kept = self._read(path, identity, _used_s(found))
            except OSError:
                continue
            if kept is not None:
                left -= kept.header.size
                yield kept

    def touch(self, path: Path, used_s: float) -> bool:
        """It has been of use at this Unix time. False: it has made room meanwhile."""
        try:
            os.utime(path, (used_s, used_s))
        except OSError:
            return False
        return True

    def remove(self, path: Path) -> None:
        """It is of no use any more."""
        with contextlib.suppress(OSError):  # it went meanwhile
            path.unlink()

    def _read(self, path: Path, identity: bytes, used_s: float) -> Kept | None:
        """Raises OSError."""
        fd = os.memfd_create("lbhost-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with os.fdopen(_no_link(path), "rb") as file:
                _copy(file.fileno(), fd, os.fstat(file.fileno()).st_size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, state_file.SEALS)
            header = state_file.read(fd)
            if header.identity != identity:
                raise StateError("of another model")
        except (StateError, _DamagedError):
            os.close(fd)
            self.remove(path)
            return None
        except OSError:
            os.close(fd)
            raise
        return Kept(header, fd, path, used_s)

    def _files(self, folder: Path) -> list[tuple[Path, os.stat_result]]:
        """What is kept there, the newest first."""
        found = []
        with contextlib.suppress(OSError):  # nothing was kept yet
            for path in folder.iterdir():
                with contextlib.suppress(OSError):  # another server has just removed it
                    status = path.lstat()
                    if path.suffix == _UNFINISHED:
                        if time.time() - status.st_mtime > _ABANDONED_S:
                            self.remove(path)
                    elif path.suffix == _SUFFIX and stat.S_ISREG(status.st_mode):
                        found.append((path, status))
        return sorted(found, key=lambda entry: -_used_s(entry[1]))

    def _make_room(self, size: int, used_s: float) -> bool:
        found = []
        for folder in self.folder.iterdir():
            found += self._files(folder)
        found.sort(key=lambda entry: -_used_s(entry[1]))
        used = sum(status.st_size for _, status in found)
        going: list[Path] = []
        while found and used + size > self._budget and _used_s(found[-1][1]) < used_s:
            path, status = found.pop()
            going.append(path)
            used -= status.st_size
        if used + size > self._budget:
            return False  # and nothing goes for nothing
        for path in going:
            self.remove(path)
        return True


def _used_s(status: os.stat_result) -> float:
    """When a file was last of use; long ago, if the clock was ahead: it would stay for ever."""
    return status.st_mtime if status.st_mtime <= time.time() + _CLOCKS_S else 0.0


class _DamagedError(Exception):
    """A file that is not what was written."""


def _private(path: Path) -> int:
    """A new file of ours alone."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600)


def _no_link(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def _chunks(fd: int, size: int) -> Iterator[bytes]:
    at = 0
    while at < size:
        chunk = os.pread(fd, min(_CHUNK, size - at), at)
        if not chunk:
            raise OSError("a state is shorter than it says")
        yield chunk
        at += len(chunk)


def _copy(source: int, target: int, size: int) -> None:
    """Copy all but the digest, and check that. Raises OSError, _DamagedError."""
    if size <= DIGEST_BYTES:
        raise _DamagedError
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    at = 0
    for chunk in _chunks(source, size - DIGEST_BYTES):
        digest.update(chunk)
        view = memoryview(chunk)
        while view:
            done = os.pwrite(target, view, at)
            at, view = at + done, view[done:]
    if os.pread(source, DIGEST_BYTES + 1, size - DIGEST_BYTES) != digest.digest():
        raise _DamagedError
