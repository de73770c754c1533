"""Which KV states there are, by their exact tokens. Pure but for its state: closes nothing.

Tokens are compared themselves, never hashes of them: a prompt cache that mixed up conversations
has happened (llama.cpp #27148). The states of a scope are kept in the order of their packed tokens:
the one that has most in common with a prompt is then a neighbour of the place where the prompt
would stand, and what a state has in common with any other it has with a neighbour.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import msgspec

from lbhost.wire import common_prefix


class Entry(msgspec.Struct, eq=False):
    """A state in the store. Compared by identity."""

    scope: int
    tokens: bytes
    """wire.pack_tokens."""
    fd: int
    """The store's owner's to close."""
    size: int
    """Bytes."""
    used: float
    """When it was last of use, or came; seconds of the owner's clock."""
    uses: int = 0
    """How often a worker has gone on from it, or from the beginning that it took the place of."""
    deaths: int = 0
    """Workers that ended by themselves while they were to load it."""
    file: Path | None = None
    """That holds it, too; its owner's to remove. It may have made room for others since."""
    shared: int = 0
    """How many of its tokens, from the first on, another state holds too; the store's to write."""

    @property
    def count(self) -> int:
        """Tokens."""
        return len(self.tokens) // 4


class Match(msgspec.Struct, frozen=True):
    """What was found for a prompt."""

    entry: Entry
    tokens: int
    """That both have in common, from the first on; at least one."""


class _Scope:
    """The states of one scope, in order, and their tokens beside them for bisection."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.entries: list[Entry] = []

    def put(self, at: int, entry: Entry) -> None:
        self.keys.insert(at, entry.tokens)
        self.entries.insert(at, entry)
        self._share(at - 1, at, at + 1)

    def drop(self, at: int) -> Entry:
        del self.keys[at]
        entry = self.entries.pop(at)
        self._share(at - 1, at)
        return entry

    def _share(self, *places: int) -> None:
        """What stands there has other neighbours now."""
        keys = self.keys
        for at in places:
            if 0 <= at < len(keys):
                near = [keys[i] for i in (at - 1, at + 1) if 0 <= i < len(keys)]
                self.entries[at].shared = max(
                    (common_prefix(keys[at], key) for key in near), default=0
                )


_LOOKED_AT = 8
"""States to each side that hold the same part of a prompt: the smallest of them is taken."""


class Store:
    """See the module. What its methods return as removed is the caller's to close."""

    def __init__(self) -> None:
        self._scopes: dict[int, _Scope] = {}
        self.bytes = 0
        self.version = 0
        """Changes with what `find` may answer."""

    def __len__(self) -> int:
        return sum(len(scope.keys) for scope in self._scopes.values())

    def __iter__(self) -> Iterator[Entry]:
        for scope in self._scopes.values():
            yield from scope.entries

    def find(self, scope: int, tokens: bytes) -> Match | None:
        """The state that holds most of a prompt from its first token on."""
        mine = self._scopes.get(scope)
        if mine is None:
            return None
        at = bisect_left(mine.keys, tokens)
        near = [i for i in (at - 1, at) if 0 <= i < len(mine.keys)]
        most, best = max(((common_prefix(mine.keys[i], tokens), i) for i in near), default=(0, 0))
        if not most:
            return None
        start = tokens[: 4 * most]
        for steps in (range(best - 1, best - _LOOKED_AT, -1), range(best + 1, best + _LOOKED_AT)):
            for i in steps:
                if not (0 <= i < len(mine.keys) and mine.keys[i].startswith(start)):
                    break
                if mine.entries[i].size < mine.entries[best].size:
                    best = i
        return Match(mine.entries[best], most)

    def add(self, entry: Entry) -> list[Entry]:
        """Take a state in. Returns those that are not needed any more: the beginning of it, or
        itself where a state holds all of it already.
        """
        mine = self._scopes.setdefault(entry.scope, _Scope())
        at = bisect_left(mine.keys, entry.tokens)
        if at < len(mine.keys) and mine.keys[at].startswith(entry.tokens):
            held = mine.entries[at]
            held.used = max(held.used, entry.used)
            if held.file is None and held.tokens == entry.tokens:  # it is in that file, too
                held.file, entry.file = entry.file, None
            return [entry]
        removed: list[Entry] = []
        # None is the beginning of another, so that at most the one before is this one's.
        if at and entry.tokens.startswith(mine.keys[at - 1]):
            at -= 1
            removed.append(self._drop(mine, at))
            entry.uses += removed[0].uses + 1
        mine.put(at, entry)
        self.bytes += entry.size
        self.version += 1
        return removed

    def remove(self, entry: Entry) -> bool:
        """Forget a state; False if it is not there any more."""
        mine = self._scopes.get(entry.scope)
        at = bisect_left(mine.keys, entry.tokens) if mine is not None else 0
        if mine is None or at == len(mine.keys) or mine.entries[at] is not entry:
            return False
        self._drop(mine, at)
        if not mine.keys:
            del self._scopes[entry.scope]
        return True

    def shrink(self, most_bytes: float, most_entries: int, now: float) -> list[Entry]:
        """Forget what is missed least until the rest is within the limits; first of all what fits
        in none: however much it is missed, the others would go for nothing."""
        removed: list[Entry] = []
        count = len(self)
        if self.bytes <= most_bytes and count <= most_entries:
            return removed
        for entry in [entry for entry in self if entry.size > most_bytes]:
            self.remove(entry)
            removed.append(entry)
        heap = [(value(entry, now), place, entry) for place, entry in enumerate(self)]
        heapq.heapify(heap)
        while self.bytes > most_bytes or count - len(removed) > most_entries:
            worth, place, entry = heapq.heappop(heap)
            # What it shared with those that have gone meanwhile is its own now.
            worth_now = value(entry, now)
            if worth_now > worth:
                heapq.heappush(heap, (worth_now, place, entry))
                continue
            self.remove(entry)
            removed.append(entry)
        return removed

    def _drop(self, mine: _Scope, at: int) -> Entry:
        entry = mine.drop(at)
        self.bytes -= entry.size
        self.version += 1
        return entry


RECENT_S = 60.0

MOST_USES = 3
"""Uses that count: a conversation of many turns goes, too, when it has rested for some minutes."""


def value(entry: Entry, now: float) -> float:
    """What its loss costs: tokens that nobody else holds and would be computed again, per byte,
    the more probably the more often it was of use, and half as probably after RECENT_S of idleness,
    a quarter after three times that, and so on.

    Who was of use within RECENT_S counts as equal: of conversations that take turns and do not all
    fit, the one that was used longest ago is the very next. Those that stay are found each time.
    """
    alone = entry.count - entry.shared
    halvings = int(math.log2(1.0 + max(0.0, now - entry.used) / RECENT_S))
    proven = 1 + min(entry.uses, MOST_USES)
    return (alone + 1) / entry.size * proven / (1 << halvings)
