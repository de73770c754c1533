"""How much of what a worker writes goes on to the server's log: all, until it floods. Pure.

What a worker writes is kept in memory within bounds; the server's log may be a file that nobody
rotates, and a worker that writes for ever would fill the disk.
"""

from __future__ import annotations

BURST = 256 * 1024
"""Characters at once."""

PER_S = 8 * 1024
"""Characters a second that come back: 0.7 GB a day, of a worker that writes for ever."""

AGAIN = BURST // 2
"""Once it is used up, nothing goes on before so much is there again: pieces that can be read."""


class LogAllowance:
    """Of one worker. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._left = float(BURST)
        self._at_s: float | None = None
        self._silent = False
        self._left_out = 0

    def takes(self, characters: int, lines: int, now_s: float) -> bool:
        """Whether these lines may go on; those that may not are counted."""
        if self._at_s is not None:
            self._left = min(BURST, self._left + (now_s - self._at_s) * PER_S)
        self._at_s = now_s
        self._silent = self._left < (max(AGAIN, characters) if self._silent else characters)
        if self._silent:
            self._left_out += lines
            return False
        self._left -= characters
        return True

    def renew(self) -> None:
        """Another process: it has its own, and the last words of the one before are told."""
        self._left, self._silent = float(BURST), False

    def left_out(self) -> int:
        """Lines that did not go on since this was asked last."""
        count, self._left_out = self._left_out, 0
        return count
