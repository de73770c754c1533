"""The runtime dir: one running server a folder, closed to other users.

Owns the folder's lock and its admin.sock's path. The lock is a flock, so that it is gone
with its holder however that died; what a dead server left behind is cleaned up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from pathlib import Path

import msgspec

from lbhost import log
from lbhost.errors import StartupError

SOCKET_NAME = "admin.sock"
LOCK_NAME = "lock"
_PATH_LIMIT = 107
"""Bytes of a unix socket's path that Linux takes."""


class Holder(msgspec.Struct, frozen=True):
    """What the lock file says of the server that holds it."""

    pid: int
    endpoint: str


def prepare(path: Path) -> Path:
    """Make sure that the folder exists and is ours alone; return it as an absolute path.

    Raises:
        StartupError: it is not ours, is open to others, or its path is too long for a socket.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100  (resolve() would follow a foreign link)
    length = len(os.fsencode(path / SOCKET_NAME))
    if length > _PATH_LIMIT:
        raise StartupError(
            f"{path / SOCKET_NAME} has {length} bytes, and a unix socket's path at most "
            f"{_PATH_LIMIT}: choose a shorter --runtime-dir"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise StartupError(f"cannot make the runtime dir {path}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise StartupError(f"the runtime dir {path} is not a folder")
    if found.st_uid != os.geteuid():
        raise StartupError(f"the runtime dir {path} belongs to another user (uid {found.st_uid})")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise StartupError(
            f"the runtime dir {path} is open to other users (mode {mode:03o}): "
            f"`chmod 700` it or choose another --runtime-dir"
        )
    return path


def require_free(path: Path) -> None:
    """Make sure that no running server holds this folder, without taking it.

    Raises:
        StartupError: one does; it is named.
    """
    try:
        lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartupError(f"cannot open {path / LOCK_NAME}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StartupError(_taken(path, _read(lock))) from None
    finally:
        os.close(lock)


class RuntimeDir:
    """A claimed runtime dir. `release` it in the end."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.socket_path = path / SOCKET_NAME
        self._lock = lock

    @classmethod
    def claim(cls, path: Path) -> RuntimeDir:
        """Take the folder for this process.

        Raises:
            StartupError: see `prepare`; or a running server holds it.
        """
        path = prepare(path)
        name = path / LOCK_NAME
        while True:
            try:
                lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise StartupError(f"cannot open {name}: {error.strerror}") from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _read(lock)
                os.close(lock)
                raise StartupError(_taken(path, holder)) from None
            if _still_there(lock, name):
                break
            os.close(lock)  # its last holder removed it between our open and our lock
        claimed = cls(path, lock)
        try:
            claimed.socket_path.unlink(missing_ok=True)
        except OSError as error:
            claimed.release()
            raise StartupError(f"cannot remove {path / SOCKET_NAME}: {error.strerror}") from error
        claimed.announce("")
        return claimed

    def announce(self, endpoint: str) -> None:
        """Write down who holds the lock, for the message of a second server.

        The lock holds without that: on a full disk a second server is refused all the same.
        """
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, msgspec.json.encode(Holder(os.getpid(), endpoint)), 0)
        except OSError as error:
            log.get().warning("cannot write the lock file", path=str(self.path), error=str(error))

    def keep(self) -> None:
        """Say now and then that the lock file is in use: systemd-tmpfiles removes files from /tmp
        that nobody has touched for ten days, and a second server would find no lock.
        """
        with contextlib.suppress(OSError):  # a file system that has come to be read-only
            os.utime(self._lock)

    def listen(self) -> socket.socket:
        """The admin API's listening socket, for this user alone.

        Raises:
            StartupError: it cannot be made.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(str(self.socket_path))
            listener.listen(128)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise StartupError(f"cannot listen on {self.socket_path}: {error.strerror}") from error
        finally:
            os.umask(mask)
        return listener

    def release(self) -> None:
        """Remove what is ours, the folder too if it is empty then.

        Where somebody has cleaned the folder away (old files in /tmp are), what is there now may
        be another server's: the lock tells whose it is.
        """
        try:
            if _still_there(self._lock, self.path / LOCK_NAME):
                with contextlib.suppress(OSError):
                    self.socket_path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    (self.path / LOCK_NAME).unlink(missing_ok=True)
        finally:
            os.close(self._lock)
        with contextlib.suppress(OSError):
            self.path.rmdir()


def _read(lock: int) -> Holder | None:
    try:
        return msgspec.json.decode(os.pread(lock, 4096, 0), type=Holder)
    except msgspec.DecodeError:
        return None


def _taken(path: Path, holder: Holder | None) -> str:
    who = "another server"
    if holder is not None:
        at = f" at {holder.endpoint}" if holder.endpoint else ""
        who = f"a server with pid {holder.pid}{at}"
    return f"{who} already runs on the runtime dir {path}: stop it, or choose another --runtime-dir"


def _still_there(lock: int, name: Path) -> bool:
    try:
        return os.path.samestat(name.stat(), os.fstat(lock))
    except OSError:
        return False
