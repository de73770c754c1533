"""Which number of threads a step gets: what pays is kept, what does not is left, all is retried."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from lbhost.placement.gain import WidthGain
from lbhost.worker.widths import (
    FIRST_OWN,
    LEAST_GAIN,
    LOOK_AGAIN,
    LOOK_SHARE,
    PAYS,
    RARELY,
    Phase,
    Widths,
)


def run(
    widths: Widths,
    gains: Mapping[int, float],
    steps: int,
    *,
    widest: int | None = None,
    phase: Phase = Phase.DECODE,
) -> list[int]:
    """So many steps on a box where a width is so many times as fast as the own threads."""
    taken = []
    for _ in range(steps):
        width = widths.choose(phase, widest or max(gains), known=True)
        widths.observe(phase, width, 1.0, 1.0 / gains[width])
        taken.append(width)
    return taken


def test_the_own_threads_measure_themselves_when_others_have_for_a_while() -> None:
    widths = Widths()
    taken = [widths.choose(Phase.PREFILL, 8, known=False) for _ in range(FIRST_OWN + 1)]
    assert taken == [2] * (FIRST_OWN - 1) + [1, 1]
    assert Widths(2).choose(Phase.PREFILL, 8, known=False) == 3
    assert Widths().choose(Phase.PREFILL, 1, known=False) == 1


def test_what_pays_is_tried_and_kept() -> None:
    taken = run(Widths(), {1: 1.0, 2: 1.5, 3: 1.9, 4: 2.2}, LOOK_AGAIN - 1)
    assert taken[:3] == [2, 3, 4]
    assert set(taken[2:]) == {4}


def test_it_stops_widening_where_nothing_is_won() -> None:
    taken = run(Widths(), {1: 1.0, 2: 1.5, 3: 1.51, 4: 3.0}, 30)
    assert taken[:3] == [2, 3, 2]
    assert set(taken[2:]) == {2}


def test_prompts_and_single_tokens_have_widths_of_their_own() -> None:
    widths = Widths()
    assert run(widths, {1: 1.0, 2: 0.8}, 10)[1:] == [1] * 9
    assert run(widths, {1: 1.0, 2: 1.8}, 10, phase=Phase.PREFILL) == [2] * 10
    assert widths.gain(Phase.PREFILL, 2) > 1.5 > 1.0 > widths.gain(Phase.DECODE, 2)


@pytest.mark.parametrize(
    ("beside", "alone", "steps"),
    [
        (0.5, 1.6, RARELY * LOOK_AGAIN + LOOK_AGAIN),
        (0.9, 1.3, RARELY * LOOK_AGAIN + LOOK_AGAIN),
        (0.1, 1.6, 9 * LOOK_AGAIN),  # so bad a width is tried as one of LEAST_GAIN is
    ],
)
def test_a_neighbour_that_comes_makes_it_narrow_and_one_that_goes_wide_again(
    beside: float, alone: float, steps: int
) -> None:
    widths = Widths()
    run(widths, {1: 1.0, 2: alone}, 20 * LOOK_AGAIN)
    narrow = run(widths, {1: 1.0, 2: beside}, 20 * LOOK_AGAIN)
    assert 1 in narrow[:12]
    assert narrow[12:].count(1) >= 20 * LOOK_AGAIN - 12 - 20
    wide = run(widths, {1: 1.0, 2: alone}, steps + 20)
    assert wide[-20:].count(2) >= 19


@pytest.mark.parametrize(
    "gains",
    [
        {1: 1.0, 2: 1.8},
        {1: 1.0, 2: 1.35},
        {1: 1.0, 2: 1.02},
        {1: 1.0, 2: 0.7},
        {1: 1.0, 2: LEAST_GAIN},
        {1: 1.0, 2: 1.5, 3: 1.9, 4: 2.3, 5: 2.0},
    ],
)
@pytest.mark.parametrize("phase", Phase)
def test_what_looks_lose_is_bounded_and_nothing_is_left_out(
    gains: dict[int, float], phase: Phase
) -> None:
    widths, fastest = Widths(), max(gains.values())
    run(widths, gains, 2 * LOOK_AGAIN, phase=phase)
    taken = run(widths, gains, 100 * LOOK_AGAIN, phase=phase)
    took = sum(1 / gains[width] for width in taken)
    lost = took - len(taken) / fastest
    if not 1 < fastest < PAYS:  # what does not pay is not missed
        assert lost <= LOOK_SHARE * took
    assert set(taken) == gains.keys()


def test_a_costly_look_waits_until_enough_was_computed_and_a_cheap_one_only_for_its_turn() -> None:
    far, near = Widths(), Widths()
    costly = run(far, {1: 1.0, 2: 6.0}, 2000)
    assert [step for step, width in enumerate(costly, 1) if width == 1] == [1002]  # 5/6 of a second
    cheap = run(near, {1: 1.0, 2: 1.1}, 5 * LOOK_AGAIN)
    at = [step for step, width in enumerate(cheap, 1) if width == 1]
    assert at == [LOOK_AGAIN, 3 * LOOK_AGAIN]


def test_where_much_has_changed_looks_are_frequent_again() -> None:
    widths = Widths()
    run(widths, {1: 1.0, 2: 1.3}, 30 * LOOK_AGAIN)
    run(widths, {1: 1.0, 2: 1.7}, 10)
    taken = run(widths, {1: 1.0, 2: 1.7}, 3 * LOOK_AGAIN)
    assert taken.count(1) >= 1


def test_the_own_threads_wait_for_their_turn_where_a_probe_has_measured_what_pays() -> None:
    widths = Widths(1, [WidthGain(2, 1.8, 1.35)])
    first = {}
    for phase, gain in ((Phase.PREFILL, 1.8), (Phase.DECODE, 1.35)):
        for step in range(1, 100):
            width = widths.choose(phase, 2, known=False)
            if width == 1:
                first[phase] = step
                break
            widths.observe(phase, width, 1.0, 1 / gain)
    assert first == {Phase.PREFILL: 41, Phase.DECODE: 19}  # what they lose is a fiftieth


def test_a_gain_that_was_measured_while_nothing_was_computed_is_none() -> None:
    widths = Widths(1, [WidthGain(2, 1.8, 0.0)])
    assert widths.gain(Phase.DECODE, 2) == 1.0
    assert set(run(widths, {1: 1.0, 2: 1.5}, 20)) == {2}


def test_a_disturbed_core_of_its_own_does_not_make_a_second_one_look_useless() -> None:
    assert run(Widths(), {1: 0.5, 2: 0.9}, 300)[-5:] == [2] * 5


def test_fewer_cores_than_before_are_fine() -> None:
    widths = Widths()
    run(widths, {1: 1.0, 2: 1.5, 3: 2.0}, 20)
    assert run(widths, {1: 1.0, 2: 1.5}, 5, widest=2) == [2] * 5  # steps 21 to 25
    assert run(widths, {1: 1.0}, 3, widest=1) == [1] * 3


def test_a_worker_of_several_threads_is_never_narrower() -> None:
    widths = Widths(2)
    taken = run(widths, {2: 1.0, 3: 1.4, 4: 1.2}, 5 * LOOK_AGAIN)
    assert min(taken) == 2
    assert taken[-10:-5] == [3] * 5


def test_steps_that_took_no_time_are_not_believed() -> None:
    widths = Widths()
    widths.observe(Phase.DECODE, 2, 1.0, 0.0)
    widths.observe(Phase.DECODE, 2, 0.0, 1.0)
    assert widths.gain(Phase.DECODE, 2) == 1.0


@pytest.mark.parametrize(("decode", "first"), [(1.4, 36), (0.9, FIRST_OWN)])
def test_prompts_are_measured_later_where_single_tokens_were_faster(
    decode: float, first: int
) -> None:
    widths = Widths()
    widths.suppose(Phase.PREFILL, 2)
    run(widths, {1: 1.0, 2: decode}, 2)
    widths.observe(Phase.DECODE, 1, 1.0, 1.0)
    taken = []
    for _ in range(first):
        taken.append(widths.choose(Phase.PREFILL, 2, known=False))
        widths.observe(Phase.PREFILL, taken[-1], 1.0, 1 / 1.7)
    assert taken == [2] * (first - 1) + [1]
