"""How long answers turn out to be, from those that have ended. Pure: no clock.

An answer that ended by itself tells its length; one that was cut off at its limit tells that it
would have been longer. Both count, by Kaplan and Meier's estimate of how many are longer than
t, S(t): what a request of at most m tokens produces on average is the sum of S(t) for t < m.
"""

from __future__ import annotations

import bisect
from collections import deque

KEPT = 256
"""Answers that are remembered."""

FIRST_GUESS = (32, 96, 160, 224)
"""Lengths believed before any answer has ended; they are forgotten like others."""

REFRESH = 8
"""The estimate is made anew after so many answers: it takes a tenth of a millisecond."""


class Lengths:
    """The lengths of the answers of one model."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, bool]] = deque(((n, False) for n in FIRST_GUESS), maxlen=KEPT)
        """Tokens, and whether it was cut off."""
        self._new = REFRESH
        self._at: list[int] = []
        """Lengths, rising; and for each the mean of what lies below it, and S from it on."""
        self._below: list[float] = []
        self._longer: list[float] = []

    def add(self, tokens: int, *, cut_off: bool) -> None:
        """An answer has ended, by itself or at its limit."""
        self._seen.append((tokens, cut_off))
        self._new += 1

    def expected(self, limit: int, done: int = 0) -> int:
        """Output tokens still to come of a request that may have so many and has `done` of them.

        At least 1, at most what is left. Beyond the longest answer that was seen, what was longer
        is taken to end at its double.
        """
        if self._new >= REFRESH:
            self._estimate()
        left = max(1, limit - done)
        if not done:
            return max(1, min(left, round(self._sum(limit))))
        i = bisect.bisect_right(self._at, done) - 1
        longer = self._longer[i] if i >= 0 else 1.0
        if longer <= 0.0:
            return left
        return max(1, min(left, round((self._sum(limit) - self._sum(done)) / longer)))

    def _sum(self, limit: int) -> float:
        """Of S(t) over t < limit."""
        i = bisect.bisect_right(self._at, limit) - 1
        if i < 0:
            return float(limit)
        beyond = min(limit, 2 * self._at[-1]) - self._at[i]
        return self._below[i] + self._longer[i] * max(0, beyond)

    def _estimate(self) -> None:
        self._new = 0
        self._at, self._below, self._longer = [], [], []
        at_risk = len(self._seen)
        longer, below, before = 1.0, 0.0, 0
        # Of equal lengths those that ended by themselves come first.
        for tokens, cut_off in sorted(self._seen):
            below += longer * (tokens - before)
            before = tokens
            if not cut_off:
                longer *= 1 - 1 / at_risk
            at_risk -= 1
            if self._at and self._at[-1] == tokens:
                self._longer[-1] = longer
            else:
                self._at.append(tokens)
                self._below.append(below)
                self._longer.append(longer)
