"""Step planning: what goes into a batch, in which order, and how much of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbhost.order import Overtaken, Prompt
from lbhost.worker.batch import (
    FIRST_CHUNK,
    MIN_CHUNK,
    TILE,
    Chunk,
    Speeds,
    gaps,
    padding,
    plan,
    predict_s,
    prefill_budget,
)

NOBODY = Overtaken()
FAST = Speeds(prefill_tok_s=400.0, step_base_s=0.005, step_seq_s=0.005)


def test_nothing_to_prefill_is_an_empty_plan() -> None:
    assert plan(3, [], NOBODY, FAST, 0.15, 128) == []


def test_a_chunk_fills_what_the_decodes_leave_of_the_target() -> None:
    # 0.15 s less 0.005 + 4 * 0.005 s of decoding is 0.125 s, 50 tokens, in blocks 48
    assert plan(4, [Prompt(4, 1000)], NOBODY, FAST, 0.15, 128) == [Chunk(4, 48)]


def test_a_slow_worker_still_gets_on_with_its_prompts() -> None:
    slow = Speeds(prefill_tok_s=10.0, step_base_s=0.1, step_seq_s=0.1)
    assert prefill_budget(4, slow, 0.15, 128) == MIN_CHUNK


def test_before_anything_is_measured_chunks_beside_decodes_are_small() -> None:
    assert prefill_budget(1, Speeds(), 0.15, 128) == FIRST_CHUNK
    assert prefill_budget(0, Speeds(), 0.15, 128) == 128


def test_alone_a_prompt_still_leaves_room_for_a_newcomer_within_the_target() -> None:
    assert prefill_budget(0, FAST, 0.15, 128) == 64
    assert prefill_budget(0, FAST, 0.25, 128) == 96
    assert prefill_budget(0, FAST, 10.0, 128) == 128


def test_attention_in_tiles_gets_whole_tiles_and_the_token_that_rides_along() -> None:
    # 50 tokens fit the target
    assert prefill_budget(4, FAST, 0.15, 140, tiled=True) == 65
    assert prefill_budget(0, FAST, 0.15, 140, tiled=True) == 64
    assert prefill_budget(4, FAST, 0.28, 140, tiled=True) == 129
    assert prefill_budget(4, FAST, 10.0, 140, tiled=True) == 129
    # 30 fit: far from a tile
    assert prefill_budget(4, FAST, 0.1, 140, tiled=True) == 16
    # no room for a tile beside so many decodes
    assert prefill_budget(70, FAST, 10.0, 128, tiled=True) == 58


def test_what_a_tile_leaves_is_for_prompts_that_it_ends() -> None:
    first, short, long = Prompt(0, 30), Prompt(1, 31), Prompt(1, 500)
    assert plan(4, [first, short], NOBODY, FAST, 0.15, 140, tiled=True) == [
        Chunk(0, 30),
        Chunk(1, 31),
    ]
    assert plan(4, [first, long], NOBODY, FAST, 0.15, 140, tiled=True) == [Chunk(0, 30)]


@pytest.mark.parametrize(
    ("count", "decoding", "lacking"),
    [
        (64, 0, 0),
        (63, 0, 1),
        (48, 0, 16),
        (47, 0, 0),
        (65, 2, 0),
        (63, 2, 2),
        (48, 2, 0),
        (1, 2, 0),
    ],
)
def test_a_nearly_full_tile_is_filled(count: int, decoding: int, lacking: int) -> None:
    assert padding(count, decoding) == lacking


def test_the_short_prompt_goes_before_the_rest_of_the_long_one() -> None:
    long, short = Prompt(0, 2000), Prompt(1, 40)
    assert plan(0, [long, short], NOBODY, FAST, 0.15, 128) == [Chunk(1, 40), Chunk(0, 24)]


def test_a_long_prompt_that_is_half_done_does_not_hold_up_a_short_one() -> None:
    long, short = Prompt(0, 1038), Prompt(1, 63)
    assert plan(0, [long, short], NOBODY, FAST, 0.15, 128)[0].number == 1
    assert plan(3, [long, short], NOBODY, FAST, 0.15, 128)[0].number == 1


def test_the_oldest_gets_what_it_is_owed_first_and_the_short_one_the_rest() -> None:
    long, short = Prompt(0, 1000), Prompt(1, 300)
    owed = Overtaken(0, 3 * TILE)
    assert plan(0, [long, short], owed, FAST, 10.0, 128) == [Chunk(0, 64), Chunk(1, 64)]
    assert plan(0, [long, short], owed, FAST, 0.15, 128) == [Chunk(0, 64)]


def test_prompts_that_share_a_step_beside_decodes_have_whole_tiles_each() -> None:
    long, short = Prompt(0, 1000), Prompt(1, 300)
    owed = Overtaken(0, 3 * TILE)
    shared = plan(2, [long, short], owed, FAST, 10.0, 144, tiled=True)
    assert shared == [Chunk(0, 65), Chunk(1, 65)]


def test_the_oldest_gets_its_part_and_what_the_short_ones_leave() -> None:
    long, short = Prompt(0, 1000), Prompt(1, 20)
    owed = Overtaken(0, 3 * TILE)
    assert plan(0, [long, short], owed, FAST, 10.0, 128) == [Chunk(0, 108), Chunk(1, 20)]


def test_a_scrap_of_room_is_not_worth_a_chunk() -> None:
    first, second = Prompt(0, 50), Prompt(1, 500)
    assert plan(0, [first, second], NOBODY, FAST, 0.15, 128) == [Chunk(0, 50)]


def test_the_end_of_a_prompt_may_be_a_scrap() -> None:
    assert plan(0, [Prompt(0, 3)], NOBODY, FAST, 0.15, 128) == [Chunk(0, 3)]


@settings(deadline=None)
@given(
    decoding=st.integers(0, 64),
    prompts=st.lists(
        st.builds(Prompt, st.integers(0, 63), st.integers(1, 5000), st.integers(0, 2)),
        max_size=16,
        unique_by=lambda p: p.number,
    ),
    owed=st.none() | st.integers(0, 1000),
    speeds=st.builds(
        Speeds,
        st.none() | st.floats(0.1, 1e6),
        st.none() | st.floats(0, 10),
        st.none() | st.floats(0, 10),
    ),
    target_s=st.floats(0.01, 10),
    tiled=st.booleans(),
)
def test_a_plan_always_fits_the_batch_and_gets_on(
    decoding: int,
    prompts: list[Prompt],
    owed: int | None,
    speeds: Speeds,
    target_s: float,
    tiled: bool,
) -> None:
    overtaken = NOBODY
    if owed is not None and prompts:
        overtaken = Overtaken(min(p.number for p in prompts), owed)
    chunks = plan(decoding, prompts, overtaken, speeds, target_s, 128, tiled=tiled)
    remaining = {p.number: p.remaining for p in prompts}
    assert decoding + sum(c.count for c in chunks) <= 128
    assert all(1 <= c.count <= remaining[c.number] for c in chunks)
    assert len({c.number for c in chunks}) == len(chunks)
    assert chunks or not prompts


def test_a_step_is_predicted_from_what_was_measured() -> None:
    assert predict_s(4, 40, FAST, 1.0) == pytest.approx(0.005 + 4 * 0.005 + 40 / 400)


def test_an_unmeasured_step_is_predicted_by_the_fallback() -> None:
    assert predict_s(2, 10, Speeds(), 0.01) == pytest.approx(0.12)


@pytest.mark.parametrize(
    ("slots", "filled"),
    [
        ([], []),
        ([3], []),
        ([0, 1, 2], []),
        ([0, 2], [1]),
        ([0, 1, 4, 6], [2, 3, 5]),
        ([0, 4], [1, 2, 3]),
        ([0, 5, 7], [6]),
    ],
)
def test_short_gaps_are_filled_and_long_ones_left(slots: list[int], filled: list[int]) -> None:
    assert gaps(slots) == filled
