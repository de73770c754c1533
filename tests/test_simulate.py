"""The simulator: simulated time, virtual workers under lbhost's own scheduling, its figures."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest

from benchmarks.stats import Arrival
from lbhost.config import Settings
from simulated_box import QUIET, box, mix, trace_file
from simulation import arrivals as load
from simulation import report, routing
from simulation.clock import START_S, VirtualLoop
from simulation.costs import Costs
from simulation.gaps import Gaps
from simulation.hardware import Core, Disturbance, Kind
from simulation.play import Played, play
from simulation.scenario import End, trouble


def times(played: Played) -> list[tuple[float, float]]:
    return [(request.ttft, request.completion) for request in played.requests]


# --- time -------------------------------------------------------------------------------------


def test_simulated_time_passes_without_waiting_and_in_order() -> None:
    loop = VirtualLoop()
    seen: list[tuple[str, float]] = []
    loop.call_later(7200, lambda: seen.append(("late", loop.time())))
    loop.call_later(3600, lambda: seen.append(("early", loop.time())))
    loop.run_until_complete(asyncio.sleep(10_000))
    loop.close()
    assert [name for name, _ in seen] == ["early", "late"]
    assert [at - START_S for _, at in seen] == pytest.approx([3600, 7200])


def test_a_simulation_in_which_nothing_will_happen_says_so() -> None:
    loop = VirtualLoop()
    with pytest.raises(RuntimeError, match="stands still"):
        loop.run_until_complete(asyncio.Event().wait())
    loop.close()


# --- virtual workers --------------------------------------------------------------------------


def test_a_lonely_request_takes_what_the_costs_say() -> None:
    played = play("cost", [Arrival(0.0, 64, 10)], box(lend=False))
    (request,) = played.requests
    first = QUIET.alone_s(64)
    assert request.ttft == pytest.approx(first)
    assert request.completion == pytest.approx(first + 9 * QUIET.step_s(1))
    assert request.error is None
    assert sum(played.busy_s) == pytest.approx(request.completion)


def test_steps_may_have_a_time_for_each_number_of_sequences_and_are_filled_up() -> None:
    costs = Costs(steps_s=(0.005, 0.012, 0.017, 0.016), step_base_s=0.1, step_seq_s=0.1)
    times = [costs.step_s(sequences) for sequences in range(1, 6)]
    assert times == pytest.approx([0.005, 0.012, 0.016, 0.016, 0.6])
    played = play("cost", [Arrival(0.0, 64, 10)] * 2, box(1, costs))
    assert played.requests[1].gap == pytest.approx(0.012, rel=0.3)


def test_a_lent_core_makes_a_lonely_request_faster() -> None:
    one = [Arrival(0.0, 1000, 100)]
    alone = play("cost", one, box(lend=False))
    lent = play("cost", one, box(lend=True))
    assert lent.requests[0].completion < 0.85 * alone.requests[0].completion
    # Two cores never do more than twice the work of one.
    assert lent.requests[0].completion > 0.5 * alone.requests[0].completion


def test_a_request_waits_for_the_step_that_runs_and_for_no_more() -> None:
    """A long decode is played as one event, but what arrives meanwhile is not kept waiting."""
    costs = Costs(noise=0.0, slots=4)
    played = play("cost", [Arrival(0.0, 64, 500), Arrival(2.0, 16, 5)], box(1, costs))
    late = played.requests[1]
    longest = costs.step_s(1) + costs.step_s(1, [16])
    assert costs.step_s(1, [16]) <= late.ttft <= longest * 1.001


def overloaded(share: float, window_s: float, limit_s: float) -> Played:
    """Requests that are all alike at a multiple of the capacity, by a queue timeout."""
    costs = Costs(noise=0.05)
    rng = random.Random(3)
    alike = [(1.0, 128, 64)]
    rate = share * load.capacity(load.mixed(1.0, 10, rng, alike), costs, 2)
    made = load.mixed(rate, round(rate * window_s), rng, alike)
    return play("cost", made, box(costs=costs, queue_timeout_s=limit_s))


def test_five_times_too_much_costs_nothing_of_what_is_done_in_time() -> None:
    limit_s, window_s = 10.0, 100.0

    def done_a_second(share: float) -> tuple[float, Played]:
        played = overloaded(share, window_s, limit_s)
        done = [request for request in played.requests if request.error is None]
        assert all(request.ttft < limit_s + 5.0 for request in done)
        return len(done) / played.length_s, played

    peak = max(done_a_second(share)[0] for share in (0.9, 1.0, 1.5))
    at_five, played = done_a_second(5.0)
    assert at_five >= 0.9 * peak
    refused = [request for request in played.requests if request.error is not None]
    late = [request for request in refused if request.ended != request.arrived]
    assert len(refused) > len(played.requests) / 2
    assert len(late) < 0.2 * len(refused)  # the others were told at once


def test_a_short_queue_timeout_keeps_first_tokens_quick_at_five_times_too_much() -> None:
    """As `scripts/compare` counts goodput: with half a second in the queue and half for the prompt
    the first token is there within one."""

    def good_a_second(share: float) -> float:
        played = overloaded(share, 60.0, 0.5)
        done = [request for request in played.requests if request.error is None]
        return sum(request.ttft < 1.0 for request in done) / 60.0

    assert good_a_second(5.0) >= 0.9 * max(good_a_second(share) for share in (0.8, 1.0, 1.5))


def test_every_policy_serves_everything_and_computes_every_token() -> None:
    made = mix(60)
    tokens = sum(a.completion_tokens for a in made)
    for name in routing.NAMES:
        played = play(name, made, box())
        assert all(request.error is None for request in played.requests), name
        assert all(request.first is not None for request in played.requests), name
        assert all(0 < request.ttft <= request.completion for request in played.requests), name
        told = report.summary(played, QUIET)
        assert told["tok_s"] * played.length_s == pytest.approx(tokens), name
        assert 0 < told["utilisation"] <= 1.0001, name


def test_the_same_seed_gives_the_same_run_and_another_one_does_not() -> None:
    noisy = box(4, Costs(noise=0.1), noise=0.1)
    one, two = (play("cost", mix(100), noisy) for _ in range(2))
    other = play("cost", mix(100), msgspec.structs.replace(noisy, seed=2))
    assert times(one) == times(two)
    assert times(one) != times(other)


# --- policies ---------------------------------------------------------------------------------


def test_least_connections_beats_round_robin_where_requests_differ() -> None:
    made = mix(400, rate=2.2)
    waits = {}
    for name in ("least-connections", "round-robin"):
        told = report.summary(play(name, made, box(4, lend=False)), QUIET)
        waits[name] = told["wait_s"]["p90"]
    assert waits["least-connections"] < waits["round-robin"]


def test_knowing_everything_is_worth_something() -> None:
    """Over several seeds: the oracle is greedy, and may have bad luck in one of them."""
    waits: dict[str, list[float]] = {}
    for seed in range(3):
        made = mix(300, rate=5.0, seed=seed)
        for name in ("round-robin", "random-two", "oracle"):
            told = report.summary(play(name, made, box(8, lend=False)), QUIET)
            waits.setdefault(name, []).append(told["wait_s"]["p95"])
    assert sum(waits["oracle"]) < sum(waits["random-two"])
    assert sum(waits["oracle"]) < sum(waits["round-robin"])


def test_a_proxy_gives_requests_away_as_they_come() -> None:
    """Three long ones on two workers of one slot: the third sits behind another one for good."""
    made = [Arrival(i * 0.01, 64, 100) for i in range(3)]
    costs = Costs(noise=0.0, slots=1)
    played = play("proxy", made, box(2, costs))
    assert played.requests[2].ttft > 99 * costs.step_s(1)


# --- trouble ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hangs_s", [0.0, 1.5])
def test_what_a_dead_worker_had_is_served_by_others(hangs_s: float) -> None:
    made = mix(100)
    ends = [End(0, 20.0, hangs_s), End(1, 40.0, hangs_s)]
    played = play("cost", made, box(2, ends=ends))
    assert all(request.error is None for request in played.requests)
    calm = play("cost", made, box(2))
    assert max(times(played)) > max(times(calm))


def test_a_disturbed_core_gets_less_work() -> None:
    slow = [(0, Disturbance(Kind.NEIGHBOUR, 0.25))]
    played = play("cost", mix(200, rate=1.0), box(4, on_cores=slow, lend=False))
    # Busy for longer, for less: what counts is what it got done.
    done = [busy * left for busy, left in zip(played.busy_s, (0.25, 1, 1, 1), strict=True)]
    assert done[0] < 0.5 * min(done[1:])


def test_a_noisy_sensor_is_off_and_a_quiet_one_is_not() -> None:
    settings = Settings()
    calm = Core(settings, random.Random(1), 0.0, [])
    noisy = Core(settings, random.Random(1), 0.2, [])
    assert {calm.share(START_S + i, False) for i in range(50)} == {1.0}
    assert len({noisy.share(START_S + i, False) for i in range(50)}) > 10


def test_heat_is_seen_by_the_sensors_and_slows_the_work() -> None:
    hot = Core(Settings(), random.Random(1), 0.0, [Disturbance(Kind.HEAT, 0.4)])
    assert hot.left(START_S) == 0.4
    assert hot.share(START_S, True) == pytest.approx(0.4, abs=0.1)


def test_trouble_is_drawn_as_asked_for() -> None:
    happens, ends = trouble(10, 100.0, random.Random(1), slow=0.3, hot=0.1, dying=4)
    assert len({worker for worker, what in happens if what.kind is Kind.NEIGHBOUR}) == 3
    assert len({worker for worker, what in happens if what.kind is Kind.HEAT}) == 1
    assert len(ends) == 4
    assert sum(end.hangs_s > 0 for end in ends) == 2
    assert all(0 <= end.at_s <= 100 for end in ends)


# --- load -------------------------------------------------------------------------------------


def test_full_load_keeps_the_workers_busy_and_twice_as_much_does_not_get_through() -> None:
    costs = Costs(noise=0.0)
    rate = load.capacity(mix(2000), costs, 4)
    half = play("proxy", mix(400, rate=rate / 2), box(4, costs))
    assert report.summary(half, costs)["utilisation"] == pytest.approx(0.5, abs=0.12)
    double = play("proxy", mix(400, rate=rate * 2), box(4, costs))
    assert report.summary(double, costs)["utilisation"] > 0.9


def test_a_burst_squeezes_time_and_keeps_every_request() -> None:
    steady = [Arrival(float(i), 10, 10) for i in range(100)]
    burst = load.with_burst(steady, 20.0, 5.0, 10.0)
    assert len(burst) == 100
    within = [a for a in burst if 20 < a.at <= 25]
    assert len(within) == 50
    assert [a.at for a in burst] == sorted(a.at for a in burst)
    assert burst[-1].at == pytest.approx(99 - 45)


def test_a_trace_is_played_again_until_there_are_enough(tmp_path: Path) -> None:
    made = load.recorded(trace_file(tmp_path), 2.0, 50, 4096)
    assert len(made) == 50
    assert made[20].prompt_tokens == made[0].prompt_tokens == 100
    assert [a.at for a in made] == sorted(a.at for a in made)
    assert made[-1].at == pytest.approx(50 / 2.0, rel=0.1)


# --- figures ----------------------------------------------------------------------------------


def test_quantiles_of_gaps_are_at_most_two_percent_off() -> None:
    gaps = Gaps()
    assert gaps.quantile(0.5) is None
    for i in range(1, 1001):
        gaps.add(i / 1000, 1)
    for q in (0.5, 0.95, 0.99):
        found = gaps.quantile(q)
        assert found is not None
        assert q <= found <= q * 1.021
    gaps.add(5.0, 10_000)
    assert gaps.quantile(0.5) == pytest.approx(5.0, rel=0.02)


# --- scripts/compare's loads --------------------------------------------------------------------


def test_a_client_of_a_closed_loop_sends_when_it_is_answered() -> None:
    made = [Arrival(0.0, 128, 20)] * 12
    played = play("cost", made, box(2), clients=3)
    assert all(request.error is None for request in played.requests)
    sent = sorted(request.arrived for request in played.requests)
    ended = sorted(request.arrived + request.completion for request in played.requests)
    for number, at in enumerate(sent):
        over = sum(end < at for end in ended)
        assert number - over < 3  # never more than three at once
    assert sent[:3] == [START_S] * 3
    assert sent[3] > START_S


@pytest.mark.parametrize("clients", [0, 2])
def test_a_warm_up_goes_before_the_load_and_is_not_told_of(clients: int) -> None:
    made = [Arrival(0.5, 64, 10), Arrival(1.5, 64, 10)]
    warm_up = [Arrival(0.0, 128, 30)] * 4
    played = play("cost", made, box(2), clients=clients, warm_up=warm_up)
    assert [request.prompt_tokens for request in played.requests] == [64, 64]
    assert all(request.error is None for request in played.requests)
    assert min(request.arrived for request in played.requests) > START_S + 1.0
    assert sum(played.busy_s) < sum(play("cost", warm_up, box(2)).busy_s)
    if not clients:
        first, second = played.requests
        assert second.arrived - first.arrived == pytest.approx(1.0)


@pytest.mark.parametrize(("busy", "taken"), [(True, 0.5), (False, 1.0)])
def test_a_program_takes_of_an_idle_core_what_it_wants(busy: bool, taken: float) -> None:
    core = Core(Settings(), random.Random(1), 0.0, [Disturbance(Kind.NEIGHBOUR, 0.5, wants=1.0)])
    assert core.share(START_S, busy) == pytest.approx(0.5)  # the scheduler would give it back
    assert core.row.others == taken
