"""What a test must not leave behind: descriptors, processes, threads, and changed settings.

`Possessions.now()` notes what this process has; `leftovers()` says what it has more, later, by
name. A leak is then the failure of the test that leaks, instead of a ResourceWarning in whatever
test the garbage collector happens to run. Cheap where nothing is left: garbage is collected only
if there are descriptors that were not there before.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import socket
import threading
import time
from pathlib import Path

PATIENCE_S = 60.0
"""What is ending already (a thread, an orphan) gets so long for it."""

_SIGNALS = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


def _descriptors() -> dict[int, str]:
    """What every open descriptor of this process is, but for those that pytest captures."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - quicker than a Path
        try:
            if int(name) > 2:
                found[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except FileNotFoundError:
            continue  # the listing's own, or another thread has just closed it
    return found


def _ends(fd: int, what: str) -> str:
    """What it is; of a socket, which are its two ends."""
    if not what.startswith("socket:"):
        return what
    with socket.socket(fileno=os.dup(fd)) as it:
        ends = []
        for end in (it.getsockname, it.getpeername):
            try:
                ends.append(str(end()) or "unnamed")
            except OSError:
                ends.append("nobody")
        return f"{what} {it.family.name} {it.type.name} from {ends[0]} to {ends[1]}"


def _children() -> dict[int, str]:
    """Processes that are ours to reap, with their command lines."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return {}
    ours, found = str(os.getpid()), {}
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        try:
            stat = Path("/proc", name, "stat").read_text()
            if stat.rpartition(")")[2].split()[1] == ours:
                command = Path("/proc", name, "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(name)] = command.decode(errors="replace").strip() or stat.split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return found


def _reap(pid: int) -> bool:
    """Whether this child has ended."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


@dataclasses.dataclass(frozen=True)
class Possessions:
    """What this process has and how it is set, at one time."""

    descriptors: dict[int, str]
    children: dict[int, str]
    threads: frozenset[threading.Thread]
    folder: str
    environ: dict[str, str]
    handlers: dict[int, object]

    @classmethod
    def now(cls) -> Possessions:
        return cls(
            descriptors=_descriptors(),
            children=_children(),
            threads=frozenset(threading.enumerate()),
            folder=os.getcwd(),  # noqa: PTH109 - as text
            environ=dict(os.environ),
            handlers={number: signal.getsignal(number) for number in _SIGNALS},
        )

    def leftovers(self, patience_s: float = PATIENCE_S) -> list[str]:
        """What there is now and was not then, one line each. Processes among it are killed.

        Settings are put back, so that one test's fault is not that of all that follow.
        """
        deadline = time.monotonic() + patience_s
        found = self._threads(deadline) + self._processes(deadline)
        return found + self._open() + self._settings()

    def _threads(self, deadline: float) -> list[str]:
        more = [t for t in threading.enumerate() if t not in self.threads]
        for thread in more:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [f"thread {thread.name!r}" for thread in more if thread.is_alive()]

    def _processes(self, deadline: float) -> list[str]:
        left = {pid: what for pid, what in _children().items() if pid not in self.children}
        while left := {pid: what for pid, what in left.items() if not _reap(pid)}:
            if time.monotonic() >= deadline:
                break
            time.sleep(0.01)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return [f"process {pid}: {what}" for pid, what in left.items()]

    def _open(self) -> list[str]:
        """Descriptors that nothing closes. What the garbage collector closes speaks for itself,
        by a ResourceWarning, which is an error too.
        """
        before = self.descriptors.items()
        if not _descriptors().items() - before:
            return []
        gc.collect()
        more = sorted(_descriptors().items() - before)
        return [f"descriptor {fd}: {_ends(fd, what)}" for fd, what in more]

    def _settings(self) -> list[str]:
        changed = []
        if (folder := os.getcwd()) != self.folder:  # noqa: PTH109
            changed.append(f"working directory: {folder}")
            os.chdir(self.folder)
        environ = dict(os.environ)
        # pytest's own, which names the test and the phase
        names = {n for n, _ in environ.items() ^ self.environ.items()} - {"PYTEST_CURRENT_TEST"}
        for name in sorted(names):
            changed.append(f"environment variable {name}")
            if name in self.environ:
                os.environ[name] = self.environ[name]
            else:
                del os.environ[name]
        for number, handler in self.handlers.items():
            if signal.getsignal(number) is not handler:
                changed.append(f"handler of {signal.Signals(number).name}")
                signal.signal(number, handler)  # type: ignore[arg-type]
        return changed
