"""Who is to blame for a worker's end."""

from __future__ import annotations

import itertools

import pytest

from lbhost.gateway.scheduling import suspicion
from lbhost.gateway.scheduling.suspicion import Condemned, Death, Ends, Trust, settle, trust

_epochs = itertools.count(1)


def death(
    counts: bool | None, alone: bool = False, at: float = 0.0, epoch: int | None = None
) -> Death:
    """Of a process of its own, if none is named."""
    return Death(0, epoch or next(_epochs), alone, at, counts)


@pytest.mark.parametrize(
    ("deaths", "expected"),
    [
        ([], Trust.ANYWHERE),
        ([death(True)], Trust.ANYWHERE),
        ([death(True, alone=True)], Trust.ANYWHERE),
        ([death(None)], Trust.ANYWHERE),
        ([death(False, alone=True)] * 50, Trust.ANYWHERE),
        ([death(True)] * 2, Trust.ALONE),
        ([death(True, epoch=1), death(True, alone=True, epoch=1)], Trust.ALONE),
        ([death(True, alone=True, epoch=1)] * 3 + [death(True)], Trust.NOWHERE),
        ([death(True), death(False, alone=True), death(True)], Trust.ALONE),
        ([death(True), death(None, alone=True)], Trust.LATER),
        ([death(None)] * 2, Trust.LATER),
        ([death(True), death(True, alone=True)], Trust.NOWHERE),
        ([death(True)] * 2 + [death(True, alone=True)], Trust.NOWHERE),
        ([death(True)] * 2 + [death(None, alone=True)], Trust.LATER),
        ([death(True)] * 2 + [death(False, alone=True)], Trust.ALONE),
    ],
)
def test_only_crashes_count_and_only_one_alone_condemns(
    deaths: list[Death], expected: Trust
) -> None:
    assert trust(deaths, 0.0) is expected


def test_without_the_supervisors_word_a_death_does_not_count() -> None:
    deaths = [death(True, alone=True), death(None, alone=True, at=10.0)]
    assert trust(deaths, 10.0 + suspicion.WORD_S / 2) is Trust.LATER
    assert trust(deaths, 10.0 + suspicion.WORD_S) is Trust.ANYWHERE


def test_the_supervisors_word_is_taken_before_the_link_ends_and_after() -> None:
    ends = Ends()
    ends.add(3, 7, True)
    early = ends.death(3, 7, 1.0, alone=True)
    late = ends.death(3, 8, 1.0, alone=False)
    assert (early.counts, late.counts) == (True, None)
    assert not settle([early, late], 3, 9, 1.0, True)
    assert not settle([late], 3, 8, 1.0 + suspicion.LATE_S, True)
    assert settle([early, late], 3, 8, 1.0, False)
    assert (early.counts, late.counts) == (True, False)
    assert not settle([late], 3, 8, 1.0, True)


def test_what_is_remembered_is_bounded() -> None:
    ends, condemned = Ends(), Condemned()
    assert not condemned
    for number in range(3 * suspicion.KEPT):
        ends.add(number, 1, True)
        condemned.add(f"{number}", 0.0)
    assert ends.death(0, 1, 0.0, alone=True).counts is None
    assert not condemned.holds("0", 0.0)
    newest = f"{3 * suspicion.KEPT - 1}"
    assert condemned.holds(newest, suspicion.REFUSED_S - 1.0)
    assert not condemned.holds(newest, suspicion.REFUSED_S)
    assert len(condemned._until) <= suspicion.KEPT
