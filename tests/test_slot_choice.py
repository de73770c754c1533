"""Where a prompt goes: the longest exact prefix, then neighbours, then the oldest."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from lbhost.wire import common_prefix, pack_tokens
from lbhost.worker.slot_choice import Choice, SlotView, choose

tokens = st.lists(st.integers(0, 3), max_size=40)


@given(tokens, tokens)
def test_the_common_prefix_is_counted_token_by_token(a: list[int], b: list[int]) -> None:
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common_prefix(bytearray(pack_tokens(a)), pack_tokens(b)) == expected


def test_half_a_token_in_common_is_nothing_in_common() -> None:
    assert common_prefix(pack_tokens([0x01020304]), pack_tokens([0x0F020304])) == 0
    assert common_prefix(pack_tokens([5, 0x01020304]), pack_tokens([5, 0x0F020304])) == 1


def slot(number: int, matched: int = 0, *, busy: bool = False, used: int = 0) -> SlotView:
    return SlotView(slot=number, busy=busy, matched=matched, last_used=used)


def test_the_longest_match_wins() -> None:
    slots = [slot(0, 5), slot(1, 9), slot(2, 7)]
    assert choose(slots, 20, None) == Choice(1, 9)


def test_the_last_prompt_token_is_always_computed_again() -> None:
    assert choose([slot(0, 20)], 20, None) == Choice(0, 19)


def test_without_a_match_the_least_recently_used_slot_is_taken() -> None:
    assert choose([slot(0, used=3), slot(1, used=1), slot(2, used=2)], 9, None) == Choice(1, 0)


def test_a_neighbour_of_the_busy_slots_is_preferred_to_an_older_one() -> None:
    slots = [slot(0, busy=True, used=9), slot(1, used=5), slot(2, used=1), slot(3, used=2)]
    assert choose(slots, 9, None) == Choice(1, 0)


def test_only_what_is_computed_along_with_the_prompt_counts_as_its_neighbour() -> None:
    others = [slot(0, busy=True), slot(1, used=5), slot(2, used=1), slot(3, busy=True)]
    assert choose(others, 9, None) == Choice(2, 0)
    others[3] = msgspec.structs.replace(others[3], along=False)
    assert choose(others, 9, None) == Choice(1, 0), "beside one with the same adapter"
    others[0] = msgspec.structs.replace(others[0], along=False)
    assert choose(others, 9, None) == Choice(2, 0), "beside nobody: the oldest"


def test_with_all_slots_busy_there_is_no_choice() -> None:
    assert choose([slot(0, busy=True)], 9, None) is None


def test_a_much_longer_prefix_in_a_busy_slot_is_copied() -> None:
    slots = [slot(0, 100, busy=True), slot(1, 10)]
    assert choose(slots, 200, 50) == Choice(1, 100, copy_from=0)


def test_a_copy_that_does_not_pay_is_not_made() -> None:
    slots = [slot(0, 100, busy=True), slot(1, 60)]
    assert choose(slots, 200, 50) == Choice(1, 60)
    assert choose(slots, 200, None) == Choice(1, 60)


def test_a_copied_prefix_too_leaves_the_last_token_to_compute() -> None:
    slots = [slot(0, 100, busy=True), slot(1)]
    assert choose(slots, 100, 50) == Choice(1, 99, copy_from=0)


def test_a_copy_that_just_pays_is_made() -> None:
    slots = [slot(0, 110, busy=True), slot(1, 60)]
    assert choose(slots, 200, 51) == Choice(1, 60)
    assert choose(slots, 200, 50) == Choice(1, 110, copy_from=0)
