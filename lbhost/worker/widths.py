"""How many threads a step had better have: measured, per kind of step. Pure but for its state.

A width's *gain* is the time that one's own threads would take, by the speed meter, over the wall
time that the step took with so many threads. Wall time, because a thread that waits for a
disturbed one sleeps. A width is tried when the next smaller one has paid, and kept while it pays;
all are looked at again now and then, because neighbours come and go.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from lbhost.placement.gain import WidthGain

PAYS = 1.04
"""A wider step must be so many times as fast as the next narrower one."""

WEIGHT = 0.2
"""Of the newest step in a gain, of which there have been more than…"""

SURE = 5
"""…so many: a mean of fewer."""

DOUBTS = 4
"""So often a width that was measured not to pay, or not to pay any more, is looked at again soon:
after 4, 8, 16 and 32 steps. Its core's owner may not have been done, or all cores slow for a moment
(what the own threads take was measured up to 64 steps ago)."""

LOOK_AGAIN = 64
"""Every so many steps of a kind, one is computed with another width, so that all are known."""

FIRST_OWN = 8
"""The step of a kind, of those for which cores were lent, that the own threads compute alone if
they have not yet…"""

EARLY = frozenset({FIRST_OWN, 32})
"""…and those that they compute in any case: the one before may have touched all memory for the
first time."""

SUPPOSED = 0.7
"""What each thread as many as the own ones adds to their speed, until it is measured: two cores of
an EPYC computed prompts 1.5 to 1.8 times as fast as one."""

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Threads beyond the own ones that are worth telling apart."""


class Phase(enum.Enum):
    """What a step mostly computes: prompts, or one token of each sequence."""

    PREFILL = "prefill"
    DECODE = "decode"

    @classmethod
    def of(cls, prefill: int) -> Phase:
        """That of a step with so many tokens of prompts in it."""
        return cls.PREFILL if prefill else cls.DECODE


class Widths:
    """See the module. Widths count threads; `own` is the narrowest."""

    def __init__(self, own: int = 1, known: Sequence[WidthGain] = ()) -> None:
        """
        Args:
            known: gains that were measured before; they stand until they are measured here. One
                of 0 is none: nothing was computed while it was measured.
        """
        self._own = own
        self._gains: dict[tuple[Phase, int], float] = {}
        for one in known:
            for phase, gain in ((Phase.PREFILL, one.prefill), (Phase.DECODE, one.decode)):
                if gain > 0:
                    self._gains[phase, one.threads] = gain
        self._known = {one.threads for one in known if one.threads > own}
        self._seen: dict[tuple[Phase, int], int] = {}
        """How often gains were measured here."""
        self._looked: dict[tuple[Phase, int], int] = {}
        """In which step of its kind a width was last taken."""
        self._doubts: dict[tuple[Phase, int], int] = {}
        """How often a width was looked at since it has not paid."""
        self._steps = dict.fromkeys(Phase, 0)

    def choose(self, phase: Phase, widest: int, *, known: bool) -> int:
        """Threads of the next step.

        Args:
            widest: threads that there are.
            known: whether the speed of the own threads has been measured.
        """
        if widest <= self._own:
            return self._own
        self._steps[phase] += 1
        width = self._choose(phase, widest, known=known)
        self._looked[phase, width] = self._steps[phase]
        return width

    def _choose(self, phase: Phase, widest: int, *, known: bool) -> int:
        if not known and self._steps[phase] >= FIRST_OWN:
            return self._own
        best, untried = self._best(phase, widest)
        if untried is not None and (known or best == self._own or self._measures(phase)):
            if (phase, untried) in self._seen:
                self._doubts[phase, untried] = self._doubts.get((phase, untried), 0) + 1
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
        count = self._seen[key] = min(self._seen.get(key, 0) + 1, SURE)
        weight = max(WEIGHT, 1 / count)
        before = self._gains.get(key, gain)
        self._gains[key] = before + weight * (gain - before)

    def suppose(self, phase: Phase, width: int) -> float:
        """What a width's gain may be, and is taken for until it is measured, for the first step of
        all: there is nothing yet that a gain could be measured by."""
        if width > self._own:
            beyond = (width - self._own) / self._own
            self._gains.setdefault((phase, width), 1 + SUPPOSED * beyond)
        return self.gain(phase, width)

    def rebase(self, phase: Phase, ratio: float) -> None:
        """The own threads take so many times as long as was supposed; so the gains that were
        measured by what was supposed are as many times what they were. Those that were known
        before are not: a first step, which touches all memory, would make them look useless."""
        for key in [key for key in self._seen if key[0] is phase]:
            self._gains[key] *= ratio

    def gain(self, phase: Phase, width: int) -> float:
        """How many times as fast as the own threads; 1 where it is not known."""
        return self._gains.get((phase, width), 1.0) if width > self._own else 1.0

    def _measures(self, phase: Phase) -> bool:
        """Whether there is something that an untried width could be measured by."""
        return any(of is phase for of, _ in self._seen)

    def _best(self, phase: Phase, widest: int) -> tuple[int, int | None]:
        """The width that pays, and the one beyond it if that is to be tried: it never was and
        nothing is known of a still wider one that pays, or it is doubtful."""
        best, gain = self._own, self._gains.get((phase, self._own), 1.0)
        gains = {width: self._gains.get((phase, width)) for width in self._sizes(widest)}
        for width, found in gains.items():
            if found is None:
                wider = [known or 0.0 for more, known in gains.items() if more > width]
                if max(wider, default=0.0) >= gain * PAYS:
                    continue
                return best, width
            if found < gain * PAYS:
                return best, width if self._doubtful(phase, width) else None
            best, gain = width, found
            self._doubts.pop((phase, width), None)
        return best, None

    def _doubtful(self, phase: Phase, width: int) -> bool:
        """Whether a width that was measured not to pay is worth another look by now."""
        doubts = self._doubts.get((phase, width), 0)
        since = self._steps[phase] - self._looked.get((phase, width), 0)
        return (phase, width) in self._seen and doubts < DOUBTS and since > 4 << doubts

    def _sizes(self, widest: int) -> list[int]:
        sizes = {self._own + size for size in _SIZES} | self._known
        return [*sorted(size for size in sizes if size < widest), widest]
