"""A young worker takes cores that it is lent from its first step on, and measures itself later."""

from __future__ import annotations

import pytest

from lbhost.placement.gain import WidthGain
from lbhost.worker.timing import Timing
from lbhost.worker.widths import EARLY, FIRST_OWN, LOOK_AGAIN, Phase

OWN_S = {Phase.PREFILL: 64 / 400, Phase.DECODE: 0.03}
"""Seconds that the own threads take for a chunk of 64 tokens, and for a token of one sequence."""


class Box:
    """A worker whose steps take what such gains make of OWN_S."""

    def __init__(self, timing: Timing, prefill: dict[int, float], decode: dict[int, float]) -> None:
        self.timing = timing
        self.gains = {Phase.PREFILL: {1: 1.0, **prefill}, Phase.DECODE: {1: 1.0, **decode}}

    def steps(self, phase: Phase, count: int, *, lent: int) -> list[int]:
        """The widths of so many steps with so many cores lent."""
        taken = []
        for _ in range(count):
            width = self.timing.choose(phase, 1 + lent)
            taken.append(width)
            wall_s = OWN_S[phase] / self.gains[phase][width]
            chunk = 64 if phase is Phase.PREFILL else 0
            decoding = 0 if chunk else 1
            self.timing.observe(width, decoding, chunk, cpu_s=wall_s, wall_s=wall_s)
        return taken


def timing(*gains: WidthGain) -> Timing:
    return Timing(fallback_token_s=0.01, tiled=True, slots=4, gains=gains)


def test_the_first_requests_of_a_young_worker_are_computed_on_all_that_it_is_lent() -> None:
    box = Box(timing(), prefill={2: 1.8}, decode={2: 1.5})
    taken: dict[Phase, list[int]] = {Phase.PREFILL: [], Phase.DECODE: []}
    for _ in range(3):  # prompts of 128 tokens, 32 tokens out
        taken[Phase.PREFILL] += box.steps(Phase.PREFILL, 2, lent=1)
        taken[Phase.DECODE] += box.steps(Phase.DECODE, 31, lent=1)
    assert taken[Phase.PREFILL] == [2] * 6
    narrow = [at for at, width in enumerate(taken[Phase.DECODE], 1) if width == 1]
    assert narrow == sorted(EARLY)


def test_what_the_own_threads_take_is_supposed_until_it_is_measured() -> None:
    box = Box(timing(), prefill={2: 1.8}, decode={2: 1.3})
    meter = box.timing.meter
    for phase in Phase:
        box.steps(phase, 1, lent=1)
        assert meter.knows(phase)
        assert not meter.measured(phase)
    assert box.timing.own_s(0, 64) == pytest.approx(OWN_S[Phase.PREFILL], rel=0.4)
    assert box.timing.own_s(1, 0) == pytest.approx(OWN_S[Phase.DECODE], rel=0.4)
    for phase in Phase:
        assert box.steps(phase, FIRST_OWN - 1, lent=1)[-1] == 1
        assert meter.measured(phase)
    assert box.timing.own_s(0, 64) == pytest.approx(OWN_S[Phase.PREFILL])
    assert box.timing.own_s(1, 0) == pytest.approx(OWN_S[Phase.DECODE])
    assert box.timing.widths.gain(Phase.PREFILL, 2) == pytest.approx(1.8, rel=0.01)
    assert box.timing.widths.gain(Phase.DECODE, 2) == pytest.approx(1.3, rel=0.01)


def test_wider_steps_are_compared_with_each_other_before_the_own_threads_were_measured() -> None:
    box = Box(timing(), prefill={}, decode={2: 1.6, 3: 2.1, 4: 2.0, 5: 3.0})
    assert box.steps(Phase.DECODE, FIRST_OWN - 1, lent=4) == [2, 2, 3, 4, 3, 3, 3]
    assert box.steps(Phase.DECODE, 10, lent=4) == [1, 4, *[3] * 8]  # another look at 4


def test_lent_cores_that_are_of_no_use_are_left_alone_once_that_is_known() -> None:
    box = Box(timing(), prefill={}, decode={2: 0.7})
    assert box.steps(Phase.DECODE, FIRST_OWN - 1, lent=1) == [2] * (FIRST_OWN - 1)
    assert box.steps(Phase.DECODE, LOOK_AGAIN - FIRST_OWN, lent=1).count(2) == len([4, 8, 16])


def test_the_first_step_has_as_many_threads_as_the_probe_has_found_to_pay() -> None:
    probed = timing(WidthGain(2, 1.8, 1.4), WidthGain(8, 4.0, 1.42), WidthGain(16, 5.0, 1.3))
    box = Box(probed, prefill={2: 1.8, 8: 4.1, 16: 4.9}, decode={2: 1.5, 3: 1.5})
    assert box.steps(Phase.PREFILL, FIRST_OWN - 1, lent=15) == [16] * (FIRST_OWN - 1)
    assert box.steps(Phase.DECODE, FIRST_OWN - 1, lent=15) == [2, 2, 3, 2, 2, 2, 2]
    assert box.timing.own_s(0, 64) == pytest.approx(OWN_S[Phase.PREFILL], rel=0.1)


def test_what_the_probe_has_found_useless_is_not_tried_first() -> None:
    probed = timing(WidthGain(2, 1.8, 1.01))
    box = Box(probed, prefill={2: 1.8}, decode={2: 1.5})
    assert box.steps(Phase.DECODE, LOOK_AGAIN - 1, lent=1) == [1] * (LOOK_AGAIN - 1)
    assert box.steps(Phase.DECODE, 5, lent=1) == [2] * 5  # it was looked at again, and pays now


def test_a_first_step_that_touched_all_memory_says_nothing_against_what_was_probed() -> None:
    probed = timing(WidthGain(2, 1.6, 1.5))
    wall_s = 2 * OWN_S[Phase.PREFILL]
    assert probed.choose(Phase.PREFILL, 2) == 2
    probed.observe(2, 0, 64, cpu_s=wall_s, wall_s=wall_s)
    box = Box(probed, prefill={2: 1.8}, decode={2: 1.5})
    assert box.steps(Phase.PREFILL, 1, lent=0) == [1]
    assert probed.widths.gain(Phase.PREFILL, 2) == pytest.approx(1.6)
    assert box.steps(Phase.PREFILL, 4, lent=1) == [2] * 4


def test_a_measured_speed_is_not_changed_by_a_supposition() -> None:
    box = Box(timing(), prefill={2: 1.8}, decode={2: 1.5})
    box.steps(Phase.DECODE, 1, lent=0)
    known = box.timing.meter.speeds
    assert box.steps(Phase.DECODE, 3, lent=1) == [2, 2, 2]
    assert box.timing.meter.speeds == known
    assert box.timing.speeds(2).decode_s(1) == pytest.approx(OWN_S[Phase.DECODE] / 1.5)


def test_a_step_that_tells_nothing_of_prompts_is_no_measurement_of_them() -> None:
    box = Box(timing(), prefill={2: 1.8}, decode={2: 1.5})
    box.steps(Phase.DECODE, 1, lent=0)
    box.steps(Phase.PREFILL, 1, lent=1)
    supposed, gain = box.timing.own_s(0, 64), box.timing.widths.gain(Phase.PREFILL, 2)
    box.timing.observe(1, 1, 1, cpu_s=0.9 * OWN_S[Phase.DECODE], wall_s=0.04)
    assert not box.timing.meter.measured(Phase.PREFILL)
    assert box.timing.own_s(0, 64) == supposed
    assert box.timing.widths.gain(Phase.PREFILL, 2) == gain


def test_a_step_that_took_no_time_is_not_believed() -> None:
    made = timing()
    made.observe(2, 1, 0, cpu_s=0.0, wall_s=0.0)
    made.observe(1, 0, 64, cpu_s=0.0, wall_s=0.1)
    assert not any(made.meter.knows(phase) for phase in Phase)


class DeepBox(Box):
    """One on which what long contexts compute takes `slow` times as long."""

    slow = 2.3

    def tokens(self, count: int, *, depth: int) -> list[int]:
        """The widths of so many decode steps of one sequence, with one core lent."""
        taken = []
        for _ in range(count):
            width = self.timing.choose(Phase.DECODE, 2)
            taken.append(width)
            wall_s = OWN_S[Phase.DECODE] / self.gains[Phase.DECODE][width]
            wall_s *= self.slow if depth else 1.0
            self.timing.observe(width, 1, 0, cpu_s=wall_s, wall_s=wall_s, depth=depth)
        return taken


def test_long_contexts_do_not_make_a_second_core_look_useless() -> None:
    box = DeepBox(timing(), prefill={}, decode={2: 1.6})
    taken = [box.tokens(16, depth=0) + box.tokens(48, depth=1200) for _ in range(20)]
    assert sum(answer.count(1) for answer in taken) <= 20 + len(EARLY) + 1
    assert box.timing.widths.gain(Phase.DECODE, 2) == pytest.approx(1.6, rel=0.01)


def test_a_second_core_that_is_useless_is_left_alone_whatever_the_contexts() -> None:
    box = DeepBox(timing(), prefill={}, decode={2: 0.9})
    box.tokens(16, depth=0)
    taken = [box.tokens(48, depth=1200) + box.tokens(16, depth=0) for _ in range(20)]
    assert sum(answer.count(2) for answer in taken[4:]) <= 2 * len(taken)
    assert box.timing.widths.gain(Phase.DECODE, 2) == pytest.approx(0.9, rel=0.01)
