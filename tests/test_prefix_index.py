"""The router's guess at what a worker has cached."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lbhost.gateway.scheduling.prefix_index import BLOCK, PrefixIndex, chain
from lbhost.wire import pack_tokens


def of(*parts: int) -> tuple[int, ...]:
    """The chain of a prompt made of blocks of one token each."""
    return chain(pack_tokens([token for token in parts for _ in range(BLOCK)]))


def test_whole_blocks_of_a_common_start_are_predicted() -> None:
    index = PrefixIndex(2)
    index.add(of(1, 2, 3, 4))
    assert index.predict(of(1, 2, 3, 4)) == 4 * BLOCK
    assert index.predict(of(1, 2, 3, 9, 4)) == 3 * BLOCK
    assert index.predict(of(1, 2)) == 2 * BLOCK
    assert index.predict(of(9, 2, 3)) == 0
    assert index.predict(of()) == 0


def test_equal_blocks_at_other_places_do_not_count() -> None:
    index = PrefixIndex(2)
    index.add(of(1, 2, 3))
    assert index.predict(of(2, 3)) == 0
    assert index.predict(of(1, 3)) == BLOCK


def test_a_conversation_that_goes_on_keeps_its_slot() -> None:
    index = PrefixIndex(2)
    index.add(of(1))
    index.add(of(2))
    index.add(of(1, 5))
    assert index.predict(of(2)) == BLOCK
    assert index.predict(of(1, 5)) == 2 * BLOCK


def test_the_oldest_sequence_makes_room() -> None:
    index = PrefixIndex(2)
    for token in (1, 2, 3):
        index.add(of(token))
    assert [index.predict(of(token)) for token in (1, 2, 3)] == [0, BLOCK, BLOCK]


def test_a_partial_block_is_left_out() -> None:
    assert chain(pack_tokens([1] * (BLOCK - 1))) == ()
    assert len(chain(pack_tokens([1] * (2 * BLOCK + 5)))) == 2


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=6))
def test_it_agrees_with_comparing_all_tokens(prompts: list[list[int]]) -> None:
    *held, wanted = prompts
    index = PrefixIndex(len(prompts))
    for prompt in held:
        index.add(of(*prompt))

    def common(prompt: list[int]) -> int:
        pairs = zip(prompt, wanted, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(prompt), len(wanted)))

    assert index.predict(of(*wanted)) == BLOCK * max(map(common, held), default=0)
