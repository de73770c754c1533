"""Which shapes of workers a box can have, and which measured one is taken."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbhost.machine.topology import PhysicalCore, Topology
from lbhost.tuning.shapes import (
    WIN,
    Shape,
    Speeds,
    candidates,
    choose,
    contenders,
    gains_of,
    slots_of,
    speed,
)

NARROW, HALF, WIDE = Shape(1, 4), Shape(2, 2), Shape(4, 1)


def box(cores: int, *, nodes: int = 1, quota: float | None = None) -> Topology:
    each = cores // nodes
    return Topology(
        cores=tuple(PhysicalCore(cpus=(n,), node=n // each) for n in range(cores)),
        allowed=frozenset(range(cores)),
        quota_cpus=quota,
    )


def fast(factor: float) -> Speeds:
    return Speeds(prefill=300 * factor, decode=100 * factor)


@pytest.mark.parametrize(
    ("topology", "shapes"),
    [
        (box(1), ["1 x 1"]),
        (box(2), ["2 x 1", "1 x 2"]),
        (box(3), ["3 x 1", "1 x 3"]),  # 1 x 2 would leave a third of the cores alone
        (box(4), ["4 x 1", "2 x 2", "1 x 4"]),
        (box(16), ["16 x 1", "8 x 2", "2 x 8", "1 x 16"]),
        (box(4, quota=2.0), ["2 x 1", "1 x 2"]),
        (box(8, nodes=2), ["8 x 1", "4 x 2", "2 x 4"]),  # nobody spans nodes
    ],
)
def test_shapes_use_the_cores_there_are(topology: Topology, shapes: list[str]) -> None:
    assert [str(candidate.shape) for candidate in candidates(topology, 4)] == shapes


def test_a_thorough_look_takes_every_power_of_two() -> None:
    found = candidates(box(16), 4, thorough=True)
    assert [c.shape.threads for c in found] == [1, 2, 4, 8, 16]


def test_one_node_is_measured_and_stands_for_all() -> None:
    narrow = candidates(box(8, nodes=2), 4)[0]
    assert narrow.shape.workers == 8
    assert [place.cpus for place in narrow.placements] == [(0,), (1,), (2,), (3,)]


def test_every_shape_holds_the_same_sequences() -> None:
    assert {c.slots * c.shape.workers for c in candidates(box(4), 4)} == {16}


def test_a_worker_has_no_more_slots_than_the_setting_allows_and_no_fewer_than_asked() -> None:
    assert slots_of(4, 32) == 64
    assert slots_of(64, 2) == 64


def test_a_wider_shape_that_is_faster_in_every_round_is_taken() -> None:
    rounds = {NARROW: [fast(1), fast(0.8)], WIDE: [fast(1.2), fast(1.0)]}
    assert choose(rounds) == WIDE


def test_ties_go_to_one_thread_each() -> None:
    assert choose({NARROW: [fast(1)] * 2, WIDE: [fast(1.09)] * 2}) == NARROW


def test_one_lucky_round_does_not_win() -> None:
    assert choose({NARROW: [fast(1), fast(0.4)], WIDE: [fast(1), fast(1.2)]}) == NARROW


def test_of_four_rounds_one_may_be_lost() -> None:
    readings = [fast(1.3), fast(0.5), fast(1.3), fast(1.3)]
    assert choose({NARROW: [fast(1)] * 4, WIDE: readings}) == WIDE


def test_of_wider_shapes_the_next_must_beat_the_last_winner() -> None:
    half, wide = [fast(1.3)] * 2, [fast(1.35)] * 2
    assert choose({NARROW: [fast(1)] * 2, HALF: half, WIDE: wide}) == HALF


def test_prompts_and_answers_both_count() -> None:
    """Twice the prefill does not pay for half the decode."""
    assert Speeds(600, 50).requests_s < Speeds(300, 100).requests_s


def test_what_lost_is_not_measured_again_and_cannot_win() -> None:
    rounds = {NARROW: [fast(1)], HALF: [fast(1.0)], WIDE: [fast(1.5)]}
    assert contenders(rounds) == [NARROW, WIDE]
    rounds[NARROW].append(fast(1))
    rounds[WIDE].append(fast(0.9))
    assert choose(rounds) == NARROW


def test_nothing_measured_is_no_choice() -> None:
    with pytest.raises(ValueError):
        choose({NARROW: []})


speeds = st.builds(Speeds, st.floats(0, 1e4), st.floats(0, 1e4))


@given(st.lists(st.tuples(speeds, speeds), min_size=1, max_size=6))
def test_settled_means_that_no_further_round_changes_the_choice(
    pairs: list[tuple[Speeds, Speeds]],
) -> None:
    first = {NARROW: [pairs[0][0]], WIDE: [pairs[0][1]]}
    if len(pairs) > 3 or WIDE in contenders(first):
        return
    rounds = {NARROW: [a for a, _ in pairs], WIDE: [b for _, b in pairs]}
    assert choose(rounds) == NARROW


@given(st.lists(st.tuples(st.floats(0.75, 1.3), st.floats(0.75, 1.3)), min_size=2, max_size=2))
def test_noise_of_a_quarter_cannot_flip_what_is_a_third_slower(
    noise: list[tuple[float, float]],
) -> None:
    """The starter model on two cores: two threads do 0.75 of two pinned workers."""
    rounds = {
        NARROW: [fast(1.0 * a) for a, _ in noise],
        WIDE: [fast(0.75 * b) for _, b in noise],
    }
    if min(0.75 * b / a for a, b in noise) < WIN:
        assert choose(rounds) == NARROW


def test_the_middle_reading_is_told() -> None:
    assert speed([fast(1), fast(9), fast(2)]) == fast(2)


def test_what_was_measured_tells_what_each_wider_worker_brings() -> None:
    told = {
        "4 x 1": Speeds(400.0, 80.0),
        "2 x 2": Speeds(360.0, 70.0),
        "1 x 4": Speeds(300.0, 84.0),
    }
    two, four = gains_of(told, 1)
    assert msgspec.structs.astuple(two) == pytest.approx((2, 1.8, 1.75))
    assert msgspec.structs.astuple(four) == pytest.approx((4, 3.0, 4.2))
    (wider,) = gains_of(told, 2)
    assert msgspec.structs.astuple(wider) == pytest.approx((4, 300 / 180, 84 / 35))
    assert gains_of(told, 4) == ()


@pytest.mark.parametrize("name", ["", "2", "2 x", "x 2", "0 x 1", "2 x 1 x 1", "two x one"])
def test_what_is_no_shape_or_tells_no_speed_is_left_out(name: str) -> None:
    assert Shape.named(name) is None
    told = {"2 x 1": Speeds(200.0, 40.0), name: Speeds(1.0, 1.0)}
    assert gains_of(told, 1) == ()
    assert gains_of({"2 x 1": Speeds(200.0, None), "1 x 2": Speeds(190.0, None)}, 1) == ()


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_a_shape_has_its_name(threads: int, workers: int) -> None:
    shape = Shape(threads=threads, workers=workers)
    assert Shape.named(str(shape)) == shape
