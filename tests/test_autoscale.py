"""How many workers each model has: rules and properties of the pure decision, and a small day."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.stats import Arrival
from lbhost.supervisor.autoscale import (
    COOLDOWN_S,
    MOST_COOLDOWN_S,
    TRADE_S,
    Autoscaler,
    Bounds,
    Decision,
    Look,
)
from simulation import day_report
from simulation.day import Model, daily, play, through_the_day

TICK_S = 0.25


class Box:
    """Models whose load a test sets; time passes tick by tick, and what is decided is done."""

    def __init__(self, cores: int = 8, **bounds: Bounds) -> None:
        self.cores = cores
        self.now_s = 1000.0
        self.looks = {name: idle(one) for name, one in bounds.items()}
        self.scaler = Autoscaler()
        self.told: list[tuple[str, Decision]] = []

    def passes(self, seconds: float, **work_per_s: float) -> list[tuple[str, Decision]]:
        """So much work comes for each model meanwhile, served at once. What was decided."""
        begun = len(self.told)
        for _ in range(math.ceil(seconds / TICK_S)):
            self.now_s += TICK_S
            for name, rate in work_per_s.items():
                look = self.looks[name]
                self.set(
                    name,
                    requests=look.requests + 1,
                    work_s=look.work_s + rate * TICK_S,
                    in_flight=math.ceil(2 * rate),
                )
            self.look()
        return self.told[begun:]

    def set(self, name: str, **figures: Any) -> None:
        self.looks[name] = msgspec.structs.replace(self.looks[name], **figures)

    def look(self) -> Mapping[str, Decision]:
        decided = self.scaler.decide(self.looks, self.cores, self.now_s)
        for name, decision in decided.items():
            self.set(name, workers=decision.workers)
            self.told.append((name, decision))
        return decided

    def workers(self, name: str) -> int:
        return self.looks[name].workers


def idle(bounds: Bounds, workers: int = 1) -> Look:
    return Look(
        bounds=bounds,
        workers=workers,
        requests=0,
        work_s=0.0,
        backlog_s=0.0,
        queued=0,
        in_flight=0,
        slots=4,
    )


def test_more_work_brings_workers_before_those_there_are_are_used_up() -> None:
    box = Box(a=Bounds(1, 8))
    box.passes(300, a=0.5)
    assert box.workers("a") == 1
    ((_, decision),) = box.passes(300, a=0.9)
    assert decision.workers == 2
    assert "work comes" in decision.reason


def test_a_queue_brings_workers_at_once() -> None:
    box = Box(a=Bounds(1, 8))
    box.look()
    box.now_s += TICK_S
    box.set("a", queued=5, in_flight=4, backlog_s=12.0)
    decided = box.look()
    assert decided["a"].workers == 3
    assert decided["a"].reason == "5 requests wait, 12.0 s of work"


def test_one_request_is_no_reason_for_two_workers_however_long_it_is() -> None:
    box = Box(a=Bounds(1, 8))
    box.look()
    box.now_s += TICK_S
    box.set("a", requests=1, work_s=500.0, in_flight=1)
    assert not box.look()


def test_slots_that_are_taken_count_where_work_is_judged_too_small() -> None:
    box = Box(a=Bounds(1, 8))
    box.set("a", in_flight=4)
    assert [decision.workers for _, decision in box.passes(120)] == [2]


def test_a_worker_goes_after_the_cooldown_and_not_before() -> None:
    box = Box(a=Bounds(1, 8))
    box.passes(300, a=2.0)
    assert box.workers("a") == 4
    box.set("a", in_flight=0)
    box.passes(COOLDOWN_S - 1)
    assert box.workers("a") == 4
    box.passes(10 * COOLDOWN_S)
    assert box.workers("a") == 1


def test_a_cooldown_that_was_too_short_is_doubled_and_forgotten_after_long_calm() -> None:
    box = Box(a=Bounds(1, 8))
    changes = 0
    for _ in range(60):  # an hour in which the need comes and goes
        changes += len(box.passes(20, a=1.6))
        box.set("a", in_flight=0)
        changes += len(box.passes(COOLDOWN_S + 40))
    assert changes <= 2 * math.log2(MOST_COOLDOWN_S / COOLDOWN_S) + 6
    box.set("a", in_flight=0)
    box.passes(MOST_COOLDOWN_S + 10)
    assert box.workers("a") == 1


def test_an_idle_model_sleeps_and_a_request_wakes_it_at_once() -> None:
    box = Box(a=Bounds(0, 4, sleep_after_s=30.0))
    box.passes(20, a=0.1)
    box.set("a", in_flight=0)
    assert not box.passes(29)
    ((_, slept),) = box.passes(3)
    assert slept == Decision(0, "no request for 30 s")
    assert not box.passes(3600)
    box.now_s += TICK_S
    box.set("a", queued=1)
    assert box.look()["a"] == Decision(1, "a request has come")
    box.set("a", queued=0)
    assert not box.passes(29)


def test_what_loads_for_longer_than_idle_ones_stay_is_not_put_to_sleep_meanwhile() -> None:
    box = Box(a=Bounds(0, 4, sleep_after_s=30.0))
    box.set("a", starting=True)
    assert not box.passes(600)
    box.set("a", starting=False)
    assert not box.passes(29)
    ((_, slept),) = box.passes(3)
    assert slept.workers == 0


def test_a_model_that_may_have_none_but_never_sleeps_keeps_one() -> None:
    box = Box(a=Bounds(0, 4))
    assert not box.passes(3600)
    assert box.workers("a") == 1


def test_sleep_ends_when_it_is_not_allowed_any_more() -> None:
    box = Box(a=Bounds(0, 4, sleep_after_s=1.0))
    box.passes(2)
    assert box.workers("a") == 0
    box.set("a", bounds=Bounds(1, 4, sleep_after_s=1.0))
    assert box.look()["a"] == Decision(1, "it does not sleep")


def test_what_somebody_has_fixed_stays_and_its_cores_are_not_given_to_others() -> None:
    box = Box(4, a=Bounds(1, 4, fixed=True), b=Bounds(1, 4))
    box.set("a", workers=3, queued=50, backlog_s=500.0)
    box.set("b", queued=50, backlog_s=500.0)
    box.passes(600)
    assert (box.workers("a"), box.workers("b")) == (3, 1)


def test_cores_go_where_the_work_is_and_back() -> None:
    box = Box(4, a=Bounds(1, 4), b=Bounds(1, 4))
    box.passes(300, a=2.0, b=0.1)
    assert (box.workers("a"), box.workers("b")) == (3, 1)
    box.set("a", in_flight=0)
    box.passes(300, b=2.0)
    assert (box.workers("a"), box.workers("b")) == (1, 3)


def test_a_flooded_model_takes_no_core_that_another_needs() -> None:
    box = Box(8, a=Bounds(1, 8), b=Bounds(1, 8))
    box.passes(300, a=2.4, b=0.1)
    assert box.workers("a") == 4
    box.set("b", queued=500, backlog_s=5000.0)
    box.passes(600, a=2.4)
    assert (box.workers("a"), box.workers("b")) == (4, 4)


def test_two_flooded_models_share_evenly_and_leave_it_at_that() -> None:
    box = Box(8, a=Bounds(1, 8), b=Bounds(1, 8))
    box.set("a", workers=7, queued=100, backlog_s=1000.0)
    box.set("b", queued=100, backlog_s=1000.0)
    box.passes(TRADE_S + 1)
    assert (box.workers("a"), box.workers("b")) == (4, 4)
    assert not box.passes(3600)


def test_flooded_models_share_by_their_weights_and_leave_it_at_that() -> None:
    box = Box(9, a=Bounds(1, 9), b=Bounds(1, 9), c=Bounds(1, 9))
    for name, weight in (("a", 2.0), ("b", 1.0), ("c", 1.0)):
        box.set(name, queued=100, backlog_s=1000.0, weight=weight)
    box.passes(3 * TRADE_S)
    assert [box.workers(name) for name in "abc"] == [5, 2, 2]
    assert not box.passes(3600)


def test_a_heavy_model_takes_no_core_that_it_does_not_need() -> None:
    box = Box(4, a=Bounds(1, 4), b=Bounds(1, 4))
    box.set("a", weight=100.0)
    box.set("b", queued=100, backlog_s=1000.0)
    box.passes(3 * TRADE_S, a=0.5)
    assert (box.workers("a"), box.workers("b")) == (1, 3)


def test_who_is_held_back_by_a_fixed_number_is_known_and_who_by_others_need_is_not() -> None:
    box = Box(4, a=Bounds(1, 4, fixed=True), b=Bounds(1, 4))
    box.set("a", workers=3)
    box.passes(10, b=0.1)
    assert box.scaler.held_back == {}
    box.set("b", queued=50, backlog_s=500.0)
    box.look()
    assert box.scaler.held_back == {"b": "a"}
    box.set("a", bounds=Bounds(1, 4), queued=50, backlog_s=500.0)
    box.passes(2 * TRADE_S)
    assert (box.workers("a"), box.workers("b")) == (2, 2)
    assert box.scaler.held_back == {}


def test_a_model_that_wakes_gets_a_core_of_one_that_has_just_got_it() -> None:
    box = Box(2, a=Bounds(1, 2), b=Bounds(0, 2, sleep_after_s=10.0))
    box.passes(20, a=0.1)
    box.set("a", queued=9, backlog_s=50.0)
    box.passes(1)
    assert (box.workers("a"), box.workers("b")) == (2, 0)
    box.set("b", queued=1)
    box.passes(1)
    assert (box.workers("a"), box.workers("b")) == (1, 1)


def test_requests_that_were_refused_keep_no_model_awake() -> None:
    box = Box(a=Bounds(0, 8, sleep_after_s=10.0))
    for number in range(math.ceil(11 / TICK_S)):
        box.set("a", requests=number)
        box.passes(TICK_S)
    assert box.workers("a") == 0


def test_a_new_gateway_that_counts_from_nothing_is_no_negative_work() -> None:
    box = Box(a=Bounds(1, 8))
    box.passes(300, a=2.0)
    box.set("a", requests=1, work_s=0.5)
    assert not box.passes(TICK_S)
    assert box.workers("a") == 4


_bounds = st.builds(
    lambda least, more, after, fixed: Bounds(least, max(1, least + more), after, fixed),
    st.integers(0, 3),
    st.integers(0, 6),
    st.sampled_from([0.0, 5.0, 60.0]),
    st.sampled_from([False, False, False, True]),
)
_load = st.tuples(
    st.integers(0, 20), st.floats(-1, 30), st.integers(0, 40), st.floats(0, 200), st.integers(0, 30)
)


@settings(deadline=None)
@given(
    st.integers(1, 12),
    st.lists(_bounds, min_size=1, max_size=4),
    st.data(),
)
def test_no_load_leads_out_of_the_bounds(
    cores: int, bounds: list[Bounds], data: st.DataObject
) -> None:
    """Bounds hold, cores suffice but for the least, nobody who waits is left asleep."""
    names = [f"m{i}" for i in range(len(bounds))]
    looks = {n: idle(b, max(1, b.least)) for n, b in zip(names, bounds, strict=True)}
    scaler, now_s = Autoscaler(), 0.0
    for _ in range(data.draw(st.integers(1, 25))):
        now_s += data.draw(st.sampled_from([0.0, 0.25, 0.25, 5.0, 100.0]))
        for name in names:
            more, work_s, queued, backlog_s, in_flight = data.draw(_load)
            look = looks[name]
            looks[name] = msgspec.structs.replace(
                look,
                requests=look.requests + more,
                work_s=look.work_s + work_s,
                queued=queued,
                backlog_s=backlog_s if queued else 0.0,
                in_flight=in_flight,
            )
        decided = scaler.decide(looks, cores, now_s)
        for name, decision in decided.items():
            assert decision.reason
            assert decision.workers != looks[name].workers
            assert not looks[name].bounds.fixed
            looks[name] = msgspec.structs.replace(looks[name], workers=decision.workers)
        least = 0
        for look in looks.values():
            b = look.bounds
            if not b.fixed:
                assert (0 if b.may_sleep else b.awake) <= look.workers <= b.most
                assert look.workers or not (look.queued or look.in_flight)
            least += look.workers if b.fixed else min(look.workers, b.awake)
        assert sum(look.workers for look in looks.values()) <= max(cores, least)
        assert not scaler.decide(looks, cores, now_s), "a decision holds until something changes"


@pytest.fixture(scope="module")
def hours() -> list[Arrival]:
    """A trace with bursts, in the shape of the real one: some ten minutes at one a second."""
    rng = random.Random(4)
    at, made = 0.0, []
    for number in range(600):
        at += rng.expovariate(4.0 if number % 60 < 15 else 0.8)
        made.append(Arrival(at, rng.choice([60, 300, 900]), rng.choice([10, 60, 200])))
    return made


def test_a_small_day_without_back_and_forth_and_nobody_waits(hours: list[Arrival]) -> None:
    """Six hours of two models, one of which sleeps at night, in simulated time."""
    length_s = 6 * 3600.0

    def load(most: float, seed: int) -> list[Arrival]:
        curve = daily(most, 0.002, 12)
        rng = random.Random(seed)
        return through_the_day(hours, lambda now_s: curve(4 * now_s), length_s, rng)

    models = {
        "big": Model(Bounds(1, 8), load(0.6, 1)),
        "small": Model(Bounds(0, 8, sleep_after_s=300.0), load(0.15, 2)),
    }
    day = play(models, 8, length_s)
    for name, outcome in day.outcomes.items():
        waits = sorted(outcome.waits)
        assert len(waits) == len(models[name].arrivals)
        assert waits[int(0.99 * len(waits))] < 1.0, name
    assert day.most_cores <= 8
    assert 4 <= len(day.changes) <= 80
    assert day.back_and_forth(120.0) <= 2
    assert day.back_and_forth(600.0) <= 12
    assert day.outcomes["small"].asleep_s > 1800
    always = 8 * length_s
    assert day.outcomes["big"].worker_s < 0.6 * always
    assert max(change.workers for change in day.changes if change.model == "big") >= 4


def test_a_days_report_says_what_was_decided_and_how_long_requests_waited() -> None:
    arrivals = [Arrival(float(at), 60, 10) for at in range(1, 100)]
    played = play({"a": Model(Bounds(0, 2, sleep_after_s=60.0), arrivals)}, 2, 300.0)
    told = day_report.table("a way", played)
    assert told.startswith("a way: 1 changes, 1 of them to sleep")
    assert "a: 99 requests, wait p50" in told
