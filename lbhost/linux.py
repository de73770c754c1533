"""What Linux offers about processes and Python's standard library does not wrap.

Used by every process that has children or a parent to mind. Keeps no state.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lbhost.errors import StartupError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What asks a server to stop; SIGHUP does so when its terminal has gone."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237, "riscv64": 237}
_MPOL_PREFERRED = 1
_MOST_NODES = 1024
_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Orphaned descendants become our children, instead of init's.

    Raises:
        StartupError: the kernel refuses.
    """
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise StartupError(f"cannot become a child subreaper: {reason}")


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that made it ends.

    SIGKILL, since a stopped process takes nothing else. Survives an exec; a fork does not
    inherit it.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def live_without_parent() -> None:
    """Undo `die_with_parent`."""
    _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def has_terminal() -> bool:
    """Whether this process has a controlling terminal: one that hangs up is taken from it."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def stop_signals_held() -> Iterator[set[int]]:
    """Stop signals wait until the end of the block. Gives the mask that was there before."""
    before: set[int] = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals() -> None:
    """Only the supervisor acts on SIGTERM, SIGINT and SIGHUP, and ends its children by their links.

    systemd (KillMode=control-group) and terminals send them to every process of a server at
    once; a worker that took SIGTERM as its end would cut off the streams that may still finish.
    Survives a fork and an exec.
    """
    for number in (*STOP_SIGNALS, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def bind_memory(node: int) -> bool:
    """Take this process's new memory from one NUMA node while it has any; forks inherit that.

    Preferred, not strict: with the node full, remote memory is slow, and a strict binding would
    have the kernel kill us. Weights are read into such memory, wherever their file's cache lies.

    Returns:
        False where the kernel knows no NUMA or no such node, or refuses; then nothing changes.
    """
    number = _SET_MEMPOLICY.get(os.uname().machine)
    if number is None or not 0 <= node < _MOST_NODES:
        return False
    word = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * (_MOST_NODES // word))()
    mask[node // word] = 1 << node % word
    most = ctypes.c_ulong(_MOST_NODES + 1)  # the kernel leaves the last bit out
    return bool(_libc.syscall(ctypes.c_long(number), _MPOL_PREFERRED, mask, most) == 0)


def cpu_s(pid: int) -> float | None:
    """CPU time that a process has used, all threads; None if there is no such process.

    The kernel's per-process CPU clock: a microsecond, against 30 for reading /proc.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return None


def anonymous_bytes(pid: int) -> int | None:
    """Memory of a process that no file backs, in RAM and swapped out; None if it has ended.

    What it has inherited by a fork counts, whether or not it has been copied since. 50 us.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_bytes().split(b"\n")
    except OSError:
        return None
    of = {b"RssAnon", b"VmSwap"}
    found = [line.split() for line in lines if line.partition(b":")[0] in of]
    return 1024 * sum(int(words[1]) for words in found) if found else None


def children(pid: int) -> list[int]:
    """What a process's main thread has started and not yet reaped; empty where that is not told."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_bytes()
    except OSError:  # it has ended, or the kernel was built without
        return []
    return [int(child) for child in listed.split()]


def ran_on(pid: int) -> int | None:
    """The CPU that a process's main thread ran on last; None if there is no such process. 30 us."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return _cpu_of(stat)


def _cpu_of(stat: bytes) -> int:
    """The 39th column, counted from the end of the second, which may hold spaces."""
    return int(stat.rpartition(b")")[2].split()[36])


def is_stopped(pid: int) -> bool:
    """Whether somebody has stopped the process (SIGSTOP, SIGTSTP, a debugger)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # it has just ended
        return False
    return stat.rpartition(b")")[2].split()[0] in (b"T", b"t")


def parent(pid: int) -> int | None:
    """The process above; 0 where that is not in our PID namespace. None if there is no such one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[1])


class OomScore:
    """How soon the kernel ends this process, when memory runs out; what it starts inherits that.

    Opened once, before the process gives up opening files.
    """

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)

    def raise_to(self, score: int) -> bytes:
        """A higher score stays (-1000 to 1000): a container may have given it, and none may go
        below that. Returns what it was. Raises OSError: it may not be changed."""
        before = os.pread(self._fd, 16, 0)
        os.pwrite(self._fd, b"%d" % max(score, int(before)), 0)
        return before

    @contextlib.contextmanager
    def at(self, score: int) -> Iterator[None]:
        """Children that are made in this block keep the score, we do not."""
        before = self.raise_to(score)
        try:
            yield
        finally:
            os.pwrite(self._fd, before, 0)


@functools.cache
def oom_score() -> OomScore | None:
    """This process's own; None where /proc does not let us: it is only a preference."""
    try:
        return OomScore()
    except OSError:
        return None


def end_sooner(score: int) -> None:
    """Have the kernel end this process rather than others when memory runs out (0 to 1000).

    Where /proc does not let us, it is only a preference. Opened anew: what a parent has opened
    stays the parent's score.
    """
    with contextlib.suppress(OSError):
        OomScore().raise_to(score)


class ThreadUse(NamedTuple):
    """One thread of a process."""

    cpu: int
    """Where it ran last."""
    used_s: float
    """CPU time that it has used."""


def threads(pid: int) -> list[int]:
    """The ids of a process's threads, oldest first. Raises OSError if there is no such process."""
    return sorted(map(int, os.listdir(f"/proc/{pid}/task")))  # noqa: PTH208 - quicker


def helpers(pid: int) -> dict[int, ThreadUse]:
    """A process's threads but for its main one, by id; some 40 us each. Ended ones are left out."""
    found: dict[int, ThreadUse] = {}
    with contextlib.suppress(OSError):  # the process has just ended
        for thread in threads(pid):
            if thread == pid:
                continue
            with contextlib.suppress(OSError):
                task = Path(f"/proc/{pid}/task/{thread}")
                used_ns = int((task / "schedstat").read_bytes().split()[0])
                cpu = _cpu_of((task / "stat").read_bytes())
                found[thread] = ThreadUse(cpu, used_ns / 1e9)
    return found


def waited_s(pid: int) -> float | None:
    """Time that a process's main thread was ready to run and had no CPU; None if not known.

    The second number of /proc/PID/schedstat, nanoseconds; 30 us to read.
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_bytes().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None


def all_waited_s(pid: int) -> float | None:
    """The same of all its threads, together: where one waits for a CPU, the others wait for it."""
    try:
        waits = [waited_s(thread) for thread in threads(pid)]
    except OSError:
        return None
    known = [wait for wait in waits if wait is not None]
    return sum(known) if known else None


def runnable(pid: int) -> bool:
    """Whether a thread of a process runs, or is ready to run and has no CPU, at this moment.

    The kernel counts a wait (`waited_s`) only when it is over: until then this alone shows it.
    """
    try:
        return any(_state(pid, thread) == b"R" for thread in threads(pid))
    except OSError:
        return False


def _state(pid: int, thread: int) -> bytes:
    """One letter; empty when the thread has just ended."""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/task/{thread}/stat").read_bytes()
        return stat.rpartition(b")")[2].split()[0]
    return b""
