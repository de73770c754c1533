"""Whose unread answers are given up when all together take too much."""

from __future__ import annotations

from lbhost.gateway.http.unread import ANSWERS, LEAST, Unread, most


class Slow:
    """A client that does not keep up."""

    def __init__(self, owner: str, size: int) -> None:
        self.owner = owner
        self.unread = size


def test_within_the_limit_nobody_is_dropped() -> None:
    unread = Unread(100)
    assert [unread.begin(Slow("a", 50)), unread.begin(Slow("b", 50))] == [[], []]


def test_whose_answers_take_most_loses_the_one_that_has_waited_longest() -> None:
    unread = Unread(100)
    first, honest, second = Slow("flood", 40), Slow("honest", 50), Slow("flood", 30)
    assert [unread.begin(one) for one in (first, honest, second)] == [[], [], [first]]


def test_as_many_as_it_takes_are_dropped_but_never_the_only_one() -> None:
    unread = Unread(100)
    small = [Slow("a", 20) for _ in range(4)]
    for one in small:
        unread.begin(one)
    huge = Slow("a", 500)
    assert unread.begin(huge) == small
    assert unread.begin(Slow("a", 1)) == [huge]


def test_what_was_read_counts_no_more() -> None:
    unread = Unread(100)
    first, second = Slow("a", 60), Slow("a", 60)
    unread.begin(first)
    unread.end(first)
    unread.end(first)
    assert not unread.begin(second)
    second.unread = 10
    assert not unread.begin(Slow("b", 80)), "what is left of it counts"


def test_small_bodies_make_no_small_answers() -> None:
    assert most(4 << 20) == ANSWERS * (4 << 20)
    assert most(1024) == LEAST, "a thousand streams that pause with 64 KiB each"
