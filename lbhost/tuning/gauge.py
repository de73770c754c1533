"""The one who measures: starts the measuring process, asks it, and ends it in any case."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from signal import SIGKILL
from types import TracebackType
from typing import TypeVar

import msgspec

from lbhost.errors import TuningError
from lbhost.linux import die_with_parent
from lbhost.tuning.shapes import Speeds
from lbhost.tuning.trial import Answer, Failed, Load, Loaded, Measured, Trial, receive_answer, send

MODULE = "lbhost.tuning.measuring"
_A = TypeVar("_A", bound=Answer)


class Gauge:
    """A model's weights in a process of their own, to be measured.

    Must be used in the main thread: the process ends with the thread that made it. Nothing of it is
    left after the `with` block, however that ends.
    """

    def __init__(self, load: Load, environ: Mapping[str, str], within_s: float) -> None:
        """
        Args:
            environ: of the process; what a fork server gets.
            within_s: the weights must be loaded in this time.
        """
        self._load = load
        self._environ = environ
        self._within_s = within_s

    def __enter__(self) -> Gauge:
        """Raises TuningError: the model cannot be loaded, or not in time."""
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", MODULE, "--control-fd", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env=dict(self._environ),
                    process_group=0,  # the terminal's Ctrl-C is ours to pass on
                    preexec_fn=die_with_parent,
                )
        except OSError as error:
            self._link.close()
            raise TuningError(f"no measuring process: {error.strerror}") from error
        except BaseException:
            self._link.close()
            raise
        try:
            self.loaded = self._expect(self._load, Loaded, self._within_s)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def measure(self, trial: Trial, within_s: float) -> Speeds:
        """Raises TuningError: it cannot be done, or not in time; the gauge is of no use then."""
        return self._expect(trial, Measured, within_s).speeds

    def _expect(self, question: msgspec.Struct, kind: type[_A], within_s: float) -> _A:
        answer = self._ask(question, within_s)
        if isinstance(answer, Failed):
            raise TuningError(answer.message)
        if not isinstance(answer, kind):
            raise TuningError(f"the measuring process answered {type(answer).__name__}")
        return answer

    def _ask(self, question: msgspec.Struct, within_s: float) -> Answer:
        self._link.settimeout(max(0.001, within_s))
        try:
            send(self._link, question)
            return receive_answer(self._link)
        except TimeoutError as error:
            raise TuningError("it takes too long") from error
        except OSError as error:
            raise TuningError(f"the measuring process is gone: {error.strerror}") from error

    def _end(self) -> None:
        """The whole group: the workers are in it too."""
        self._link.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, SIGKILL)
        self._process.wait()
