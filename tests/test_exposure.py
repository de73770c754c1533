"""Who could come in where the server listens, and what it says to that."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from lbhost import keys
from lbhost.config import Settings
from lbhost.errors import UsageError
from lbhost.supervisor import exposure


def check(host: str, settings: Settings) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as bound:
        bound.bind((host, 0))
        exposure.check(settings, bound)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_nobody_listens_to_everybody_without_a_key_by_accident(host: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--keys-file .*--insecure-no-key"):
        check(host, Settings())
    keys.add(tmp_path / "keys.toml", "alice", "a key")
    for settings in (
        Settings(api_key="12345678"),
        Settings(insecure_no_key=True),
        Settings(keys_file=str(tmp_path / "keys.toml")),
    ):
        check(host, settings)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1"])
def test_this_machine_alone_needs_no_key(host: str) -> None:
    check(host, Settings())


def test_a_keys_file_is_checked_before_anything_is_started(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("rubbish")
    with pytest.raises(UsageError, match="keys file"):
        check("127.0.0.1", Settings(keys_file=str(path)))


def test_a_keys_file_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.touch()
    for mode, warnings in ((0o600, 0), (0o644, 1)):
        path.chmod(mode)
        with capture_logs() as lines:
            check("127.0.0.1", Settings(keys_file=str(path)))
        assert len(lines) == warnings
