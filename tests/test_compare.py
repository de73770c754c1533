"""scripts/compare: its arithmetic, its loads, its report, and one small run with a real server."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from benchmarks.comparison import balancers, disturb, loads, measures, picture, report, targets
from benchmarks.comparison.__main__ import main, parse
from benchmarks.comparison.run import Result
from benchmarks.comparison.scenarios import SCENARIOS
from benchmarks.figures import Verdict
from benchmarks.load import Job, Outcome
from benchmarks.stats import Request, Spread

# --- measures ----------------------------------------------------------------------------------


def request(
    *, sent: float = 0.0, first: float, gap: float, tokens: int = 11, job: int = 0
) -> Request:
    texts = tuple(sent + first + gap * n for n in range(tokens))
    return Request(sent, texts, 8, tokens, job)


@pytest.mark.parametrize(
    ("first", "gap", "good"),
    [(0.99, 0.09, True), (1.0, 0.01, False), (0.01, 0.11, False), (0.5, 0.0, True)],
)
def test_a_good_request_begins_within_a_second_and_then_flows(
    first: float, gap: float, good: bool
) -> None:
    assert measures.is_good(request(first=first, gap=gap)) is good


def test_tokens_that_come_two_in_a_text_do_not_make_a_request_bad() -> None:
    assert measures.is_good(Request(0.0, (0.1, 0.25, 0.4), 8, 6))


def test_a_run_is_measured_whole_and_by_kind() -> None:
    jobs = [Job("a", 8, 11, 0.0, "short"), Job("b", 90, 11, 4.0, "long"), Job("c", 8, 11, 2.0)]
    answered = [
        request(sent=4.0, first=2.0, gap=0.05, job=1),  # in the order of their ends
        request(sent=0.0, first=0.5, gap=0.05, job=0),
    ]
    found = measures.measure(jobs, Outcome(answered, ["cut"], None, 1, 0.01), 0.44)
    assert found["short.ttft_p50"] == pytest.approx(0.5)
    assert found["long.ttft_p99"] == pytest.approx(2.0)
    assert found["ttft_p50"] == pytest.approx(1.25)
    assert found["e2e_p50"] == pytest.approx(1.75)
    assert found["tok_s"] == pytest.approx(22 / 6.5)
    assert found["goodput"] == pytest.approx(1 / 4.0), "over the time in which requests arrived"
    assert found["cpu_s"] == pytest.approx(20.0)
    assert (found["requests"], found["failed"], found["late_s"]) == (2, 1, 0.01)


def test_a_run_without_an_answer_has_no_latency_and_no_goodput() -> None:
    found = measures.measure([Job("a", 8, 3)], Outcome([], ["no"], None, 1), 3.0)
    assert found == {"requests": 0.0, "failed": 1.0, "late_s": 0.0, "goodput": 0.0}


def test_ratios_pair_what_both_have() -> None:
    ours = [{"tok_s": 30.0}, {"tok_s": 20.0}, {"tok_s": 9.0}]
    theirs = [{"tok_s": 10.0}, {"tok_s": 20.0}]
    assert measures.ratios(ours, theirs, "tok_s") == Spread(2.0, 1.0, 3.0, 2)
    assert measures.ratios(ours, [{"tok_s": 0.0}], "tok_s") is None
    assert measures.ratios(ours, [{}], "tok_s") is None


def test_capacity_is_tokens_a_second_over_tokens_a_request() -> None:
    jobs = [Job("a", 8, 10), Job("b", 8, 30)]
    answered = [request(first=1.0, gap=1 / 9, tokens=10), request(first=1.0, gap=1 / 29, tokens=30)]
    assert measures.capacity(jobs, Outcome(answered, [], 2.0)) == pytest.approx(40 / 2 / 20)
    with pytest.raises(ValueError, match="nothing was answered"):
        measures.capacity(jobs, Outcome([], [], 2.0))
    with pytest.raises(ValueError, match="while all clients had work"):
        measures.capacity(jobs, Outcome(answered, [], 0.5))


# --- loads -------------------------------------------------------------------------------------


def test_the_mix_has_one_long_request_in_five() -> None:
    asks = loads.mixed(random.Random(1), 103)
    assert len(asks) == 103
    for start in range(0, 100, 5):
        assert [ask.kind for ask in asks[start : start + 5]].count("long") == 1


def test_the_same_seed_gives_the_same_arrivals() -> None:
    first, again = (loads.poisson_times(random.Random(7), 2.0, 100.0) for _ in range(2))
    assert first == again
    assert first == sorted(first)
    assert first[-1] < 100.0
    assert len(first) == pytest.approx(200, rel=0.25)


def test_a_burst_has_ten_times_the_rate_for_five_seconds() -> None:
    times = loads.burst_times(random.Random(3), 4.0, 80.0)
    assert times == sorted(times)
    within = sum(20.0 <= at < 25.0 for at in times)
    assert within == pytest.approx(200, rel=0.25)
    assert len(times) - within == pytest.approx(300, rel=0.25)


def test_a_load_is_bounded_and_never_empty() -> None:
    assert len(loads.poisson_times(random.Random(1), 1e6, 100.0)) == loads.MOST_REQUESTS
    assert loads.poisson_times(random.Random(1), 1e-9, 1.0) == [0.0]


def test_requests_take_times_and_lose_them_again() -> None:
    asks = loads.at_times(loads.steady(128, 64, 2), [0.5, 1.5])
    assert [ask.at for ask in asks] == [0.5, 1.5]
    assert loads.untimed(asks) == loads.steady(128, 64, 2)


def test_each_turn_goes_on_from_the_one_before_it() -> None:
    asks = loads.conversations(3, 3, 64, 32)
    assert [ask.after for ask in asks] == [None, None, None, 0, 1, 2, 3, 4, 5]
    assert [ask.kind for ask in asks] == ["first"] * 3 + ["later"] * 6


def test_what_all_prompts_begin_with_counts_as_theirs() -> None:
    asks = loads.with_shared_prefix(loads.steady(32, 64, 2), 1000)
    assert asks == [loads.Ask("", 1032, 64, shared=1000)] * 2


# --- balancers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("balancer", "check"),
    [
        (balancers.haproxy, ["-c", "-f", "CONFIG"]),
        (balancers.nginx, ["-t", "-e", "stderr", "-p", "FOLDER", "-c", "CONFIG"]),
    ],
)
def test_a_balancer_takes_its_configuration(
    balancer: balancers.Balancer, check: list[str], tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text(balancer.config(18080, [18081, 18082], tmp_path), encoding="utf-8")
    text = config.read_text(encoding="utf-8")
    assert ("leastconn" in text) or ("least_conn" in text)
    assert all(f"127.0.0.1:{port}" in text for port in (18080, 18081, 18082))
    program = next(
        (
            path
            for folder in balancers.PATH.split(os.pathsep)
            if (path := Path(folder) / balancer.program).exists()
        ),
        None,
    )
    if program is None:
        pytest.skip(f"{balancer.program} is not installed")
    filled = [{"CONFIG": str(config), "FOLDER": str(tmp_path)}.get(word, word) for word in check]
    done = subprocess.run([str(program), *filled], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- disturbances ------------------------------------------------------------------------------


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stopped_worker_goes_on_at_the_end() -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) as worker,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other,
    ):
        try:
            status = psutil.Process(worker.pid).status
            with disturb.stopped_worker(lambda: [worker.pid, other.pid], 0.0):
                until(lambda: status() == psutil.STATUS_STOPPED)
            until(lambda: status() != psutil.STATUS_STOPPED)
        finally:
            for process in (worker, other):
                process.kill()


def test_the_only_worker_is_not_stopped() -> None:
    with (
        pytest.raises(disturb.DisturbanceError, match="one worker only"),
        disturb.stopped_worker(lambda: [os.getpid()], 0.0),
    ):
        pass


def test_half_duty_runs_on_one_core_and_ends() -> None:
    core = min(os.sched_getaffinity(0))
    with disturb.half_duty(core):
        (program,) = (
            child
            for child in psutil.Process().children()
            if child.status() != psutil.STATUS_ZOMBIE and "monotonic" in str(child.cmdline())
        )
        assert program.cpu_affinity() == [core]
    until(lambda: not program.is_running())


def test_a_command_runs_in_a_cgroup_with_a_quota_where_one_can_be_made() -> None:
    try:
        with disturb.quota() as before:
            done = subprocess.run(
                [*before, "cat", "/proc/self/cgroup"], capture_output=True, text=True, check=True
            )
            group = Path(before[3]).parent
            assert group.name in done.stdout
            assert group.is_dir()
        assert not group.exists()
    except disturb.DisturbanceError as error:
        pytest.skip(str(error))


# --- the report --------------------------------------------------------------------------------


def result() -> Result:
    def runs(*tok_s: float, ttft: float) -> list[dict[str, float]]:
        return [
            {"requests": 8.0, "failed": 0.0, "tok_s": value, "ttft_p50": ttft, "goodput": 1.0}
            for value in tok_s
        ]

    made = Result("clients-8", SCENARIOS["clients-8"].about)
    made.runs["lbhost"] = runs(220.0, 240.0, 260.0, ttft=0.4)
    made.runs["llama-server"] = runs(200.0, 200.0, 200.0, ttft=1.0)
    made.notes.append("nginx takes no part: it is not installed")
    return made


def test_the_table_has_medians_ratios_ranges_and_who_took_no_part() -> None:
    lines = [" ".join(line.split()) for line in report.table(result()).splitlines()]
    assert "tok/s 240 200 (1.20x 1.10..1.30)" in lines
    assert "TTFT p50 ms 400 1000 (0.400x 0.400..0.400)" in lines
    assert "failed of all 0 of 24 0 of 24" in lines
    assert lines[-1] == "- nginx takes no part: it is not installed"


def test_kinds_of_requests_have_lines_of_their_own() -> None:
    made = Result("mix-60", "")
    made.runs["lbhost"] = [
        {
            "requests": 1.0,
            "failed": 0.0,
            "ttft_p99": 1.0,
            "short.ttft_p99": 0.1,
            "long.e2e_p50": 9.0,
        }
    ]
    assert report.shown(made) == ["short.ttft_p99", "long.e2e_p50"]


def test_targets_are_judged_by_paired_ratios_and_own_values() -> None:
    made = result()
    for run in made.runs["lbhost"]:
        run["gap_p99"] = 0.2
    verdicts = {figure.name: figure.verdict for figure in targets.judge([made])}
    assert verdicts == {
        "tok/s / llama-server": Verdict.MET,
        "TTFT p50 ms / llama-server": Verdict.MET,
        "inter-token p99": Verdict.MISSED,
    }


def test_the_best_peer_is_the_one_with_the_greatest_median() -> None:
    made = Result("azure", "")
    for name, value in (("lbhost", 3.0), ("llama-server", 1.0), ("haproxy", 2.0)):
        made.runs[name] = [{"requests": 1.0, "failed": 0.0, "goodput": value}]
    (figure,) = targets.judge([made])
    assert figure.name == "good requests/s / haproxy"
    assert (figure.measured.median, figure.verdict) == (1.5, Verdict.MET)


def test_every_target_is_of_a_scenario_that_there_is() -> None:
    assert {promise.scenario for promise in targets.PROMISES} <= set(SCENARIOS)


def test_the_picture_is_svg_with_a_mark_for_each_ratio() -> None:
    svg = picture.draw([result()], "CPU & cores")
    root = ET.fromstring(svg)
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "clients-8, output tok/s, llama-server: 1.20x (1.10..1.30, 3)" in titles
    assert len(titles) == 3
    assert "CPU & cores" in [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]


# --- the command line --------------------------------------------------------------------------


def test_scenarios_and_peers_can_be_picked() -> None:
    given = parse(["--scenario", "clients-1,mix-60", "--peers", "lbhost", "--pairs", "2"])
    assert (given.scenario, given.peers, given.pairs) == (["clients-1", "mix-60"], ["lbhost"], 2)


@pytest.fixture(autouse=True)
def _environment_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command takes PYTHONPATH out of what its children get."""
    monkeypatch.setenv("PYTHONPATH", "")


def test_the_list_names_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(SCENARIOS)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--scenario", "clients-3"], "unknown scenario 'clients-3'"),
        (["--peers", "vllm"], "unknown peer 'vllm'"),
        (["--pairs", "0"], "--pairs is a number from 1 to 100"),
        (["--seconds", "0"], "--seconds is a number from 1 to 600"),
        (["--trace", "nowhere.csv"], "no such file nowhere.csv"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(argv)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]


# --- end to end --------------------------------------------------------------------------------


@pytest.mark.e2e
@pytest.mark.xdist_group("servers")
def test_a_scenario_is_measured_with_the_real_server(tmp_path: Path) -> None:
    data, svg = tmp_path / "figures.json", tmp_path / "picture.svg"
    command = [sys.executable, "-m", "benchmarks.comparison", "--quick", "--peers", "lbhost"]
    command += ["--scenario", "clients-2", "--json", str(data), "--picture", str(svg)]
    scripts = Path(__file__).parent.parent / "scripts"
    environ = os.environ | {"LBHOST_BENCH_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(
        command, cwd=scripts, env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=300)
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0, output
    (scenario,) = json.loads(data.read_text(encoding="utf-8"))["scenarios"]
    (run,) = scenario["runs"]["lbhost"]
    assert run["failed"] == 0
    assert run["requests"] >= 2
    assert run["tok_s"] > 0
    assert run["cpu_s"] > 0
    assert scenario["scenario"] == "clients-2"
    ET.parse(svg)
