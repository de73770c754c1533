"""Step planning: what goes into a batch, in which order, and how much of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbhost.order import Overtaken, Prompt
from lbhost.worker.batch import (
    FIRST_CHUNK,
    LONGER,
    STRETCH,
    TILE,
    Chunk,
    Speeds,
    beside,
    gaps,
    padding,
    plan,
    predict_s,
    prefill_size,
    reach,
)

NOBODY = Overtaken()
FAST = Speeds(prefill_tok_s=400.0, step_base_s=0.005, step_seq_s=0.005)


def test_nothing_to_prefill_is_an_empty_plan() -> None:
    assert plan(3, [], NOBODY, FAST, 0.15, 128) == []


LONG = [Prompt(0, 1000)]


def size(
    decoding: int,
    prompts: list[Prompt] = LONG,
    speeds: Speeds = FAST,
    target_s: float = 0.15,
    *,
    room: int = 144,
    tiled: bool = False,
) -> int:
    return prefill_size(decoding, prompts, speeds, target_s, room, tiled=tiled)


def test_a_chunk_fills_what_the_decodes_leave_of_the_target() -> None:
    # 0.15 s less 0.005 + 4 * 0.005 s of decoding is 0.125 s, 50 tokens, in blocks 48
    assert size(4) == 48
    assert plan(4, LONG, NOBODY, FAST, 0.15, 128) == [Chunk(0, 48)]


def test_before_anything_is_measured_chunks_beside_decodes_are_small() -> None:
    assert size(1, speeds=Speeds()) == FIRST_CHUNK
    assert size(0, speeds=Speeds(), room=128) == 128


def test_alone_a_prompt_still_leaves_room_for_a_newcomer_within_the_target() -> None:
    assert size(0) == 64
    assert size(0, target_s=0.35) == 128
    assert size(0, speeds=Speeds(prefill_tok_s=50.0)) == 64


def test_attention_in_tiles_gets_whole_tiles_and_the_token_that_rides_along() -> None:
    assert size(4, tiled=True) == 32
    assert size(4, target_s=0.19, tiled=True) == 65
    assert size(0, tiled=True) == 64
    assert size(4, target_s=10.0, tiled=True) == 129
    # no room for a tile beside so many decodes
    assert size(70, target_s=10.0, room=128, tiled=True) == 32
    assert size(120, room=128) == 8


STARTER = Speeds(316.0, 0.0017, 0.0055, 316.0, 0.0, 1.3)
"""The starter model on a core of an EPYC: a tile takes 0.2 s."""

SMOOTH = Speeds(316.0, 0.0017, 0.0055, 316.0, 0.0, 1.0)
"""The same if small chunks cost no more."""

LARGE = Speeds(49.0, 0.03, 0.033, 49.0, 0.0, 1.15)
"""A model of 1B parameters: a step that decodes four takes longer than the target."""


def test_small_chunks_that_cost_no_more_keep_the_target() -> None:
    for decoding in (1, 2, 3, 4):
        tokens = size(decoding, speeds=SMOOTH, tiled=True)
        assert predict_s(decoding, tokens, SMOOTH, 1.0) <= 0.15


def test_the_target_is_exceeded_where_that_serves_everybody_sooner() -> None:
    burst = [Prompt(n, 128) for n in range(3)]
    assert size(1, burst, STARTER, tiled=True) == 65
    assert size(1, burst, SMOOTH, tiled=True) == 32


def test_a_model_that_cannot_keep_the_target_does_not_compute_in_the_smallest_chunks() -> None:
    assert (LARGE.decode_s(4) or 0) > 0.15
    assert size(3, [Prompt(0, 128)], LARGE, tiled=True) == 32
    assert size(1, [Prompt(n, 128) for n in range(3)], LARGE, tiled=True) >= 32


def test_where_chunks_cost_much_as_such_they_are_larger() -> None:
    cheap = Speeds(300.0, 0.002, 0.006, 300.0, 0.0)
    dear = Speeds(300.0, 0.002, 0.006, 300.0, 40.0)
    assert size(2, speeds=cheap) == 32
    assert size(2, speeds=dear) >= 64


def test_a_target_that_no_chunk_keeps_does_not_make_chunks_small() -> None:
    slow = Speeds(50.0, 0.002, 0.006, 50.0, 10.0)
    assert size(4, speeds=slow, target_s=0.1) >= 64


@settings(deadline=None)
@given(
    decoding=st.integers(1, 16),
    remaining=st.lists(st.integers(1, 3000), min_size=1, max_size=8),
    loose=st.floats(1, 4),
    chunk_tok_s=st.floats(10, 5000),
    seq_s=st.floats(0.001, 0.2),
    target_s=st.floats(0.02, 1),
)
def test_no_size_serves_everybody_sooner_within_the_same_limit(
    decoding: int,
    remaining: list[int],
    loose: float,
    chunk_tok_s: float,
    seq_s: float,
    target_s: float,
) -> None:
    """Of the sizes that keep the limit, the largest is taken or a still larger one: for the
    prompts and for what decodes, steps that are within it had better be few."""
    speeds = Speeds(chunk_tok_s, 0.002, seq_s, chunk_tok_s, 0.0, loose)
    prompts = [Prompt(number, tokens) for number, tokens in enumerate(remaining)]
    chosen = size(decoding, prompts, speeds, target_s, tiled=True)
    limit_s = max(target_s, STRETCH * (speeds.decode_s(decoding + len(prompts)) or 0.0))
    for other in (16, 32, 65):
        within = predict_s(decoding, other, speeds, 1.0) <= limit_s
        if within and other < min(remaining):
            assert chosen >= other


def test_what_a_tile_leaves_is_for_prompts_that_it_ends() -> None:
    first, short, long = Prompt(0, 30), Prompt(1, 31), Prompt(1, 500)
    assert plan(0, [first, short], NOBODY, FAST, 0.15, 140, tiled=True) == [
        Chunk(0, 30),
        Chunk(1, 31),
    ]
    assert plan(0, [first, long], NOBODY, FAST, 0.15, 140, tiled=True) == [Chunk(0, 30)]


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


def test_slots_that_hold_least_decode_along() -> None:
    assert beside([0, 1, 2], 4, [90, 90, 90, 0]) == [3]
    assert beside([1, 2], 4, [50, 90, 90, 60]) == [3, 0]
    assert beside([1, 2, 3], 4, [100, 90, 90, 90, 300]) == [0], "4 holds more"
    assert beside([1, 2, 3], 4, [100, 90, 90, 90, 100]) == [4]
    assert beside([2, 3], 4, [10, 20, 90, 90, 80, 5]) == [0, 1], "4 is beside 5"
    assert beside([0, 1], 2, [90, 90, 0]) == []


@pytest.mark.parametrize(
    ("row", "lengths", "near"),
    [
        ([0, 1, 2], [90, 90, 500, 500 + LONGER], range(4)),
        ([0, 1, 2], [90, 90, 500, 501 + LONGER], range(3)),
        ([2], [0, 900, 90, 0, 0], range(2, 5)),
    ],
)
def test_none_decodes_along_that_holds_far_more_than_those_that_have_to(
    row: list[int], lengths: list[int], near: range
) -> None:
    assert reach(row, lengths) == near
    assert beside(row, len(near), lengths) == sorted(set(near) - set(row))
