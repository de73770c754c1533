"""Which number of threads a step gets: what pays is kept, what does not is left, all is retried."""

from __future__ import annotations

from collections.abc import Mapping

from lbhost.placement.gain import WidthGain
from lbhost.worker.widths import DOUBTS, EARLY, FIRST_OWN, LOOK_AGAIN, Phase, Widths


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
    assert [step for step, width in enumerate(taken[3:], 4) if width != 4] == sorted(EARLY)


def test_it_stops_widening_where_nothing_is_won() -> None:
    taken = run(Widths(), {1: 1.0, 2: 1.5, 3: 1.51, 4: 3.0}, LOOK_AGAIN - 1)
    assert taken[:3] == [2, 3, 2]
    assert set(taken[2:]) == {1, 2, 3}
    assert taken.count(3) == 1 + len([4, 8, 16])
    assert taken.count(1) == len(EARLY)


def test_what_one_disturbed_step_makes_look_useless_is_looked_at_again_soon() -> None:
    widths = Widths(1, [WidthGain(2, 1.5, 1.5)])
    run(widths, {1: 1.0, 2: 0.7}, 1, phase=Phase.PREFILL)  # whose core it is was not done yet
    taken = run(widths, {1: 1.0, 2: 1.8}, 40, phase=Phase.PREFILL)
    assert taken[:6] == [1, 1, 1, 1, 2, 2]
    assert set(taken[6:]) == {1, 2}
    assert taken[6:].count(1) == len(EARLY)


def test_looks_at_what_does_not_pay_become_rare() -> None:
    taken = run(Widths(), {1: 1.0, 2: 0.8}, 4 * LOOK_AGAIN)
    looks = [step for step, width in enumerate(taken, 1) if width == 2]
    assert looks[:5] == [1, 6, 15, 32, LOOK_AGAIN]
    assert len(looks) <= 1 + DOUBTS + 4 // 2


def test_what_paid_is_looked_at_soon_when_it_seems_not_to_any_more() -> None:
    widths = Widths()
    run(widths, {1: 1.0, 2: 1.6}, LOOK_AGAIN + 1)
    slow = run(widths, {1: 1.0, 2: 0.9}, 30)  # the whole box was slow, say: what one core takes is
    fast = run(widths, {1: 1.0, 2: 1.6}, 10)  # measured now and then only
    assert 4 <= slow.index(1) < 15
    assert set(slow[slow.index(1) :]) == {1, 2}
    assert fast[-1] == 2


def test_prompts_and_single_tokens_have_widths_of_their_own() -> None:
    widths = Widths()
    assert run(widths, {1: 1.0, 2: 0.8}, 5)[1:] == [1] * 4
    assert run(widths, {1: 1.0, 2: 1.8}, 10, phase=Phase.PREFILL).count(2) == 9
    assert widths.gain(Phase.PREFILL, 2) > 1.5 > 1.0 > widths.gain(Phase.DECODE, 2)


def test_a_neighbour_that_comes_makes_it_narrow_and_one_that_goes_wide_again() -> None:
    widths = Widths()
    run(widths, {1: 1.0, 2: 1.6}, 200)
    narrow = run(widths, {1: 1.0, 2: 0.5}, 20 * LOOK_AGAIN)
    assert narrow[-LOOK_AGAIN // 2 :].count(1) >= LOOK_AGAIN // 2 - 1
    wide = run(widths, {1: 1.0, 2: 1.6}, 60 * LOOK_AGAIN)
    assert wide[-LOOK_AGAIN // 2 :].count(2) >= LOOK_AGAIN // 2 - 1


def test_a_gain_that_was_measured_while_nothing_was_computed_is_none() -> None:
    widths = Widths(1, [WidthGain(2, 1.8, 0.0)])
    assert widths.gain(Phase.DECODE, 2) == 1.0
    assert run(widths, {1: 1.0, 2: 1.5}, 20).count(2) == 19  # the own threads look in FIRST_OWN


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
