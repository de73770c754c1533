"""The last two minutes of a reading, in slots aligned to the clock. Pure: time is passed in.

Aligned slots mean that a sparkline moves only when a slot ends, and not with every reading:
calmer to look at, and fewer bytes to send.
"""

from __future__ import annotations

from collections import deque

SLOT_S = 2.0
SLOTS = 60


class History:
    """Means per slot of `SLOT_S` seconds, for the last `SLOTS` slots."""

    def __init__(self) -> None:
        self._slots: deque[tuple[int, float, int]] = deque(maxlen=SLOTS)
        """(slot number, sum, count), oldest first; slots without a reading are absent."""

    def add(self, now_s: float, value: float) -> None:
        """Note a reading taken at `now_s` (any clock that only goes forward)."""
        slot = int(now_s // SLOT_S)
        if self._slots and self._slots[-1][0] == slot:
            _, total, count = self._slots[-1]
            self._slots[-1] = (slot, total + value, count + 1)
        else:
            self._slots.append((slot, value, 1))

    @property
    def peak(self) -> float:
        """The greatest mean of a slot; 0 without readings."""
        return max((total / count for _, total, count in self._slots), default=0.0)

    def cells(self, now_s: float, width: int) -> list[float | None]:
        """At most `width` means over equal parts of the two minutes, newest last.

        None where nothing was read.
        """
        if width <= 0:
            return []
        group = -(-SLOTS // width)
        count = SLOTS // group
        last = int(now_s // SLOT_S) // group
        sums = [0.0] * count
        counts = [0] * count
        for slot, total, readings in self._slots:
            at = slot // group - last + count - 1
            if 0 <= at < count:
                sums[at] += total
                counts[at] += readings
        return [total / n if n else None for total, n in zip(sums, counts, strict=True)]
