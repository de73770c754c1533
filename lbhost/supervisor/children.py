"""Child processes: started so that they cannot outlive us, watched by pidfd, reaped.

Owns every pid below the supervisor, those that the fork server forked too: the supervisor is
their subreaper. Knows nothing of what the processes do.

All of this happens in the main thread: PR_SET_PDEATHSIG follows the thread that spawned.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from lbhost import log
from lbhost.linux import die_with_parent, ignore_stop_signals, parent
from lbhost.sandbox.calls import no_core_dumps, no_new_privileges

Exited = Callable[[str, bool], None]
"""Called once with how a process ended, for a person, and whether that was exit code 0."""


def describe_exit(status: int) -> str:
    """A wait status for a person: "exit code 1", "SIGKILL"."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(ValueError):
            return signal.Signals(number).name
        return f"signal {number}"
    return f"exit code {os.WEXITSTATUS(status)}"


def _begin() -> None:
    """In the child, before its program: an interpreter takes a while to get that far."""
    die_with_parent()
    ignore_stop_signals()
    no_new_privileges()
    no_core_dumps()


class Children:
    """Every child process of this one. Needs a running loop."""

    def __init__(self, after_exit: Callable[[], None] = lambda: None) -> None:
        """`after_exit` is called after every watcher."""
        self._after_exit = after_exit
        self._spawned: dict[int, subprocess.Popen[bytes]] = {}
        self._watched: dict[int, tuple[int, Exited]] = {}
        self._others: set[int] = set()

    def spawn(
        self,
        module: str,
        fd: int,
        env: Mapping[str, str],
        watcher: Exited,
        output: int | None = None,
    ) -> int:
        """Start `python -m module --control-fd FD` and return its pid.

        The child is in a process group of its own: the terminal's Ctrl-C and Ctrl-Z are the
        supervisor's to pass on. It inherits fd, stdout and stderr and nothing else.

        Args:
            output: what its stdout and stderr are instead of ours.

        Raises:
            OSError: no process could be made.
        """
        command = [sys.executable, "-P", "-m", module, "--control-fd", str(fd)]
        return self._spawn(command, fd, env, watcher, _begin, output)

    def spawn_server(
        self, command: Sequence[str], fd: int, env: Mapping[str, str], watcher: Exited
    ) -> int:
        """The same for another server, which minds stop signals itself. It dies with us until it
        says otherwise.

        Raises:
            OSError: no process could be made.
        """
        return self._spawn(command, fd, env, watcher, die_with_parent)

    def disown(self, pid: int) -> None:
        """It is told of when it ends, but it is not ours to end."""
        self._others.add(pid)

    def _spawn(
        self,
        command: Sequence[str],
        fd: int,
        env: Mapping[str, str],
        watcher: Exited,
        begin: Callable[[], None],
        output: int | None = None,
    ) -> int:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(fd,),
            env=dict(env),
            process_group=0,
            preexec_fn=begin,
        )
        self._spawned[process.pid] = process
        try:
            if self.watch(process.pid, watcher):
                return process.pid
        except OSError:  # no descriptor left for a pidfd: what nobody watches must not live
            process.kill()
            raise
        finally:
            if process.pid not in self._watched:
                process.wait()
                del self._spawned[process.pid]
        raise ProcessLookupError(f"{command[2]} was gone at once")

    def watch(self, pid: int, watcher: Exited) -> bool:
        """Tell the watcher when this child ends. False if it is gone already.

        Raises:
            OSError: it cannot be watched: no descriptor is left.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        self._watched[pid] = (pidfd, watcher)
        asyncio.get_running_loop().add_reader(pidfd, self._ended, pid)
        return True

    def is_new(self, pid: int) -> bool:
        """Whether it is a child of ours that nobody watches yet."""
        return pid not in self._watched and parent(pid) == os.getpid()

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a watched child; nothing if it is gone."""
        watched = self._watched.get(pid)
        if watched is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(watched[0], number)

    def pids(self) -> Sequence[int]:
        """Watched children of our own that have not ended."""
        return tuple(self._watched.keys() - self._others)

    def sweep(self) -> None:
        """Reap dead children that nobody watches: orphans of a fork server that died mid-fork."""
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None or dead.si_pid in self._watched:
                return  # its pidfd speaks for it, and sweeps again
            os.waitpid(dead.si_pid, os.WNOHANG)
            log.get().debug("reaped an orphan", pid=dead.si_pid)

    def _ended(self, pid: int) -> None:
        pidfd, watcher = self._watched.pop(pid)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        try:
            _, status = os.waitpid(pid, 0)
        except ChildProcessError:
            how, well = "unknown exit", False
        else:
            how, well = describe_exit(status), status == 0
        process = self._spawned.pop(pid, None)
        if process is not None:
            process.returncode = 0 if well else 1
        self.sweep()
        watcher(how, well)
        self._after_exit()

    def close(self) -> None:
        """Kill and reap whatever is left. The last resort of a shutdown."""
        loop = asyncio.get_running_loop()
        for pid in self.pids():
            self.signal(pid, signal.SIGKILL)
        for pid, (pidfd, _) in self._watched.items():
            loop.remove_reader(pidfd)
            os.close(pidfd)
            if pid in self._others:
                continue
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            process = self._spawned.pop(pid, None)
            if process is not None:
                process.returncode = -signal.SIGKILL
        for process in self._spawned.values():
            process.returncode = 0  # another's: not to be waited for
        self._spawned.clear()
        self._watched.clear()
        self.sweep()
