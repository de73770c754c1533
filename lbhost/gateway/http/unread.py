"""The memory that answers may take together which their clients do not read. Pure bookkeeping.

A client that asks for 2,048 vectors that are kept has 16 MB written for it in 0.1 s, and 30 s to
read the first of it. Whose unread answers take most loses the one that has waited longest.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

ANSWERS = 64
"""All unread answers together may be as large as so many of the largest bodies…"""

LEAST = 64 << 20
"""…or take so many bytes: whoever allows small bodies only has not said that of answers, and each
client that pauses for a moment has 64 KiB of a stream to read."""


def most(max_body_bytes: int) -> int:
    """Bytes that all unread answers may take."""
    return max(ANSWERS * max_body_bytes, LEAST)


class Reader(Protocol):
    """One that does not keep up."""

    @property
    def owner(self) -> str:
        """Whose it is: the name of its API key; empty: nobody's."""

    @property
    def unread(self) -> int:
        """Bytes that wait for it now."""


class Unread:
    """Of all connections."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes."""
        self.limit = limit
        self._behind: dict[Reader, None] = {}
        """Those that do not keep up, longest first."""

    def begin(self, reader: Reader) -> list[Reader]:
        """It does not keep up. Those that must be dropped for it: never all."""
        self._behind[reader] = None
        sizes = {one: one.unread for one in self._behind}
        total = sum(sizes.values())
        dropped: list[Reader] = []
        while total > self.limit and len(sizes) > 1:
            taken: Counter[str] = Counter()
            for one, size in sizes.items():
                taken[one.owner] += size
            owner = max(taken, key=taken.__getitem__)
            longest = next(one for one in sizes if one.owner == owner)
            total -= sizes.pop(longest)
            self.end(longest)
            dropped.append(longest)
        return dropped

    def end(self, reader: Reader) -> None:
        """It has read, or has gone. Harmless the second time."""
        self._behind.pop(reader, None)
