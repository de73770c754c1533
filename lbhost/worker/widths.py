"""How many threads a step had better have: measured, per kind of step. Pure but for its state.

A width's *gain* is the time that one's own threads would take, by the speed meter, over the wall
time that the step took with so many threads. Wall time, because a thread that waits for a
disturbed one sleeps. A width is tried when the next smaller one has paid, and kept while it pays;
all are looked at again now and then, because neighbours come and go.
"""

from __future__ import annotations

import enum

PAYS = 1.04
"""A wider step must be so many times as fast as the next narrower one."""

WEIGHT = 0.2
"""Of the newest step in a gain."""

LOOK_AGAIN = 64
"""Every so many steps of a kind, one is computed with another width, so that all are known."""

EARLY = frozenset({4, 8, 16, 32})
"""Steps of a kind at which a young worker computes with its own threads: their speed has been
measured once by then, in a step that touched all memory for the first time."""

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Threads beyond the own ones that are worth telling apart."""


class Phase(enum.Enum):
    """What a step mostly computes: prompts, or one token of each sequence."""

    PREFILL = "prefill"
    DECODE = "decode"


class Widths:
    """See the module. Widths count threads; `own` is the narrowest."""

    def __init__(self, own: int = 1) -> None:
        self._own = own
        self._gains: dict[tuple[Phase, int], float] = {}
        self._steps = dict.fromkeys(Phase, 0)

    def choose(self, phase: Phase, widest: int, *, known: bool) -> int:
        """Threads of the next step.

        Args:
            widest: threads that there are.
            known: whether the speed of the own threads has been measured; until then they
                compute alone, because a gain would mean nothing.
        """
        if widest <= self._own or not known:
            return self._own
        best, untried = self._best(phase, widest)
        self._steps[phase] += 1
        if untried is not None:
            return untried
        turn, rest = divmod(self._steps[phase], LOOK_AGAIN)
        if turn == 0 and rest in EARLY:
            return self._own
        if rest:
            return best
        again = [self._own, *self._sizes(widest)]
        return again[turn % len(again)]

    def observe(self, phase: Phase, width: int, own_s: float, wall_s: float) -> None:
        """A step is over.

        Args:
            own_s: seconds that the own threads are predicted to take for it.
            wall_s: seconds that it took.
        """
        if own_s <= 0 or wall_s <= 0:
            return
        gain, key = own_s / wall_s, (phase, width)
        before = self._gains.get(key)
        self._gains[key] = gain if before is None else before + WEIGHT * (gain - before)

    def gain(self, phase: Phase, width: int) -> float:
        """How many times as fast as the own threads; 1 where it is not known."""
        return self._gains.get((phase, width), 1.0) if width > self._own else 1.0

    def _best(self, phase: Phase, widest: int) -> tuple[int, int | None]:
        """The width that pays, and the one beyond it if that was never tried."""
        best, gain = self._own, self._gains.get((phase, self._own), 1.0)
        for width in self._sizes(widest):
            found = self._gains.get((phase, width))
            if found is None:
                return best, width
            if found < gain * PAYS:
                return best, None
            best, gain = width, found
        return best, None

    def _sizes(self, widest: int) -> list[int]:
        beyond = widest - self._own
        return [self._own + size for size in _SIZES if size < beyond] + [widest]
