"""How the memory for KV states is split among models."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lbhost.gateway.states import budget
from lbhost.gateway.states.purse import Purse

HELD = st.lists(st.integers(0, 1000), min_size=1, max_size=6)


class Holder:
    """States of one model, in bytes."""

    def __init__(self, held: int = 0) -> None:
        self.bytes = held
        self.limit = 0.0

    def allow(self, limit: float) -> None:
        self.limit = limit
        self.bytes = min(self.bytes, int(max(0.0, limit)))


@given(st.floats(0, 5000), HELD)
def test_together_they_never_keep_more_than_there_is(total: float, held: list[int]) -> None:
    parts = budget.split(total, held)
    kept = sum(min(own, part) for own, part in zip(held, parts, strict=True))
    assert kept <= total + 1e-6


@given(st.floats(0, 5000), HELD)
def test_an_equal_part_is_everybodys_for_sure(total: float, held: list[int]) -> None:
    assert all(part >= total / len(held) for part in budget.split(total, held))


def test_one_model_has_all_of_it() -> None:
    assert budget.split(100.0, [30]) == [100.0]


def test_what_others_do_not_hold_is_anybodys_until_they_want_their_part() -> None:
    purse, one, two = Purse(100), Holder(), Holder()
    purse.add(one)
    purse.add(two)
    one.bytes = 90
    purse.spread()
    assert (one.bytes, two.limit) == (90, 50.0)
    two.bytes = 40
    purse.spread()
    assert (one.bytes, two.bytes) == (60, 40)


def test_memory_that_is_short_is_given_back_once_not_by_everybody() -> None:
    purse, one, two = Purse(100), Holder(50), Holder(50)
    purse.add(one)
    purse.add(two)
    purse.settle(available=80.0, total=1000.0)  # 100 are to be left: 20 are missing
    assert one.bytes + two.bytes == 80


def test_auto_is_settled_once_for_all() -> None:
    purse, one, two = Purse(None), Holder(), Holder()
    purse.add(one)
    purse.add(two)
    purse.settle(available=4e9, total=8e9)
    assert purse.budget == 1e9
    assert one.limit == two.limit == 1e9, "nobody holds anything yet"


def test_a_smaller_budget_counts_at_once() -> None:
    purse, one = Purse(100), Holder(100)
    purse.add(one)
    purse.want(10)
    assert one.bytes == 10
    assert not purse.empty
    assert Purse(0).empty
