"""Which inputs an embedding worker's next batch has, and whether it waits for more."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lbhost.order import DEFAULT, FLEX, PRIORITY, Overtaken, after
from lbhost.worker.packing import MOST_SKIPPED, WAIT_S, Patience, Waiting, pack

NOTHING = Overtaken()


def test_inputs_of_several_requests_share_a_batch() -> None:
    waiting = [Waiting(0, (30, 30), DEFAULT), Waiting(1, (20,), DEFAULT)]
    assert pack(waiting, NOTHING, 128, 8) == {1: 1, 0: 2}


def test_the_shortest_request_goes_first_and_what_does_not_fit_waits() -> None:
    waiting = [Waiting(0, (60, 60, 60), DEFAULT), Waiting(1, (50,), DEFAULT)]
    assert pack(waiting, NOTHING, 128, 8) == {1: 1, 0: 1}
    assert pack(waiting, NOTHING, 300, 2) == {1: 1, 0: 1}


def test_a_long_input_is_computed_alone_and_whole() -> None:
    long = Waiting(0, (500,), DEFAULT)
    assert pack([long], NOTHING, 128, 8) == {0: 1}
    assert pack([long, Waiting(1, (10,), DEFAULT)], NOTHING, 128, 8) == {1: 1}


def test_ranks_come_before_lengths() -> None:
    waiting = [
        Waiting(0, (10,), FLEX),
        Waiting(1, (40, 40), DEFAULT),
        Waiting(2, (100,), PRIORITY),
    ]
    assert pack(waiting, NOTHING, 128, 8) == {2: 1, 0: 1}, "a gap is filled"
    assert pack(waiting, NOTHING, 150, 8) == {2: 1, 1: 1, 0: 1}


def test_a_long_input_comes_to_its_turn_however_many_short_ones_keep_coming() -> None:
    overtaken, number = NOTHING, 0
    long = Waiting(0, (400,), DEFAULT)
    for _ in range(100):
        number += 1
        waiting = [long, Waiting(number, (64, 64), DEFAULT)]
        counts = pack(waiting, overtaken, 128, 8)
        if 0 in counts:
            break
        tokens = {n: sum(waiting[n != 0].lengths[:count]) for n, count in counts.items()}
        overtaken = after([one.prompt for one in waiting], overtaken, tokens)
    assert 5 <= number <= 15, "about three times its own tokens of others go before it"


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 300), min_size=1, max_size=20),
            st.sampled_from((PRIORITY, DEFAULT, FLEX)),
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 12),
    st.integers(0, 2000),
)
def test_a_batch_is_never_empty_nor_too_large(
    given_: list[tuple[list[int], int]], owed_to: int, owed: int
) -> None:
    waiting = [Waiting(i, lengths, rank) for i, (lengths, rank) in enumerate(given_)]
    counts = pack(waiting, Overtaken(owed_to, owed), 128, 16)
    chosen = [length for n, count in counts.items() for length in waiting[n].lengths[:count]]
    assert chosen
    assert len(chosen) <= 16
    assert sum(chosen) <= 128 or len(chosen) == 1


def test_waits_that_were_in_vain_become_rare_and_one_that_was_not_brings_them_back() -> None:
    patience = Patience()
    waits: list[int] = []
    for at in range(200):
        if patience.wait_s():
            waits.append(at)
            patience.waited(came=False)
    gaps = [later - sooner for sooner, later in itertools.pairwise(waits)]
    assert gaps[:4] == [2, 3, 5, 9]
    assert max(gaps) == MOST_SKIPPED + 1
    while not patience.wait_s():
        pass
    patience.waited(came=True)
    assert [patience.wait_s() for _ in range(3)] == [WAIT_S] * 3
