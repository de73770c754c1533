"""The simulator: simulated time, virtual workers under lbhost's own scheduling, its figures."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.comparison import loads
from benchmarks.comparison.scenarios import SCENARIOS
from benchmarks.stats import Arrival
from lbhost.config import Settings
from lbhost.gateway.scheduling import policy
from simulation import arrivals as load
from simulation import compared, constants, measured, report, routing
from simulation.__main__ import main
from simulation.clock import START_S, VirtualLoop
from simulation.costs import Costs
from simulation.gaps import Gaps
from simulation.hardware import Core, Disturbance, Kind
from simulation.play import Played, play
from simulation.scenario import End, Scenario, trouble

QUIET = Costs(noise=0.0)

SCRIPTS = Path(__file__).parent.parent / "scripts"


def box(workers: int = 2, costs: Costs = QUIET, **more: Any) -> Scenario:
    return Scenario(workers=workers, costs=costs, **more)


def mix(count: int = 200, rate: float = 1.0, seed: int = 1) -> list[Arrival]:
    return load.mixed(rate, count, random.Random(seed))


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


def test_five_times_too_much_costs_nothing_of_what_is_done_in_time() -> None:
    limit_s, window_s = 10.0, 100.0
    costs = Costs(noise=0.05)

    def done_a_second(share: float) -> tuple[float, Played]:
        rng = random.Random(3)
        alike = [(1.0, 128, 64)]
        rate = share * load.capacity(load.mixed(1.0, 10, rng, alike), costs, 2)
        made = load.mixed(rate, round(rate * window_s), rng, alike)
        played = play("cost", made, box(costs=costs, queue_timeout_s=limit_s))
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


def trace_file(folder: Path) -> Path:
    path = folder / "trace.csv"
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    rows += [f"2023-11-16 18:15:{i:02}.0000000,{100 + i},{10 + i}" for i in range(20)]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


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


def seen(count: int, factor: float = 1.0) -> list[measured.Seen]:
    return [
        measured.Seen(float(i), 10, 10, 0.1 * i * factor, 0.2 * i * factor) for i in range(1, count)
    ]


def test_a_simulation_is_near_within_a_quarter_and_off_beyond() -> None:
    simulated = [(one.ttft, one.completion) for one in seen(50)]
    assert all(one.near for one in measured.compare(seen(50), simulated))
    assert all(one.near for one in measured.compare(seen(50, 1.2), simulated))
    off = measured.compare(seen(50, 1.5), simulated)
    assert not any(one.near for one in off)
    assert measured.table(off).count("OFF") == len(off)


def test_a_measured_run_is_compared_with_its_simulation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = mix(80, rate=0.4)
    truth = Costs(prefill_tok_s=250.0, noise=0.05)
    played = play("cost", made, box(2, truth, seed=7))
    run = measured.Measured(
        machine="a box",
        disturbances=[],
        workers=2,
        slots=4,
        prefill_tok_s=truth.prefill_tok_s,
        step_base_s=truth.step_base_s,
        step_seq_s=truth.step_seq_s,
        requests=[
            measured.Seen(a.at, a.prompt_tokens, a.completion_tokens, r.ttft, r.completion)
            for a, r in zip(made, played.requests, strict=True)
        ],
    )
    path = tmp_path / "run.json"
    path.write_bytes(msgspec.json.encode(run))
    assert main(["--validate", str(path)]) == 0
    assert "a box; 2 workers, 80 requests" in capsys.readouterr().out
    slower = msgspec.structs.replace(run, prefill_tok_s=100.0)
    path.write_bytes(msgspec.json.encode(slower))
    assert main(["--validate", str(path)]) == 1
    assert "OFF" in capsys.readouterr().out
    path.write_text("{}", encoding="utf-8")
    assert main(["--validate", str(path)]) == 1


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


SPEEDS: dict[str, Any] = {"prefill_tok_s": 700.0, "step_base_s": 0.003, "step_seq_s": 0.004}


@functools.cache
def rounds(name: str) -> list[dict[str, float]]:
    """What scripts/compare would have measured of a box that is as fast as SPEEDS say."""
    quick = box(2, Costs(**SPEEDS))
    return [compared.simulate(name, quick, "cost", 1.5, 20.0, seed) for seed in (11, 12)]


def comparison(**told: float) -> dict[str, Any]:
    """A file of scripts/compare; `told`: speeds that the server tells instead of its true ones."""
    played = {name: rounds(name) for name in ("clients-8", "neighbour-8", "mix-60")}
    ours = {name: [run | SPEEDS | told for run in runs] for name, runs in played.items()}
    ours["repeated-8"] = ours["clients-8"]  # caches answer it, which virtual workers lack
    scenarios: list[dict[str, Any]] = [
        {"scenario": name, "rate": 1.5 if name == "mix-60" else None, "runs": {"lbhost": runs}}
        for name, runs in ours.items()
    ]
    scenarios += [{"scenario": name, "rate": None, "runs": {}} for name in ("1b-1", "of-old")]
    return {"machine": "a box", "scenarios": scenarios}


def test_a_neighbour_costs_a_closed_loop_about_a_quarter() -> None:
    part = rounds("neighbour-8")[0]["tok_s"] / rounds("clients-8")[0]["tok_s"]
    assert 0.6 < part < 0.9


@pytest.mark.parametrize("name", ["mix-60", "burst"])
def test_an_open_loop_is_played_for_as_long_as_it_was(name: str) -> None:
    arrivals = SCENARIOS[name].arrivals
    timed = loads.burst_times if name == "burst" else loads.poisson_times
    sent = [len(timed(random.Random(seed), 2.0, 60.0)) for seed in range(50)]
    runs = [{"requests": count - 1.0, "failed": 1.0} for count in sent]
    assert compared.length_s(runs, 2.0, arrivals) == pytest.approx(60.0, rel=0.05)


def test_a_comparison_is_played_again_by_the_speeds_that_it_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "compared.json"
    path.write_text(json.dumps(comparison()), encoding="utf-8")
    main(["--validate", str(path), "--workers", "2"])
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if line.endswith(("-8", "-60"))] == [
        "clients-8",
        "neighbour-8",
        "mix-60",
    ]
    speed = [float(line.split()[3]) for line in told.splitlines() if line.startswith("tok_s")]
    assert all(ratio == pytest.approx(1.0, abs=0.25) for ratio in speed)
    path.write_text(json.dumps(comparison(prefill_tok_s=70.0)), encoding="utf-8")
    assert main(["--validate", str(path), "--workers", "2"]) == 1
    assert "OFF" in capsys.readouterr().out
    path.write_text(json.dumps(comparison() | {"scenarios": []}), encoding="utf-8")
    assert main(["--validate", str(path)]) == 1
    assert "no scenario that can be played" in capsys.readouterr().err


# --- constants --------------------------------------------------------------------------------


def test_a_constant_is_set_in_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "LONG_PROMPT", policy.LONG_PROMPT)
    constants.apply("gateway.scheduling.policy.LONG_PROMPT=1024")
    assert policy.LONG_PROMPT == 1024
    assert isinstance(policy.LONG_PROMPT, int)


@pytest.mark.parametrize(
    "setting",
    [
        "LONG_PROMPT=1",
        "gateway.scheduling.policy.LONG_PROMPT=1.5",
        "gateway.scheduling.policy.LONG_PROMPT=",
        "gateway.scheduling.policy.NOTHING=1",
        "gateway.scheduling.nowhere.LONG_PROMPT=1",
        "os.path.sep=1",
    ],
)
def test_what_is_no_constant_is_refused(setting: str) -> None:
    with pytest.raises(ValueError):
        constants.apply(setting)


# --- the command ------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_writes_json_and_a_picture(tmp_path: Path) -> None:
    """In a process of its own: the plotting library keeps fonts open until its process ends."""
    told, picture = tmp_path / "out.json", tmp_path / "out.svg"
    args = ["cost", "oracle", "--workers", "3", "--requests", "40"]
    args += ["--trace", str(trace_file(tmp_path)), "--max-tokens", "256", "--noise", "0.1"]
    args += ["--slow", "0.4", "--hot", "0.4", "--dying", "2", "--burst", "2", "2", "3"]
    done = subprocess.run(
        [sys.executable, "-m", "simulation", *args, "--json", str(told), "--plot", str(picture)],
        cwd=SCRIPTS,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("3 workers, 40 requests")
    assert [line.split()[0] for line in lines[4:]] == ["cost", "oracle"]
    found = json.loads(told.read_text(encoding="utf-8"))
    assert [run["policy"] for run in found["runs"]] == ["cost", "oracle"]
    assert all(run["failed"] == 0 for run in found["runs"])
    assert all(math.isfinite(run["ttft_s"]["p99"]) for run in found["runs"])
    assert picture.read_text(encoding="utf-8").count("cost") >= 1


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["--workers", "1"],
        ["--workers", "1001"],
        ["--load", "0"],
        ["--noise", "2"],
        ["--requests", "0"],
        ["--trace", "/nowhere.csv"],
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_file_that_is_no_trace_is_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    assert main(["cost", "--trace", str(path)]) == 1
    assert "trace" in capsys.readouterr().err
