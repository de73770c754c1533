"""The systemd unit keeps what the server needs."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from lbhost.config import KEYS, flag_name

UNIT = Path(__file__).parent.parent / "packaging/systemd/lbhost.service"


@pytest.fixture(scope="module")
def service() -> dict[str, list[str]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[name].append(value)
    return dict(found)


def test_it_starts_serve_with_flags_that_there_are(service: dict[str, list[str]]) -> None:
    (line,) = service["ExecStart"]
    words = shlex.split(line)
    assert words[1] == "serve"
    flags = {word.removeprefix("--") for word in words if word.startswith("--")}
    assert flags
    assert flags <= {flag_name(key) for key in KEYS}
    assert service["Type"] == ["notify"]


def test_a_stop_waits_for_a_server_that_has_taken_over(service: dict[str, list[str]]) -> None:
    """With mixed, systemd 252 kills at once when the main process is not a child of its own."""
    assert service["KillMode"] == ["control-group"]


def test_it_takes_no_gpu_away(service: dict[str, list[str]]) -> None:
    """ProtectClock= is a list of allowed devices before systemd 253: the clock's, no other."""
    for name in ("PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock"):
        assert name not in service


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_it(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/opt/lbhost/bin/lbhost", "/bin/true")
    (tmp_path / UNIT.name).write_text(text)
    command = ["systemd-analyze", "verify", str(tmp_path / UNIT.name)]
    done = subprocess.run(command, timeout=60, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert UNIT.name not in done.stderr
