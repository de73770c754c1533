"""A simulation beside what was measured: runs of a real server, and files of scripts/compare."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.comparison import loads, measures
from benchmarks.comparison.scenarios import SCENARIOS
from simulated_box import box, mix
from simulation import compared, measured
from simulation.__main__ import main
from simulation.costs import Costs
from simulation.play import play


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


def test_steps_are_known_one_by_one_as_far_as_all_workers_and_runs_tell_them() -> None:
    workers: list[dict[str, Any]] = [
        {**SPEEDS, "steps_s": [0.005, 0.012, 0.017]},
        {**SPEEDS, "steps_s": [0.007, 0.014]},
        {"prefill_tok_s": None, "step_base_s": None, "step_seq_s": None, "steps_s": []},
    ]
    told = measures.speeds(workers)
    assert measures.steps_s(told) == pytest.approx((0.006, 0.013, 0.017))
    assert {name: told[name] for name in SPEEDS} == pytest.approx(SPEEDS)
    costs = compared.speeds([told, SPEEDS | {"step_1_s": 0.008}, {}], slots=4, noise=0.0)
    assert costs is not None
    assert costs.steps_s == pytest.approx((0.007,))
    assert costs.step_s(1) == pytest.approx(0.007)
    assert costs.step_s(2) == pytest.approx(0.003 + 2 * 0.004)
    old = compared.speeds([SPEEDS], slots=4, noise=0.0)
    assert old is not None
    assert old.steps_s == ()


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
