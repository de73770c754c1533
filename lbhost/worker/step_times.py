"""What decode steps of so many sequences take, and how many rows to compute for them. Pure but for
its state.

No line fits them: llama.cpp's matrix kernels take rows four at a time, and what is left over one
by one. On a core of a Zen 5 EPYC steps of 1 to 8 sequences of the starter model (Q4_0) take 5, 12,
17, 16, 24, 28, 34 and 25 ms: seven sequences are sooner done as eight, with one that is forgotten.
So every number has a mean of its own, and whether filling up pays is measured.
"""

from __future__ import annotations

BLOCK = 4
"""Rows that the kernels take at a time."""

PAYS = 0.97
"""A filled step must take less than this part of one that is not."""

DECAY = 0.95
"""Weight of the past, a step: a box becomes slower or faster within a second."""

SETTLED = 16
"""Steps of one number from which on its changes are the box's: the others change with it."""

BASE_SHARE = 0.3
"""Of a one-sequence step, what does not grow with more sequences; for numbers beyond those that
were measured."""

EARLY = 4
"""Steps that are filled to see what that takes."""

LOOK_AGAIN = 64
"""Of the steps that could be filled, one in so many is computed the other way…"""

CLOSE = 1.25
"""…unless that takes more than so many times as long: kernels do not change."""


class StepTimes:
    """See the module. Rows count from 1; times are seconds of CPU time."""

    def __init__(self) -> None:
        self._mean: dict[int, float] = {}
        self._seen: dict[int, int] = {}
        self._turns: dict[int, int] = {}
        """Steps of so many sequences that could have been filled."""

    def observe(self, rows: int, seconds: float) -> None:
        """Take in a step that computed nothing else."""
        before, seen = self._mean.get(rows), self._seen.get(rows, 0)
        self._seen[rows] = seen + 1
        if before is None:
            self._mean[rows] = seconds
            return
        # The plain mean of the first steps, then one that forgets.
        now = before + max(1 - DECAY, 1 / (seen + 1)) * (seconds - before)
        if seen >= SETTLED:
            for other in self._mean:
                self._mean[other] *= now / before
        self._mean[rows] = now

    def rows(self, sequences: int, most: int, *, tells: bool = True) -> int:
        """How many rows to compute for so many sequences: they, or the next whole block.

        Args:
            most: rows that there could be.
            tells: whether `observe` will be told of the step; else nothing is tried by it.
        """
        filled = _filled(sequences)
        alone_s = self._mean.get(sequences)
        if filled == sequences or filled > most or alone_s is None:
            return sequences
        if not tells:
            return filled if self._pays(sequences) else sequences
        turn = self._turns[sequences] = self._turns.get(sequences, 0) + 1
        filled_s = self._mean.get(filled)
        if filled_s is None or turn <= EARLY:
            return filled if turn <= EARLY else sequences
        better, worse = sequences, filled
        if self._pays(sequences):
            better, worse = filled, sequences
        close = max(alone_s, filled_s) < CLOSE * min(alone_s, filled_s)
        return worse if close and turn % LOOK_AGAIN == 0 else better

    def table(self, count: int, most: int) -> tuple[float, ...]:
        """Seconds of steps of 1 to `count` sequences, filled up where that pays; empty as long as
        nothing was measured.

        Args:
            most: as in `rows`.
        """
        if not self._mean:
            return ()
        return tuple([self._seconds(sequences, most) for sequences in range(1, count + 1)])

    def _seconds(self, sequences: int, most: int) -> float:
        filled = _filled(sequences)
        fill = filled <= most and self._pays(sequences)
        return self._rows_s(filled if fill else sequences)

    def _pays(self, sequences: int) -> bool:
        filled = _filled(sequences)
        if filled == sequences or filled not in self._mean or sequences not in self._mean:
            return False
        return self._mean[filled] < PAYS * self._mean[sequences]

    def _rows_s(self, rows: int) -> float:
        """Measured, or between its neighbours, or beyond the last as BASE_SHARE has it."""
        known = self._mean.get(rows)
        if known is not None:
            return known
        below = max((n for n in self._mean if n < rows), default=None)
        above = min((n for n in self._mean if n > rows), default=None)
        if below is not None and above is not None:
            part = (rows - below) / (above - below)
            return self._mean[below] + part * (self._mean[above] - self._mean[below])
        nearest = above if below is None else below
        assert nearest is not None
        return self._mean[nearest] * _shape(rows) / _shape(nearest)


def _filled(sequences: int) -> int:
    """The next whole block; they themselves where that is more than twice as many."""
    filled = -(-sequences // BLOCK) * BLOCK
    return filled if filled < 2 * sequences else sequences


def _shape(rows: int) -> float:
    return BASE_SHARE + (1 - BASE_SHARE) * rows
