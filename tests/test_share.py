from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from lbhost.board import CoreRow, GpuRow, HostRow
from lbhost.placement.share import FLOOR, fair, share

WARM, HOT = 80.0, 95.0
NICE = 5
FAIR = fair(NICE)


def of(*cores: CoreRow | None, **more: Any) -> float:
    return share(cores, **({"nice": NICE, "warm_c": WARM, "hot_c": HOT} | more))


def test_nothing_known_leaves_everything() -> None:
    assert of() == of(None) == of(CoreRow()) == 1.0
    assert of(CoreRow(), None, host=HostRow(), gpu=GpuRow(), siblings=[None, CoreRow()]) == 1.0


@pytest.mark.parametrize(("others", "left"), [(0.0, 1.0), (0.3, 0.7), (0.95, FAIR), (1.0, FAIR)])
def test_others_take_what_they_use(others: float, left: float) -> None:
    assert of(CoreRow(idle=1 - others, others=others)) == pytest.approx(left)


def test_what_the_hypervisor_takes_the_scheduler_cannot_give_back() -> None:
    assert of(CoreRow(idle=0.0, others=1.0, steal=0.5)) == pytest.approx(FAIR / 2)
    assert of(CoreRow(idle=0.0, others=1.0, steal=1.0)) == pytest.approx(FLOOR)


def test_others_at_lowered_priority_give_way_to_half_of_the_core() -> None:
    assert of(CoreRow(idle=0.0, others=1.0, niced=1.0)) == pytest.approx(0.5)
    assert of(CoreRow(idle=0.0, others=1.0, niced=0.5)) == pytest.approx((FAIR + 0.5) / 2)
    assert of(CoreRow(idle=0.8, others=0.2, niced=0.2)) == pytest.approx(0.8)


def test_niceness_decides_what_a_worker_gets_beside_a_program_that_wants_all() -> None:
    busy = CoreRow(idle=0.0, others=1.0)
    assert of(busy, nice=0) == pytest.approx(0.5)
    assert of(busy, nice=5) == pytest.approx(335 / (335 + 1024), rel=0.01)
    assert of(busy, nice=19) == FLOOR


def test_what_lasts_is_believed_and_not_the_moment() -> None:
    moment = CoreRow(idle=0.1, others=0.9, lasting=0.2)
    assert of(moment) == pytest.approx(0.8)
    assert of(CoreRow(idle=1.0, others=0.0, lasting=0.6)) == pytest.approx(0.4)
    assert of(CoreRow(), siblings=[moment]) == pytest.approx(1 - 0.4 * 0.2)


def test_own_use_costs_nothing() -> None:
    assert of(CoreRow(idle=0.0, others=0.0)) == 1.0


def test_the_slowest_core_sets_the_pace_of_a_worker_of_several_threads() -> None:
    assert of(CoreRow(others=0.1), CoreRow(others=0.6), None) == pytest.approx(0.4)
    # The worst of each factor, wherever it is: 0.6 free, and 0.5 by throttling elsewhere.
    assert of(CoreRow(others=0.4), CoreRow(throttle_s=1.0)) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("temp_c", "left"),
    # Halfway from warm to hot is halfway from 1 to 0.05.
    [(20, 1.0), (80, 1.0), (87.5, 0.525), (83, 0.81), (95, 0.05), (110, 0.05)],
)
def test_heat_takes_linearly_from_warm_to_hot(temp_c: float, left: float) -> None:
    assert of(CoreRow(temp_c=temp_c)) == pytest.approx(left)


@pytest.mark.parametrize(
    ("idle", "ratio", "left"),
    [
        (0.0, 0.35, 0.5),  # busy at half of what counts as normal
        (0.3, 0.35, 0.5),  # 0.7 busy still counts fully
        (0.5, 0.35, 0.75),  # 0.5 busy counts half
        (0.7, 0.35, 1.0),  # an idle core clocks down by itself
        (1.0, 0.1, 1.0),
        (0.0, 0.7, 1.0),  # all-core turbo
        (0.0, 1.0, 1.0),
        (None, 0.2, 1.0),  # busy or not is unknown
    ],
)
def test_a_low_clock_counts_on_busy_cores_alone(
    idle: float | None, ratio: float, left: float
) -> None:
    assert of(CoreRow(idle=idle, others=0.0, freq_ratio=ratio)) == pytest.approx(left)


@pytest.mark.parametrize(("rate", "left"), [(0.0, 1.0), (0.25, 0.8), (1.0, 0.5), (99.0, FLOOR)])
def test_new_throttle_events_count_before_it_is_hot(rate: float, left: float) -> None:
    assert of(CoreRow(temp_c=70.0, throttle_s=rate)) == pytest.approx(left)


def test_signs_of_one_cause_are_not_counted_twice() -> None:
    core = CoreRow(idle=0.0, others=0.0, freq_ratio=0.35, throttle_s=0.25, temp_c=83)
    assert of(core) == pytest.approx(0.5)
    assert of(msgspec_replace(core, others=0.2)) == pytest.approx(0.4)


def msgspec_replace(core: CoreRow, **changes: float) -> CoreRow:
    values = {name: getattr(core, name) for name in core.__struct_fields__}
    return CoreRow(**(values | changes))


def test_a_throttled_quota_takes_half_of_the_throttled_periods() -> None:
    assert of(CoreRow(), host=HostRow(throttled=0.5)) == 0.75
    assert of(CoreRow(), host=HostRow(throttled=1.0)) == 0.5
    assert of(CoreRow(others=0.5), host=HostRow(throttled=1.0)) == 0.25


def test_a_busy_smt_sibling_takes_forty_percent() -> None:
    assert of(CoreRow(), siblings=[CoreRow(idle=0.0)]) == pytest.approx(0.6)
    assert of(
        CoreRow(others=0.5), siblings=[CoreRow(idle=0.5), CoreRow(idle=1.0)]
    ) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("gpu", "left"),
    [
        (GpuRow(utilisation=1.0, temp_c=70, clock_limit="power"), 1.0),
        (GpuRow(clock_limit="thermal"), 0.5),
        (GpuRow(clock_limit="power,slowdown"), 0.5),
        (GpuRow(temp_c=95), FLOOR),
        (GpuRow(temp_c=83, clock_limit="brake"), 0.5),
    ],
)
def test_a_slowed_gpu_counts(gpu: GpuRow, left: float) -> None:
    assert of(CoreRow(), gpu=gpu) == pytest.approx(left)


def test_it_is_never_zero_nor_above_one() -> None:
    values: tuple[float | None, ...] = (None, 0.0, 0.5, 1.0)
    for idle, others, ratio, throttled in product(values, repeat=4):
        for temp in (None, 20.0, 90.0, 140.0):
            core = CoreRow(
                idle=idle, others=others, freq_ratio=ratio, temp_c=temp, throttle_s=others
            )
            left = of(core, host=HostRow(throttled=throttled), siblings=[core])
            assert FLOOR <= left <= 1.0
