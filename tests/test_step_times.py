"""What steps of so many sequences take is learnt, and filled up where that pays."""

from __future__ import annotations

import pytest

from lbhost.worker.step_times import CLOSE, EARLY, LOOK_AGAIN, StepTimes

ZEN5 = (0.0053, 0.0122, 0.0167, 0.0164, 0.0237, 0.0278, 0.0340, 0.0250)
"""Seconds of a decode step of 1 to 8 rows, starter model as Q4_0, one core."""


def computed(times: StepTimes, sequences: int, steps: int, most: int = 8) -> list[int]:
    """The rows of so many steps, each of which takes what it takes on that core."""
    rows = []
    for _ in range(steps):
        rows.append(times.rows(sequences, most))
        times.observe(rows[-1], ZEN5[rows[-1] - 1])
    return rows


def test_seven_are_computed_as_eight_once_both_were_seen() -> None:
    rows = computed(StepTimes(), 7, 1000)
    assert rows[0] == 7
    assert set(rows[1:]) == {8}  # 34 over 25 ms: nobody looks again


def test_what_does_not_pay_is_tried_and_left() -> None:
    times = StepTimes()
    rows = computed(times, 5, 640)
    assert rows[1 : 1 + EARLY] == [8] * EARLY
    later = rows[1 + EARLY :]
    assert set(later) == {5, 8}
    assert later.count(8) == (len(rows) - 1) // LOOK_AGAIN  # 25 over 24 ms is close


def test_a_box_that_changes_its_mind_is_followed() -> None:
    times = StepTimes()
    computed(times, 6, 50)
    assert times.rows(6, 8) == 8
    for _ in range(100):
        times.observe(6, 0.0200)
        times.observe(8, 0.0250)
    assert CLOSE * 0.0200 >= 0.0250
    assert times.rows(6, 8) == 6


@pytest.mark.parametrize("sequences", [1, 2, 4, 8])
def test_whole_blocks_and_few_rows_are_never_filled(sequences: int) -> None:
    assert set(computed(StepTimes(), sequences, 200)) == {sequences}


def test_no_more_rows_than_there_are_slots() -> None:
    assert set(computed(StepTimes(), 7, 20, most=7)) == {7}
    assert set(computed(StepTimes(), 3, 20, most=3)) == {3}


def test_the_table_says_what_steps_take_filled_up() -> None:
    times = StepTimes()
    assert times.table(8, 8) == ()
    for rows, seconds in enumerate(ZEN5, 1):
        times.observe(rows, seconds)
    assert times.table(8, 8) == (*ZEN5[:5], ZEN5[7], ZEN5[7], ZEN5[7])
    assert times.table(7, 7) == ZEN5[:7]


def test_what_was_not_seen_lies_between_its_neighbours_or_beyond() -> None:
    times = StepTimes()
    times.observe(2, 0.017)
    times.observe(4, 0.031)
    table = times.table(6, 6)
    assert table[1:4] == pytest.approx((0.017, 0.024, 0.031))
    assert table[0] == pytest.approx(0.010)  # 0.3 + 0.7 n
    assert table[4:] == pytest.approx((0.038, 0.045))


def test_between_several_that_were_seen_its_own_neighbours_count() -> None:
    times = StepTimes()
    for rows, seconds in ((2, 0.010), (4, 0.030), (8, 0.032)):
        times.observe(rows, seconds)
    assert times.table(7, 8)[2:] == pytest.approx((0.020, 0.030, 0.0305, 0.031, 0.0315))


def test_the_first_steps_count_alike() -> None:
    times = StepTimes()
    for seconds in (0.1, 0.2, 0.6):
        times.observe(1, seconds)
    assert times.table(1, 1) == pytest.approx((0.3,))


def test_a_slower_box_is_slower_for_all_numbers() -> None:
    times = StepTimes()
    for _ in range(40):
        for rows in (1, 4):
            times.observe(rows, ZEN5[rows - 1])
    for _ in range(100):
        times.observe(4, 2 * ZEN5[3])
    assert times.table(4, 4)[0] == pytest.approx(2 * ZEN5[0], rel=0.02)
    assert times.table(4, 4)[3] == pytest.approx(2 * ZEN5[3], rel=0.02)


def test_the_first_steps_of_a_number_say_nothing_of_the_others() -> None:
    times = StepTimes()
    times.observe(1, ZEN5[0])
    for seconds in (0.1, 0.0164, 0.0164):
        times.observe(4, seconds)
    assert times.table(1, 8) == (ZEN5[0],)


def test_nothing_is_tried_in_steps_that_tell_nothing_of_it() -> None:
    times = StepTimes()
    times.observe(7, ZEN5[6])
    assert {times.rows(7, 8, tells=False) for _ in range(100)} == {7}
    assert set(computed(times, 7, 20)) == {8}
    assert times.rows(7, 8, tells=False) == 8
