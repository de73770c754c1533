"""The runtime dir: one running server a folder, closed to other users.

Owns the folder's lock and its admin.sock's path. The lock is a flock, so that it is gone
with its holder however that died; what a dead server left behind is cleaned up. It is on the
folder itself: files in it can be deleted, and systemd-tmpfiles leaves locked folders alone.
Others do not (`rm -rf`, a log-out that takes XDG_RUNTIME_DIR away): a folder that was taken
away can be claimed anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path

import msgspec

from lbhost import log
from lbhost.errors import StartupError
from lbhost.folders import private

SOCKET_NAME = "admin.sock"
NEW_SOCKET_NAME = "new.sock"
LOCK_NAME = "lock"
"""Says who holds the folder; it is not what is locked."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
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
    return private(path, "--runtime-dir")


def require_free(path: Path) -> None:
    """Make sure that no running server holds this folder, without taking it.

    Raises:
        StartupError: one does; it is named.
    """
    try:
        folder = os.open(path, _FOLDER)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartupError(f"cannot open {path}: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StartupError(_taken(path)) from None
    finally:
        os.close(folder)


class RuntimeDir:
    """A claimed runtime dir. `release` it in the end."""

    def __init__(self, path: Path, folder: int) -> None:
        self.path = path
        self.socket_path = path / SOCKET_NAME
        self._folder = folder
        self._endpoint = ""
        self._bound: os.stat_result | None = None
        """The socket file that `listen` has made. Its number stays taken while that is open."""
        self._ours = True

    @classmethod
    def claim(cls, path: Path) -> RuntimeDir:
        """Take the folder for this process.

        Raises:
            StartupError: see `prepare`; or a running server holds it.
        """
        while True:
            path = prepare(path)
            try:
                folder = os.open(path, _FOLDER)
            except FileNotFoundError:
                continue  # its last holder has just removed it
            except OSError as error:
                raise StartupError(f"cannot open {path}: {error.strerror}") from error
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(folder)
                raise StartupError(_taken(path)) from None
            if _still_there(folder, path):
                break
            os.close(folder)  # its last holder removed it between our open and our lock
        claimed = cls(path, folder)
        try:
            claimed.socket_path.unlink(missing_ok=True)
        except OSError as error:
            claimed.release()
            raise StartupError(f"cannot remove {path / SOCKET_NAME}: {error.strerror}") from error
        claimed.announce("")
        return claimed

    @classmethod
    def inherit(cls, path: Path, folder: int) -> RuntimeDir:
        """Be about to take it over from its holder, with the lock: it is ours from `listen` on."""
        found = cls(path, folder)
        found._ours = False
        return found

    @property
    def folder(self) -> int:
        """The descriptor that has the lock, for who takes over."""
        return self._folder

    def hand_on(self) -> None:
        """It belongs to another server now."""
        self._ours = False
        os.close(self._folder)
        self._folder = -1

    def announce(self, endpoint: str) -> None:
        """Write down who holds the folder, for the message of a second server.

        The lock holds without that: on a full disk a second server is refused all the same.
        """
        self._endpoint = endpoint
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            note = os.open(LOCK_NAME, flags, 0o600, dir_fd=self._folder)
            try:
                os.write(note, msgspec.json.encode(Holder(os.getpid(), endpoint)))
            finally:
                os.close(note)
        except OSError as error:
            log.get().warning("cannot write the lock file", path=str(self.path), error=str(error))

    def listen(self) -> socket.socket:
        """The admin API's listening socket, for this user alone.

        Raises:
            StartupError: it cannot be made.
        """
        try:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:  # no descriptor left, under a running server
            raise StartupError(f"cannot listen on {self.socket_path}: {error.strerror}") from error
        mask = os.umask(0o177)
        try:
            # In place of what is there, a killed server's or one that hands over: at every moment
            # there is one. The name is no longer than the socket's own.
            fresh = self.path / NEW_SOCKET_NAME
            fresh.unlink(missing_ok=True)
            listener.bind(str(fresh))
            listener.listen(128)
            self._bound = fresh.lstat()
            fresh.rename(self.socket_path)
            self._ours = True
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise StartupError(f"cannot listen on {self.socket_path}: {error.strerror}") from error
        finally:
            os.umask(mask)
        return listener

    def is_reachable(self) -> bool:
        """Whether who opens the socket's path finds the socket that `listen` has made."""
        try:
            found = self.socket_path.lstat()
        except OSError:
            return False
        return self._bound is not None and os.path.samestat(found, self._bound)

    def listen_again(self) -> socket.socket:
        """A new listening socket at the same path, in a new folder if ours was taken away.

        Raises:
            StartupError: see `claim` and `listen`.
        """
        if not _still_there(self._folder, self.path):
            fresh = RuntimeDir.claim(self.path)
            os.close(self._folder)
            self._folder = fresh._folder
        self.announce(self._endpoint)
        return self.listen()

    def release(self) -> None:
        """Remove what is ours, the folder too if it is empty then.

        Nothing, if the folder was taken away: another server may have made one of its name; nor
        if it is another's by now.
        """
        with contextlib.suppress(OSError):
            if self._ours and _still_there(self._folder, self.path):
                self.socket_path.unlink(missing_ok=True)
                (self.path / LOCK_NAME).unlink(missing_ok=True)
                self.path.rmdir()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1


def _holder(path: Path) -> Holder | None:
    try:
        return msgspec.json.decode((path / LOCK_NAME).read_bytes(), type=Holder)
    except (OSError, msgspec.DecodeError):
        return None


def _taken(path: Path) -> str:
    holder = _holder(path)
    who = "another server"
    if holder is not None:
        at = f" at {holder.endpoint}" if holder.endpoint else ""
        who = f"a server with pid {holder.pid}{at}"
    return f"{who} already runs on the runtime dir {path}: stop it, or choose another --runtime-dir"


def _still_there(folder: int, path: Path) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(folder))
    except OSError:
        return False
