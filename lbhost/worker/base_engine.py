"""What both engines are: requests by link, answers not yet sent, and steps that are measured.

Owns the requests and what is to be said about them; how one ends is the engine's own matter, as is
what a step computes. Like the engines it knows no sockets and no clock but those it is given.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from lbhost.placement.gain import WidthGain
from lbhost.wire import Embed, Finish, FinishReason, Submit
from lbhost.worker.batch import Speeds
from lbhost.worker.crew import Crew
from lbhost.worker.interfaces import MAX_FAILURES, EngineFailureError
from lbhost.worker.llama_context import Decoded
from lbhost.worker.requests import Key
from lbhost.worker.timing import Timing
from lbhost.worker.widths import Phase


class Addressed(Protocol):
    """What is common to the requests of both."""

    @property
    def link(self) -> int: ...
    @property
    def key(self) -> Key: ...


R = TypeVar("R", bound=Addressed)
M = TypeVar("M")
"""What an engine's requests are told."""
T = TypeVar("T")


class BaseEngine(ABC, Generic[R, M]):
    """See the module. All times are seconds of the clocks given.

    Args:
        clock: wall time. cpu_clock: the engine's own CPU time (for GPUs: wall time again).
        before_step: called with the expected seconds of a step just before it is computed.
        crew: the worker's threads; without one nothing can be lent.
        fallback_token_s: a token's expected time while nothing is measured.
        tiled: whether attention is computed in tiles.
        slots: sequences that it decodes at once, at most.
        gains: what is known beforehand of lent threads.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
        before_step: Callable[[float], None] | None = None,
        fallback_token_s: float = 0.01,
        crew: Crew | None = None,
        tiled: bool = False,
        slots: int = 0,
        gains: Sequence[WidthGain] = (),
    ) -> None:
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._before_step = before_step
        self._crew = crew or Crew(1, lambda _: None)
        self._timing = Timing(
            self._crew.own,
            fallback_token_s=fallback_token_s,
            tiled=tiled,
            slots=slots,
            gains=gains,
        )
        self._requests: dict[Key, R] = {}
        self._computing: set[Key] = set()
        self._out: list[tuple[int, M]] = []
        self._steps = 0
        self._step_s = 0.0
        """Wall time of the newest."""
        self._wide_steps = 0
        self._lent: tuple[int, ...] = ()
        self._prompt_tokens = 0
        self._failures = 0

    # --- what comes in ----------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do or to hand out."""
        return bool(self._requests or self._out)

    @property
    def computing(self) -> set[Key]:
        """The requests in the batch that is being computed: for whoever decides on an abort."""
        return self._computing

    def pause_s(self) -> float:
        """How long to wait for more requests before the next `step`: what comes joins it later."""
        return 0.0

    def reject(self, link: int, message: Submit | Embed) -> None:
        """Refuse a request: it belongs elsewhere."""
        self._answer(link, message, Finish(FinishReason.REJECTED))

    def cancel(self, link: int, request_id: int) -> None:
        """End a request wherever it is; an unknown one has just ended."""
        self._end_if_there((link, request_id), FinishReason.CANCELLED)

    def move(self, link: int, request_id: int) -> None:
        """Give a request back as it is; an unknown one has just ended."""
        self._end_if_there((link, request_id), FinishReason.MOVED)

    def cancel_link(self, link: int) -> None:
        """End everything that came over a link that is gone; nobody is told."""
        for request in [r for r in self._requests.values() if r.link == link]:
            self._end(request, FinishReason.CANCELLED)
        self._out = [(to, message) for to, message in self._out if to != link]

    def move_all(self) -> None:
        """Give everything back."""
        for request in list(self._requests.values()):
            self._end(request, FinishReason.MOVED)

    def lend(self, cpus: tuple[int, ...]) -> None:
        """From the next step on these CPUs may be used beside the worker's own."""
        self._crew.lend(cpus)

    def take(self) -> list[tuple[int, M]]:
        """What is to be sent, without computing anything."""
        out, self._out = self._out, []
        return out

    @abstractmethod
    def _end(self, request: R, reason: FinishReason) -> None:
        """Free what the request holds, and say why it ended."""

    def _end_if_there(self, key: Key, reason: FinishReason) -> None:
        request = self._requests.get(key)
        if request is not None:
            self._end(request, reason)

    @abstractmethod
    def _answer(self, link: int, message: Submit | Embed, finish: Finish) -> None:
        """All that is said to something that was not taken in."""

    def _refuse_kind(self, link: int, message: Submit | Embed) -> None:
        """What this engine is not for."""
        why = "this worker's model is of another kind"
        self._answer(link, message, Finish(FinishReason.ERROR, error=why))

    # --- a step -----------------------------------------------------------------------

    def _choose_width(self, phase: Phase) -> None:
        """How many threads the next step has."""
        self._crew.use(self._timing.choose(phase, self._crew.widest))

    def _speeds(self) -> Speeds:
        """With the threads of the next step."""
        return self._timing.speeds(self._crew.width)

    def _announce(self, sequences: int, prefill: int) -> None:
        """Tell whoever watches what the next step is expected to take."""
        if self._before_step is not None:
            self._before_step(self._timing.own_s(sequences, prefill))

    def _measured(
        self,
        compute: Callable[[], tuple[Decoded, T]],
        keys: set[Key],
        *,
        sequences: int,
        prefill: int,
        forced: int = 0,
        settled: bool = True,
        depth: int = 0,
    ) -> tuple[Decoded, T]:
        """Compute a batch with the crew, and learn from how long it took.

        Args:
            keys: whose requests are in it.
            sequences: those of which it decodes a token.
            prefill: tokens of prompts in it.
            forced: those of them that are no prompt's, but output that a grammar has forced.
            settled: whether it takes as long as others of its kind will.
            depth: tokens of context before each that it computes, on average.
        """
        crew = self._crew
        self._computing = keys
        crew.before()
        began, began_s = self._cpu_clock(), self._clock()
        result, computed = compute()
        cpu_s, wall_s = self._cpu_clock() - began, self._clock() - began_s
        crew.after()
        self._computing = set()
        if result is Decoded.OK:
            if settled and not forced:  # a few tokens in one go tell nothing of prompts
                self._timing.observe(
                    crew.width, sequences, prefill, cpu_s=cpu_s, wall_s=wall_s, depth=depth
                )
            self._wide_steps += crew.width > crew.own
            self._prompt_tokens += prefill - forced
            self._failures = 0
        self._steps += 1
        self._lent = crew.lent
        self._step_s = wall_s
        return result, computed

    def _count_failure(self) -> None:
        """A batch failed, and its requests were told.

        Raises:
            EngineFailureError: it was one too many.
        """
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise EngineFailureError(f"{MAX_FAILURES} batches failed in a row")
