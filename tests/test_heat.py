"""Which workers rest when their cores are hot: sensors of their own, and shared ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbhost.board import Board, CoreRow, WorkerState
from lbhost.config import Settings
from lbhost.placement.heat import PACE_S, Change, Domain, Limits, decide, limits_of, of_chip
from lbhost.placement.placement import Placement
from lbhost.placement.share import FLOOR, SHARED_HOT, share
from lbhost.supervisor.lifecycle import Event
from lbhost.supervisor.thermal import Place, Thermal

LIMITS = Limits(80, 95)
REST, WAKE = Change.REST, Change.WAKE


def own(temps: dict[int, float | None]) -> list[Domain]:
    return [Domain(f"core {w}", (w,), temp, LIMITS) for w, temp in temps.items()]


def run(ready: set[int], resting: set[int], temps: dict[int, float | None]) -> dict[int, Change]:
    return decide(own(temps), frozenset(ready), frozenset(resting), 0.0)


def test_a_hot_worker_rests_and_returns_when_it_is_back_at_warm() -> None:
    assert run({0, 1}, set(), {0: 96.0, 1: 50.0}) == {0: REST}
    assert run({1}, {0}, {0: 90.0, 1: 50.0}) == {}
    assert run({1}, {0}, {0: 80.0, 1: 50.0}) == {0: WAKE}


def test_a_worker_of_two_cores_rests_until_both_are_back_at_warm() -> None:
    def two(first: float, second: float, resting: bool) -> dict[int, Change]:
        domains = [Domain("a", (0,), first, LIMITS), Domain("b", (0,), second, LIMITS)]
        domains.append(Domain("c", (1,), 50.0, LIMITS))
        there = frozenset({0})
        ready, asleep = (frozenset({1}), there) if resting else (there | {1}, frozenset[int]())
        return decide(domains, ready, asleep, 0.0)

    assert two(96.0, 50.0, resting=False) == {0: REST}
    assert two(96.0, 50.0, resting=True) == {}
    assert two(50.0, 81.0, resting=True) == {}
    assert two(80.0, 80.0, resting=True) == {0: WAKE}


def test_the_last_ready_worker_never_rests() -> None:
    assert run({0}, set(), {0: 120.0}) == {}
    assert run({0, 1}, set(), {0: 97.0, 1: 99.0}) == {1: REST}
    assert run({0}, set(), {0: 97.0, 1: 20.0}) == {}


def test_half_of_the_workers_go_on_when_every_core_is_hot() -> None:
    changes = run(set(range(8)), set(), {w: 95.0 + w for w in range(8)})
    assert changes == dict.fromkeys((7, 6, 5, 4), REST)


def test_the_coolest_resting_worker_returns_when_no_other_is_ready() -> None:
    assert run(set(), {0, 1}, {0: 99.0, 1: 94.0, 2: 20.0}) == {1: WAKE}


def test_unknown_temperatures_change_nothing_but_end_a_rest() -> None:
    assert run({0, 1}, set(), {0: None, 1: None}) == {}
    assert run({1}, {0}, {0: None, 1: 50.0}) == {0: WAKE}
    assert run({1}, {0}, {1: 50.0}) == {0: WAKE}


def test_a_chip_that_runs_at_its_limit_by_design_stops_nobody() -> None:
    workers = tuple(range(16))
    tctl = Domain("Tctl", workers, 95.0, LIMITS)
    assert decide([tctl], frozenset(workers), frozenset(), 100.0) == {}


def test_a_shared_sensor_thins_out_the_work_and_settles() -> None:
    """A package that heats with the number of its busy workers and whose fan has failed."""
    workers = tuple(range(16))
    ready, resting = set(workers), set[int]()
    temp, changed, changes = 90.0, -1e9, 0
    for tick in range(4000):
        now = tick * 0.25
        temp += 0.25 * 0.1 * (50.0 + 4.0 * len(ready) - temp)  # 16 busy: 114 degrees in the end
        domain = Domain("package", workers, temp, LIMITS, changed)
        for worker, change in decide([domain], frozenset(ready), frozenset(resting), now).items():
            assert now - changed >= PACE_S
            changed = now
            if tick > 2000:
                changes += 1
            (ready if change is WAKE else resting).add(worker)
            (resting if change is WAKE else ready).discard(worker)
        assert len(ready) >= 8
    assert temp < LIMITS.hot_c + 5
    assert changes <= 500 / PACE_S / 2, "it hardly swings"


@given(
    temps=st.lists(st.none() | st.floats(20, 130), min_size=1, max_size=8),
    split=st.integers(0, 8),
    shared=st.none() | st.floats(20, 130),
)
def test_somebody_is_always_left(
    temps: list[float | None], split: int, shared: float | None
) -> None:
    workers = range(len(temps))
    ready = {w for w in workers if w >= split}
    resting = set(workers) - ready
    domains = [*own(dict(enumerate(temps))), Domain("all", tuple(workers), shared, LIMITS)]
    changes = decide(domains, frozenset(ready), frozenset(resting), 0.0)
    after = {w for w in ready if changes.get(w) is not REST}
    after |= {w for w in resting if changes.get(w) is WAKE}
    assert after


def test_the_chips_own_limits_count_unless_the_operator_chose_some() -> None:
    core = CoreRow(temp_c=90, warm_c=85, hot_c=98)
    unset = limits_of(None, None)
    assert of_chip(core, unset) == Limits(85, 98)
    assert of_chip(CoreRow(temp_c=90), unset) == unset
    for warm_c, hot_c in ((60.0, 70.0), (None, 95.0), (80.0, None), (80.0, 95.0)):
        chosen = limits_of(warm_c, hot_c)
        assert of_chip(core, chosen) == chosen, "what is written counts, even if it is the default"
    assert limits_of(None, 90.0) == Limits(80.0, 90.0, chosen=True)


@pytest.mark.parametrize(("cores", "left"), [(1, FLOOR), (16, SHARED_HOT)])
def test_a_shared_sensor_leaves_half_of_a_worker(cores: int, left: float) -> None:
    row = CoreRow(temp_c=95, sensor=0, sensor_cores=cores)
    assert share([row], nice=5, warm_c=80, hot_c=95) == pytest.approx(left)


def test_cpus_with_one_sensor_are_one_domain_on_the_board() -> None:
    page = Board.create(workers=4, cores=4, gpus=0)
    for cpu in range(4):
        page.cores.write(cpu, CoreRow(temp_c=99, sensor=7, sensor_cores=4))
    places = [Place(w, WorkerState.READY, Placement(cpus=(w,), threads=1)) for w in range(4)]
    thermal = Thermal(page, Settings())
    assert thermal.events(places, 10.0) == {3: (Event.HOT, "99 °C")}
    assert thermal.events(places, 10.5) == {}, "one change is watched before the next"
