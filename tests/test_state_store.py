"""The store: exact tokens, what is found, what is given up."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbhost.gateway.states import store as states
from lbhost.gateway.states.budget import AUTO_MOST, allowed, settle
from lbhost.gateway.states.store import Entry, Store
from lbhost.wire import common_prefix, pack_tokens

SIZE = 1000


def rounds(conversations: int, room: int) -> int:
    """Conversations take turns, ten times, one a second, in a store for so many: how often one
    finds its own."""
    store, found, now = Store(), 0, 0.0
    for turn in range(1, 11):
        for one in range(conversations):
            now += 1.0
            tokens = [one + 1] * turn
            match = store.find(0, pack_tokens(tokens))
            found += match is not None
            store.add(entry(tokens, used=now))
            store.shrink(math.inf, room, now)
    return found


def entry(tokens: list[int], scope: int = 0, used: float = 0.0) -> Entry:
    """A state of some tokens; 1,000 bytes a token."""
    packed = pack_tokens(tokens)
    return Entry(scope, packed, -1, SIZE * len(tokens), used)


def held(store: Store) -> list[bytes]:
    return sorted(one.tokens for one in store)


def check(store: Store) -> None:
    """What must hold whatever was done."""
    entries = list(store)
    assert store.bytes == sum(one.size for one in entries)
    for one in entries:
        others = [o for o in entries if o is not one and o.scope == one.scope]
        shared = max((common_prefix(one.tokens, o.tokens) for o in others), default=0)
        assert one.shared == shared
        assert not any(o.tokens.startswith(one.tokens) for o in others)


# Few different tokens, with large ones of which only the last byte differs, so that much is shared.
sequences = st.lists(st.sampled_from([1, 2, 0x01020304, 0x0F020304]), min_size=1, max_size=12)


@given(st.lists(st.tuples(sequences, st.integers(0, 1)), max_size=30), sequences)
def test_the_longest_common_beginning_is_found(
    states: list[tuple[list[int], int]], prompt: list[int]
) -> None:
    store = Store()
    for tokens, scope in states:
        store.add(entry(tokens, scope))
        check(store)
    packed = pack_tokens(prompt)
    longest = max((common_prefix(o.tokens, packed) for o in store if o.scope == 1), default=0)
    found = store.find(1, packed)
    assert (found.tokens if found else 0) == longest
    if found is not None:
        assert found.entry.scope == 1
        assert common_prefix(found.entry.tokens, packed) == longest


@given(st.lists(sequences, max_size=30), st.integers(0, 60), st.integers(0, 10))
def test_what_is_left_is_within_the_limits(
    states: list[list[int]], tokens: int, entries: int
) -> None:
    store = Store()
    for number, one in enumerate(states):
        store.add(entry(one, used=float(number)))
    before = held(store)
    removed = store.shrink(SIZE * tokens, entries, now=100.0)
    check(store)
    assert store.bytes <= SIZE * tokens
    assert len(store) <= entries
    assert sorted([*held(store), *(one.tokens for one in removed)]) == before


def test_a_longer_state_takes_the_place_of_its_beginning() -> None:
    store, short = Store(), entry([1, 2, 3])
    assert store.add(short) == []
    assert store.add(entry([1, 2, 3, 4])) == [short]
    assert held(store) == [pack_tokens([1, 2, 3, 4])]


def test_the_beginning_of_a_state_is_not_kept_beside_it() -> None:
    store, short = Store(), entry([1, 2, 3])
    store.add(entry([1, 2, 3, 4]))
    assert store.add(short) == [short]
    assert store.add(entry([1, 2, 3], scope=1)) == []  # that one is somebody else's


def test_of_states_that_share_as_much_the_smallest_is_taken() -> None:
    store = Store()
    for last in range(3, 9):
        store.add(entry([1, 2, *[last] * last]))
    found = store.find(0, pack_tokens([1, 2, 20]))
    assert found is not None
    assert (found.tokens, found.entry.count) == (2, 5)


def test_what_others_hold_too_is_given_up_before_what_is_alone() -> None:
    store = Store()
    alone, twins = entry([9] * 100), [entry([*[1] * 99, n]) for n in (1, 2)]
    for one in (alone, *twins):
        store.add(one)
    removed = store.shrink(SIZE * 200, 512, now=0.0)
    assert removed[0] in twins
    assert len(removed) == 1


def test_what_was_of_no_use_for_long_is_given_up_first() -> None:
    store = Store()
    old, new = entry([1] * 50, used=0.0), entry([2] * 50, used=90.0)
    store.add(old)
    store.add(new)
    assert store.shrink(SIZE * 60, 512, now=100.0) == [old]


def test_what_was_of_use_stays_before_what_only_came_last() -> None:
    store = Store()
    store.add(entry([1] * 50, used=10.0))
    store.add(entry([1] * 51, used=20.0))  # goes on from it
    new = entry([2] * 51, used=25.0)
    store.add(new)
    assert store.shrink(SIZE * 60, 512, now=40.0) == [new]
    assert held(store) == [pack_tokens([1] * 51)]


def test_of_conversations_that_do_not_all_fit_most_that_do_find_their_own() -> None:
    assert rounds(16, 16) == 9 * 16
    # The last used first, as a plain LRU has it, would find none at all.
    assert rounds(16, 12) > 0.6 * 9 * 12


@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=8), max_size=20),
    st.integers(0, 20),
)
def test_many_are_given_up_at_once_as_one_by_one(sequences: list[list[int]], room: int) -> None:
    at_once, singly = Store(), Store()
    for number, tokens in enumerate(sequences):
        for store in (at_once, singly):
            store.add(entry(tokens, used=float(number)))
    removed = [one.tokens for one in at_once.shrink(math.inf, room, now=30.0)]
    expected = []
    while len(singly) > room:
        (one,) = singly.shrink(math.inf, len(singly) - 1, now=30.0)
        expected.append(one.tokens)
    assert removed == expected


def test_giving_up_everything_looks_at_each_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    store, looks = Store(), 0
    for number in range(200):
        store.add(entry([1, 2, number, 4]))
    value = states.value

    def counted(one: Entry, now: float) -> float:
        nonlocal looks
        looks += 1
        return value(one, now)

    monkeypatch.setattr(states, "value", counted)
    assert len(store.shrink(0, 0, now=0.0)) == 200
    assert looks <= 5 * 200


def test_a_state_is_removed_once() -> None:
    store, one = Store(), entry([1, 2])
    store.add(one)
    assert store.remove(one)
    assert not store.remove(one)
    assert not store.remove(entry([1, 2]))
    assert store.find(0, pack_tokens([1])) is None


def test_the_budget_is_what_was_asked_for_or_a_part_of_what_is_free() -> None:
    assert settle(5, 100.0) == 5
    assert settle(None, 100.0) == 25
    assert settle(None, 1e15) == AUTO_MOST
    assert settle(None, None) > 0


def test_states_give_way_while_memory_is_short() -> None:
    assert allowed(500, 300, available=900, total=1000) == 500
    assert allowed(500, 300, available=50, total=1000) == 250  # 50 short of the 100 to be left
    assert allowed(500, 10, available=0, total=1000) == 0
    assert allowed(500, 300, available=None, total=None) == 500


def test_a_state_that_fits_in_no_store_costs_the_others_nothing() -> None:
    store = Store()
    for first in range(3):
        store.add(entry([first + 1] * 10))
    large = entry([9] * 60)
    large.uses = 2
    store.add(large)
    assert store.shrink(50 * SIZE, 10, 0.0) == [large]
    assert len(store) == 3
    check(store)
