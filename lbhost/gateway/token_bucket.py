"""A token bucket: how much of something may be used now. Pure: the clock is handed in.

It holds a minute's worth and fills evenly. What was used may turn out to be more than was taken
at first; the bucket is then in debt, and nothing can be taken before that is paid.
"""

from __future__ import annotations

MINUTE_S = 60.0


class TokenBucket:
    """Full at first."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at = now

    def level(self, now: float) -> float:
        """What is in it; negative: a debt."""
        passed = max(0.0, now - self._at)
        self._at = max(self._at, now)
        self._level = min(self.per_minute, self._level + passed * self.per_minute / MINUTE_S)
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Use so much, whether it is there or not; a negative amount is given back."""
        self._level = min(self.per_minute, self.level(now) - amount)

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until so much is there; never, if it is more than a minute's worth."""
        missing = amount - self.level(now)
        return max(0.0, missing) * MINUTE_S / self.per_minute

    def reset_s(self, now: float) -> float:
        """Seconds until it is full."""
        return self.wait_s(self.per_minute, now)

    def change(self, per_minute: int, now: float) -> None:
        """Another limit from now on; what was used stays used, in proportion."""
        part = self.level(now) / self.per_minute
        self.per_minute = per_minute
        self._level = part * per_minute
