"""The one who measures: starts the measuring process, asks it, and ends it in any case."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TypeVar

import msgspec

from lbhost.errors import TuningError
from lbhost.side_process import SideProcess
from lbhost.tuning.shapes import Speeds
from lbhost.tuning.trial import (
    Failed,
    Judge,
    Judged,
    Load,
    Loaded,
    Measured,
    Rewrite,
    Rewritten,
    Trial,
    receive_answer,
    send,
)

MODULE = "lbhost.tuning.measuring"
_A = TypeVar("_A", Loaded, Measured, Judged, Rewritten)


class Gauge:
    """A process that holds a model's weights, to be measured.

    Must be used in the main thread: the process ends with the thread that made it. Nothing of it is
    left after the `with` block, however that ends. Questions raise TuningError when it cannot be
    done, or not in time; the gauge is of no use after the latter.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """
        Args:
            environ: of the process; what a fork server gets.
        """
        self._process = SideProcess(MODULE, environ)

    def __enter__(self) -> Gauge:
        try:
            self._link = self._process.__enter__()
        except OSError as error:
            raise TuningError(f"no measuring process: {error.strerror}") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.__exit__(kind, error, trace)

    def load(self, load: Load, within_s: float) -> Loaded:
        """Load the weights; first of all, and once."""
        self.loaded = self._expect(load, Loaded, within_s)
        return self.loaded

    def measure(self, trial: Trial, within_s: float) -> Speeds:
        """How fast workers of the loaded model are."""
        return self._expect(trial, Measured, within_s).speeds

    def judge(self, judge: Judge, within_s: float) -> Judged:
        """What the loaded model's answers have lost."""
        return self._expect(judge, Judged, within_s)

    def rewrite(self, task: Rewrite, within_s: float) -> None:
        """Write a model in another format, with threads: nothing can be measured here after."""
        self._expect(task, Rewritten, within_s)

    def _expect(self, question: msgspec.Struct, kind: type[_A], within_s: float) -> _A:
        self._link.settimeout(max(0.001, within_s))
        try:
            send(self._link, question)
            answer = receive_answer(self._link)
        except TimeoutError as error:
            raise TuningError("it takes too long") from error
        except OSError as error:
            raise TuningError(f"the measuring process is gone: {error.strerror}") from error
        if isinstance(answer, Failed):
            raise TuningError(answer.message)
        if not isinstance(answer, kind):
            raise TuningError(f"the measuring process answered {type(answer).__name__}")
        return answer
