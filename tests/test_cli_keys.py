"""`lbhost keys`, and a server that would listen to everybody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lbhost import cli, keys


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.run(argv)
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_key_is_shown_once_and_only_its_hash_is_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.toml"
    code, out, _ = run(capsys, "keys", "new", "alice", "--keys-file", str(path))
    assert code == 0
    assert out.startswith(keys.PREFIX)
    assert len(out.strip()) > len(keys.PREFIX) + 40
    assert out.strip() not in path.read_text()
    monkeypatch.setenv("LBHOST_KEYS_FILE", str(path))
    code, another, _ = run(capsys, "keys", "new", "bob")
    assert (code, another != out) == (0, True)
    assert [key.hash for key in keys.read(path)] == [
        keys.hash_of(out.strip()),
        keys.hash_of(another.strip()),
    ]
    code, out, _ = run(capsys, "keys", "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", "alice", "bob"]


def test_what_cannot_be_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LBHOST_KEYS_FILE", raising=False)
    path = tmp_path / "keys.toml"
    keys.add(path, "alice", "a key")
    for argv, status, said in (
        (["keys", "new", "alice"], 2, "--keys-file"),
        (["keys", "list"], 2, "--keys-file"),
        (["keys", "new"], 2, "name"),
        (["keys", "new", "bob", "--key-file", "x"], 2, "--key-file"),
        (["keys", "new", "alice", "--keys-file", str(path)], 2, "'alice'"),
        (["keys", "new", "a b", "--keys-file", str(path)], 2, "'a b'"),
        (["keys", "new", "bob", "--keys-file", str(tmp_path / "no" / "x")], 1, "No such file"),
    ):
        code, out, err = run(capsys, *argv)
        assert (code, out) == (status, "")
        assert said in err.lower() or said in err
        assert len(err.splitlines()) == 1


def test_a_server_that_would_serve_everybody_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lbhost", "serve", "--port", "0", "--host", "0.0.0.0"]
    command += ["--runtime-dir", str(tmp_path / "run"), "--model", "/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--insecure-no-key" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()
    done = subprocess.run(
        [*command, "--insecure-no-key"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "/nowhere does not exist" in done.stderr
