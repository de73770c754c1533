"""The simulator's command line, and the constants that it sets."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from lbhost.gateway.scheduling import policy
from simulated_box import trace_file
from simulation import constants
from simulation.__main__ import main

SCRIPTS = Path(__file__).parent.parent / "scripts"


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
