"""Which shapes of workers there are to choose from, and which measured one to take. Pure.

A shape is so many workers of so many threads. One thread each is the shape to beat: a neighbour on
one core then slows one worker and not all. So a wider shape must earn its place at full load, and
by more than noise gives.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence

import msgspec

from lbhost.errors import UsageError
from lbhost.machine.topology import Topology
from lbhost.placement.gain import WidthGain
from lbhost.placement.placement import Placement
from lbhost.placement.plan import plan

WIN = 1.1
"""So many times as fast a wider shape must be. Two rounds of the starter model on two
quiet cores differ by 3%, on busy ones by 20%."""
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 64
"""The request that prefill and decode are weighed by: a short chat turn."""
MOST_SLOTS = 64
SLOT_TOKENS = 256
"""Context of a measured slot. Short: how wide a worker should be is decided by the weights."""
_ENOUGH_CORES = 0.75
"""A shape that leaves more than a quarter of the cores unused is none."""


class Shape(msgspec.Struct, frozen=True, order=True):
    """So many workers of so many threads."""

    threads: int
    workers: int

    def __str__(self) -> str:
        return f"{self.workers} x {self.threads}"

    @classmethod
    def named(cls, name: str) -> Shape | None:
        """What has this name; None if it is none."""
        workers, _, threads = name.partition(" x ")
        if not (workers.isdecimal() and threads.isdecimal() and int(workers) and int(threads)):
            return None
        return cls(threads=int(threads), workers=int(workers))


class Speeds(msgspec.Struct, frozen=True):
    """What all workers of a shape did at once, tokens per second."""

    prefill: float
    decode: float | None
    """None: the model embeds, and decodes nothing."""
    waited: float = 0.0
    """Part of the time in which a worker was ready to run and had no CPU: another program's doing,
    and taken out of the speeds."""

    @property
    def requests_s(self) -> float:
        """Requests of PROMPT_TOKENS and OUTPUT_TOKENS a second at full load."""
        if self.decode is None:
            return self.prefill / PROMPT_TOKENS
        if self.prefill <= 0 or self.decode <= 0:
            return 0.0
        return 1 / (PROMPT_TOKENS / self.prefill + OUTPUT_TOKENS / self.decode)


class Candidate(msgspec.Struct, frozen=True):
    """A shape, and the part of it that is measured."""

    shape: Shape
    placements: tuple[Placement, ...]
    """Workers on one NUMA node: each has its own memory bus, and its own copy of the weights."""
    slots: int
    """Of each worker. All shapes hold the same number of sequences, as far as a worker can."""


def slots_of(slots: int, threads: int) -> int:
    """Slots of a worker so wide, where one of a single thread has `slots`.

    A worker reads its weights once for all of its sequences: a shape of fewer workers with no more
    slots each would only ever be the smaller server.
    """
    return max(slots, min(MOST_SLOTS, slots * threads))


def candidates(topology: Topology, slots: int, *, thorough: bool = False) -> list[Candidate]:
    """The shapes that fit a box, one thread each first, then wider ones.

    Args:
        slots: sequences of a worker of one thread.
        thorough: every power of two, instead of one thread, two, half of the cores and all.
    """
    cores = topology.effective_cores
    narrow = plan(topology, "auto", 1)
    found: list[Candidate] = []
    for threads in _widths(cores, thorough=thorough):
        try:
            places = plan(topology, "auto", threads)
        except UsageError:
            continue
        measured = tuple(place for place in places if place.node == narrow[0].node)
        if not measured or len(places) * threads < _ENOUGH_CORES * len(narrow):
            continue
        shape = Shape(threads=threads, workers=len(places))
        found.append(Candidate(shape, measured, slots_of(slots, threads)))
    return found


def _widths(cores: int, *, thorough: bool) -> list[int]:
    if not thorough:
        return sorted({1, min(2, cores), max(1, cores // 2), cores})
    powers = itertools.takewhile(lambda width: width < cores, (2**i for i in range(16)))
    return sorted({*powers, max(1, cores // 2), cores})


Rounds = Mapping[Shape, Sequence[Speeds]]
"""One reading a round; shapes that had lost were measured in fewer."""


def choose(rounds: Rounds) -> Shape:
    """The fewest threads that no wider shape beats.

    What ties goes to fewer threads, and one lucky reading does not win.

    Raises:
        ValueError: nothing was measured.
    """
    if not rounds or not all(rounds.values()):
        raise ValueError("no shape was measured")
    best, *wider = sorted(rounds)
    for shape in wider:
        if _beats(rounds[shape], rounds[best]):
            best = shape
    return best


def contenders(rounds: Rounds) -> list[Shape]:
    """The shapes for which another round can still change what `choose` says, and the narrowest.

    Only one left means that it is settled.
    """
    narrowest, *wider = sorted(rounds)
    return [narrowest, *(s for s in wider if _beats(rounds[s], rounds[narrowest]))]


def _beats(wide: Sequence[Speeds], narrow: Sequence[Speeds]) -> bool:
    """WIN times as fast in every round that there was; of four and more, in three of four."""
    if len(wide) < len(narrow):
        return False  # it had lost before
    both = zip(wide, narrow, strict=False)
    ratios = sorted(a.requests_s / b.requests_s if b.requests_s else 0.0 for a, b in both)
    return ratios[len(ratios) // 4] >= WIN


def gains_of(speeds: Mapping[str, Speeds], own: int) -> tuple[WidthGain, ...]:
    """How many times as fast one wide worker is as one of `own` threads, of those that were
    measured, with all workers of their shapes at once.

    Each has as many sequences a thread as the other: of a lone one it says whether a width pays,
    and about how much.

    Args:
        speeds: by the shapes' names.
    """
    each = {
        shape.threads: (found.prefill / shape.workers, (found.decode or 0.0) / shape.workers)
        for name, found in speeds.items()
        if (shape := Shape.named(name)) is not None
    }
    prefill, decode = each.get(own, (0.0, 0.0))
    if prefill <= 0 or decode <= 0:
        return ()
    return tuple(
        [
            WidthGain(threads, wide[0] / prefill, wide[1] / decode)
            for threads, wide in sorted(each.items())
            if threads > own
        ]
    )


def speed(readings: Sequence[Speeds]) -> Speeds:
    """The middle of some readings."""
    decodes = [r.decode for r in readings if r.decode is not None]
    return Speeds(
        prefill=statistics.median(r.prefill for r in readings),
        decode=statistics.median(decodes) if decodes else None,
        waited=statistics.median(r.waited for r in readings),
    )
