"""A process beside the one that asks it: question and answer in turn, ended in any case.

Owns the process and its link. Used before a server runs, to measure (tuning/gauge.py) and to read
a model's file (inspection.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType

from lbhost.linux import die_with_parent, ignore_stop_signals, stop_signals_held
from lbhost.sandbox.calls import no_core_dumps, no_new_privileges


class SideProcess:
    """`python -m MODULE --control-fd N`, with nothing on its standard streams.

    Must be used in the main thread: the process ends with the thread that made it. Nothing of it is
    left after the `with` block, however that ends.
    """

    def __init__(self, module: str, environ: Mapping[str, str]) -> None:
        self._module = module
        self._environ = environ
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> socket.socket:
        """The link to it, SEQPACKET. Raises OSError: no process could be made."""
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # Handlers of stop signals raise, and Python drops what is raised while its hooks for a
            # fork run: the signal would be lost.
            with theirs, stop_signals_held() as before:
                self._process = self._spawn(theirs.fileno(), before)
        except OSError:
            self._link.close()
            raise
        except BaseException:  # a stop signal that came meanwhile
            self._end()
            raise
        return self._link

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def how_it_ended(self, within_s: float) -> int | None:
        """Its exit status, negative for a signal; None if it lives on."""
        assert self._process is not None
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return None

    def _spawn(self, fd: int, mask: set[int]) -> subprocess.Popen[bytes]:
        def in_child() -> None:
            die_with_parent()
            ignore_stop_signals()  # those that go to every process are ours to act on, too
            no_new_privileges()
            no_core_dumps()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

        return subprocess.Popen(
            [sys.executable, "-P", "-m", self._module, "--control-fd", str(fd)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(fd,),
            env=dict(self._environ),
            process_group=0,  # the terminal's Ctrl-C is ours to pass on
            preexec_fn=in_child,
        )

    def _end(self) -> None:
        """The whole group: what it has started is in it too."""
        with stop_signals_held():
            self._link.close()
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
                self._process = None
