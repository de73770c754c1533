"""Routing policies as pure functions, against cases computed by hand."""

from __future__ import annotations

from collections import Counter
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbhost import order
from lbhost.choices import Policy
from lbhost.gateway.scheduling.policy import (
    ASSUMED_SPEEDS,
    Need,
    choose,
    foresee,
    penalty,
    predict,
    room_for_flex,
    room_for_long,
)
from lbhost.gateway.scheduling.worker_view import UNDISTURBED, WorkerView

SHORT = Need(prompt_tokens=128, expected_tokens=64)
LONG = Need(prompt_tokens=2000, expected_tokens=64)


def view(
    worker: int = 0,
    *,
    in_flight: int = 0,
    slots: int = 4,
    long_in_flight: int = 0,
    flex_in_flight: int = 0,
    prefills: tuple[int, ...] = (),
    cached: int = 0,
    share: float = 1.0,
    idle: float | None = None,
    error_rate: float = 0.0,
    ready_for_s: float = 1e9,
    measured: bool = True,
    ranks: tuple[int, ...] = (),
) -> WorkerView:
    return WorkerView(
        worker=worker,
        epoch=1,
        slots=slots,
        in_flight=in_flight,
        long_in_flight=long_in_flight,
        flex_in_flight=flex_in_flight,
        prefills=prefills,
        cached=cached,
        speeds=(500.0, 0.002, 0.006) if measured else None,
        share=share,
        idle=idle,
        penalty=penalty(error_rate, ready_for_s),
        ranks=ranks,
    )


def picks(policy: Policy, views: list[WorkerView], need: Need = SHORT) -> set[int | None]:
    return {choose(policy, need, views, Random(seed), seed) for seed in range(40)}


# --- the prediction ---------------------------------------------------------------------


def test_an_empty_worker_takes_prefill_plus_decode() -> None:
    # 128 / 500 + 64 * (0.002 + 1 * 0.006)
    assert predict(SHORT, view(), ASSUMED_SPEEDS) == pytest.approx(0.256 + 0.512)


def test_what_a_worker_has_not_measured_is_predicted_by_what_is_typical() -> None:
    expected = 128 / 200 + 64 * (0.004 + 0.008)
    assert predict(SHORT, view(measured=False), ASSUMED_SPEEDS) == pytest.approx(expected)


def test_company_slows_both_prefill_and_decode() -> None:
    # prefill rides with 3 chunks (128 / 64 + 1) of a 2-sequence decode, then 3 decode together
    expected = 128 / 500 + 3 * (0.002 + 2 * 0.006) + 64 * (0.002 + 3 * 0.006)
    assert predict(SHORT, view(in_flight=2), ASSUMED_SPEEDS) == pytest.approx(expected)


def test_steps_take_what_was_measured_for_their_sequences() -> None:
    steps_s = (0.005, 0.012, 0.017, 0.016, 0.024)
    told = msgspec.structs.replace(view(in_flight=3), steps_s=steps_s)
    assert predict(SHORT, told, ASSUMED_SPEEDS) == pytest.approx(
        128 / 500 + (128 / 64 + 1) * 0.017 + 64 * 0.016
    )
    alone = msgspec.structs.replace(view(), steps_s=steps_s)
    assert predict(SHORT, alone, ASSUMED_SPEEDS) == pytest.approx(128 / 500 + 64 * 0.005)
    beyond = msgspec.structs.replace(view(in_flight=5, slots=8), steps_s=steps_s)
    assert predict(SHORT, beyond, ASSUMED_SPEEDS) == pytest.approx(
        128 / 500 + (128 / 64 + 1) * 0.024 + 64 * (0.002 + 6 * 0.006)
    )


def test_a_block_of_rows_is_filled_before_another_is_begun() -> None:
    steps_s = (0.005, 0.012, 0.017, 0.016, 0.024, 0.025, 0.025, 0.025)
    three, four = view(0, in_flight=3, slots=8), view(1, in_flight=4, slots=8)
    views = [msgspec.structs.replace(one, steps_s=steps_s) for one in (three, four)]
    assert picks(Policy.COST, views) == {0}


def test_half_a_core_takes_twice_as_long() -> None:
    whole = predict(SHORT, view(), ASSUMED_SPEEDS)
    assert predict(SHORT, view(share=0.5), ASSUMED_SPEEDS) == pytest.approx(2 * whole)


def test_cached_tokens_need_no_prefill_but_one_is_always_computed() -> None:
    assert predict(SHORT, view(cached=100), ASSUMED_SPEEDS) == pytest.approx(28 / 500 + 0.512)
    assert predict(SHORT, view(cached=128), ASSUMED_SPEEDS) == pytest.approx(1 / 500 + 0.512)


def test_shorter_prompts_are_ahead_and_longer_ones_take_a_quarter() -> None:
    none = predict(SHORT, view(in_flight=1), ASSUMED_SPEEDS)
    ahead = predict(SHORT, view(in_flight=1, prefills=(100,)), ASSUMED_SPEEDS)
    beside = predict(SHORT, view(in_flight=1, prefills=(4000,)), ASSUMED_SPEEDS)
    # 100 more tokens: 0.2 s of prefill, and 100 / 64 more chunks with a step of one
    assert ahead - none == pytest.approx(100 / 500 + 100 / 64 * 0.008)
    # a third of its own 128 tokens besides
    assert beside - none == pytest.approx(42 / 500 + 42 / 64 * 0.008)


def test_ranks_come_before_lengths() -> None:
    beside_flex = view(in_flight=1, prefills=(100,), ranks=(order.FLEX,))
    alone = predict(SHORT, view(in_flight=1), ASSUMED_SPEEDS)
    assert predict(SHORT, beside_flex, ASSUMED_SPEEDS) == pytest.approx(alone)
    flex = Need(128, 64, order.FLEX)
    behind = view(in_flight=1, prefills=(4000,))
    assert predict(flex, behind, ASSUMED_SPEEDS) > alone + 4000 / 500


def test_errors_and_a_fresh_start_worsen_a_prediction() -> None:
    usual = predict(SHORT, view(), ASSUMED_SPEEDS)
    assert predict(SHORT, view(error_rate=0.5), ASSUMED_SPEEDS) == pytest.approx(5 * usual)
    assert predict(SHORT, view(ready_for_s=2.5), ASSUMED_SPEEDS) == pytest.approx(1.5 * usual)


def test_a_prediction_is_corrected_before_the_first_token_and_after_it_apart() -> None:
    corrected = msgspec.structs.replace(view(in_flight=1), ttft_factor=2.0, output_factor=3.0)
    expected = 2 * (128 / 500 + 3 * 0.008) + 3 * 64 * 0.014
    assert predict(SHORT, corrected, ASSUMED_SPEEDS) == pytest.approx(expected)
    idle = msgspec.structs.replace(view(), ttft_factor=2.0, output_factor=3.0)
    assert predict(SHORT, idle, ASSUMED_SPEEDS) == pytest.approx(2 * 0.256 + 3 * 0.512)


@pytest.mark.parametrize("error_rate", [0.0, 0.9])
def test_what_is_foreseen_is_what_the_worker_is_believed_to_do(error_rate: float) -> None:
    """A penalty makes it no slower, and one that is full is told of as if it had room."""
    full = view(in_flight=4, share=0.5, error_rate=error_rate)
    first_s, output_s = foresee(SHORT, full) or (0.0, 0.0)
    assert first_s == pytest.approx(2 * (128 / 500 + 3 * 0.026))
    assert output_s == pytest.approx(2 * 0.032)
    assert foresee(SHORT, view(measured=False)) is None


# --- cost -------------------------------------------------------------------------------


def test_a_worker_that_has_just_started_is_a_vacant_one_and_one_that_failed_is_not() -> None:
    assert view(ready_for_s=0.0).vacant
    assert not view(error_rate=0.2).vacant
    assert view(share=UNDISTURBED).vacant
    assert not view(share=0.99 * UNDISTURBED).vacant
    assert not view(in_flight=1).vacant


def test_one_short_request_on_a_free_core_beats_an_empty_worker_on_a_busy_one() -> None:
    assert picks(Policy.COST, [view(0, share=0.3), view(1, in_flight=1)]) == {1}


def test_equal_workers_share_by_chance_not_by_index() -> None:
    chosen = Counter(
        choose(Policy.COST, SHORT, [view(i) for i in range(4)], Random(seed), 0)
        for seed in range(400)
    )
    assert set(chosen) == {0, 1, 2, 3}
    assert min(chosen.values()) > 60


def test_a_worker_with_the_prefix_wins_until_it_is_crowded() -> None:
    need = Need(prompt_tokens=400, expected_tokens=32)
    assert picks(Policy.COST, [view(0), view(1, cached=384, in_flight=1)], need) == {1}
    hardly_sooner = view(1, cached=144, in_flight=1)  # 1.00 s, and 1.06 in the idle one
    assert picks(Policy.COST, [view(0), hardly_sooner], need) == {0}
    crowded = view(1, cached=384, in_flight=3, prefills=(350, 350, 350), slots=8)
    assert picks(Policy.COST, [view(0), crowded], Need(400, 128)) == {0}


def test_of_busy_workers_that_are_alike_the_least_loaded_get_it_by_chance() -> None:
    told = (0.008,) * 5  # whatever else runs there
    views = [
        msgspec.structs.replace(view(i, in_flight=busy), steps_s=told)
        for i, busy in enumerate((2, 1, 3, 1))
    ]
    assert picks(Policy.COST, views) == {1, 3}


def test_of_busy_workers_the_one_with_the_fewest_prompts_ahead_gets_it() -> None:
    free = view(in_flight=1)
    behind = view(in_flight=1, prefills=(100,))
    for place in range(3):
        views = [behind] * 3
        views[place] = free
        assert picks(Policy.COST, views) == {place}


def test_full_workers_get_nothing() -> None:
    assert picks(Policy.COST, [view(0, in_flight=4), view(1, in_flight=4)]) == {None}
    assert picks(Policy.COST, [view(0, in_flight=4), view(1, in_flight=3)]) == {1}


def test_a_request_waits_for_a_full_worker_rather_than_crawl_on_a_hot_core() -> None:
    assert picks(Policy.COST, [view(0, share=0.05), view(1, in_flight=4)]) == {None}
    assert picks(Policy.COST, [view(0, share=0.5), view(1, in_flight=4)]) == {0}
    assert picks(Policy.COST, [view(0, share=0.4), view(1, in_flight=4)]) == {0}, "not soon enough"
    failing = view(0, in_flight=1, error_rate=0.9)
    assert picks(Policy.COST, [failing, view(1, in_flight=4)]) == {0}, "its core is its own"


def test_the_worker_that_fails_fastest_gets_the_least() -> None:
    assert picks(Policy.COST, [view(0, error_rate=0.9), view(1, in_flight=3)]) == {1}


def test_an_unmeasured_worker_counts_as_a_typical_one() -> None:
    assert picks(Policy.COST, [view(0, measured=False), view(1)]) == {0, 1}
    assert picks(Policy.COST, [view(0, measured=False), view(1, in_flight=1)]) == {0}
    slow, fast = (
        msgspec.structs.replace(view(i, in_flight=3), speeds=speeds)
        for i, speeds in ((1, (200.0, 0.006, 0.020)), (2, (800.0, 0.002, 0.006)))
    )
    unknown = view(0, measured=False, in_flight=3)
    assert picks(Policy.COST, [unknown, slow]) == {0, 1}
    assert picks(Policy.COST, [unknown, slow, slow, fast]) == {3}
    full = [msgspec.structs.replace(one, slots=3) for one in (slow, fast)]
    assert picks(Policy.COST, [unknown, slow, full[1]]) == {0}
    between = msgspec.structs.replace(slow, speeds=(500.0, 0.004, 0.013))
    for need in (SHORT, Need(400, 1)):
        assert picks(Policy.COST, [unknown, between, *full], need) == {0, 1}


# --- long prompts -----------------------------------------------------------------------


@pytest.mark.parametrize("policy", list(Policy))
def test_long_prompts_never_fill_every_slot(policy: Policy) -> None:
    views = [
        view(0, in_flight=4, long_in_flight=4),
        view(1, in_flight=3, long_in_flight=3),
    ]
    assert choose(policy, LONG, views, Random(1), 0) is None
    assert choose(policy, SHORT, views, Random(1), 0) == 1


@pytest.mark.parametrize("policy", list(Policy))
def test_short_ones_do_not_starve_long_ones(policy: Policy) -> None:
    views = [view(0, in_flight=4), view(1, in_flight=3)]
    assert choose(policy, LONG, views, Random(1), 0) == 1


def test_a_box_with_one_slot_still_serves_long_prompts() -> None:
    assert choose(Policy.COST, LONG, [view(slots=1)], Random(1), 0) == 0


@pytest.mark.parametrize(
    ("slots", "taken", "room"),
    [((1,), 0, True), ((1,), 1, False), ((2,), 0, True), ((2,), 1, False), ((8, 7), 13, True),
     ((8, 7), 14, False), ((8, 8), 13, True), ((8, 8), 14, False),
     ((1, 1), 1, False), ((8, 7, 2), 15, True)],  # an idle one of two slots keeps one anyhow
)  # fmt: skip
def test_one_slot_in_eight_is_kept_for_short_prompts(
    slots: tuple[int, ...], taken: int, room: bool
) -> None:
    rest = [max(0, min(count, taken - sum(slots[:i]))) for i, count in enumerate(slots)]
    views = [
        view(i, slots=count, in_flight=long, long_in_flight=long)
        for i, (count, long) in enumerate(zip(slots, rest, strict=True))
    ]
    assert room_for_long(views) is room


@pytest.mark.parametrize(
    ("flex", "long", "room"),
    [(12, 0, True), (12, 2, True), (12, 3, False), (15, 0, True), (4, 10, True), (4, 11, False)],
)
def test_slots_that_flex_has_are_not_those_kept_for_short_prompts(
    flex: int, long: int, room: bool
) -> None:
    one = view(slots=16, in_flight=flex + long, long_in_flight=long, flex_in_flight=flex)
    assert room_for_long([one]) is room


@pytest.mark.parametrize(
    ("slots", "taken", "room"),
    [(1, 0, True), (1, 1, False), (2, 0, True), (2, 1, False), (7, 5, True), (7, 6, False),
     (8, 5, True), (8, 6, False)],
)  # fmt: skip
def test_one_slot_in_four_is_kept_for_who_is_not_flex(slots: int, taken: int, room: bool) -> None:
    assert room_for_flex([view(slots=slots, in_flight=taken)]) is room
    crowded = [view(slots=slots, in_flight=taken), view(slots=0, in_flight=3)]
    assert room_for_flex(crowded) is room, "more than there are slots are none less"


# --- the others -------------------------------------------------------------------------


def test_round_robin_takes_turns_over_those_with_room() -> None:
    views = [view(0), view(1, in_flight=4), view(2)]
    turns = [choose(Policy.ROUND_ROBIN, SHORT, views, Random(1), turn) for turn in range(4)]
    assert turns == [0, 2, 0, 2]


def test_least_connections_breaks_ties_by_chance() -> None:
    views = [view(0, in_flight=2), view(1, in_flight=1), view(2, in_flight=1)]
    assert picks(Policy.LEAST_CONNECTIONS, views) == {1, 2}


def test_random_two_never_takes_the_fullest_of_three() -> None:
    views = [view(0, in_flight=3), view(1, in_flight=1), view(2, in_flight=2)]
    assert picks(Policy.RANDOM_TWO, views) == {1, 2}


def test_idle_cpu_takes_the_idlest_and_counts_unknown_as_average() -> None:
    assert picks(Policy.IDLE_CPU, [view(0, idle=0.2), view(1, idle=0.9)]) == {1}
    assert picks(Policy.IDLE_CPU, [view(0), view(1)]) == {0, 1}
    assert picks(Policy.IDLE_CPU, [view(0), view(1, idle=0.3), view(2, idle=0.5)]) == {2}


# --- whatever comes ---------------------------------------------------------------------

views_strategy = st.lists(
    st.builds(
        WorkerView,
        worker=st.integers(0, 100),
        epoch=st.just(1),
        slots=st.integers(1, 8),
        in_flight=st.integers(0, 8),
        long_in_flight=st.integers(0, 8),
        flex_in_flight=st.integers(0, 8),
        prefills=st.lists(st.integers(1, 10_000), max_size=4).map(tuple),
        cached=st.integers(0, 3000),
        speeds=st.none() | st.tuples(st.floats(1, 1e5), st.floats(0, 10), st.floats(0, 10)),
        share=st.floats(0.01, 1),
        idle=st.none() | st.floats(0, 1),
        penalty=st.builds(penalty, st.floats(0, 1), st.floats(0, 1e6)),
    ),
    max_size=8,
)


@given(
    policy=st.sampled_from(Policy),
    need=st.builds(Need, st.integers(1, 100_000), st.integers(1, 100_000)),
    views=views_strategy,
    seed=st.integers(0, 1000),
)
def test_the_choice_always_has_room(
    policy: Policy, need: Need, views: list[WorkerView], seed: int
) -> None:
    known = need.prompt_tokens - 1
    views = [msgspec.structs.replace(v, cached=min(v.cached, known)) for v in views]
    index = choose(policy, need, views, Random(seed), seed)
    if index is not None:
        assert views[index].in_flight < views[index].slots
    elif policy is not Policy.COST and not need.long:
        assert all(view.in_flight >= view.slots for view in views)
