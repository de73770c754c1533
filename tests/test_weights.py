"""Weights are loaded from the very files that the server started with, or not at all."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from lbhost import control
from lbhost.config import Settings
from lbhost.errors import ModelChangedError, ModelFileError
from lbhost.model import resolve
from lbhost.weights import identify, unchanged
from lbhost.weights import parts as of_model
from serving import Server
from worker_harness import DEADLINE_S, template

SMALL = ("--ctx-size", "512", "--workers", "1")


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    for path in paths:
        path.write_bytes(b"GGUF")
    return paths


def test_a_name_that_promises_no_parts_is_refused_in_one_line() -> None:
    with pytest.raises(ModelFileError, match="no parts; rename it"):
        of_model(Path("x-00001-of-00000.gguf"))


def test_the_same_files_pass(parts: list[Path]) -> None:
    with unchanged(identify(parts)):
        pass


def test_any_replaced_part_is_refused_and_says_what_to_do(parts: list[Path]) -> None:
    known = identify(parts)
    new = parts[1].with_suffix(".new")
    shutil.copy2(parts[1], new)
    new.replace(parts[1])
    with pytest.raises(ModelChangedError, match=r"replaced .*lbhost reload"), unchanged(known):
        raise AssertionError("nothing may be loaded")


def test_a_file_that_changes_while_it_is_loaded_is_refused(parts: list[Path]) -> None:
    known = identify(parts)
    with pytest.raises(ModelChangedError, match=r"changed .*lbhost reload"), unchanged(known):
        os.utime(parts[0], ns=(1, 1))


def test_a_removed_file_is_named(parts: list[Path]) -> None:
    known = identify(parts)
    parts[0].unlink()
    with pytest.raises(ModelFileError, match="no such model file"), unchanged(known):
        raise AssertionError("nothing may be loaded")


@pytest.mark.e2e
def test_a_fork_server_that_finds_another_file_refuses_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(resolve("starter").path, path)
    known = identify([path])
    os.utime(path, ns=(1, 1))
    with template(Settings(slots=1), n_ctx=256, model_path=str(path), weights=known) as made:
        assert isinstance(made.first, control.Failed)
        assert "lbhost reload" in made.first.message
        assert made.process.wait(DEADLINE_S) == 1


@pytest.mark.e2e
def test_a_replaced_file_never_reaches_a_running_server(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(resolve("starter").path, path)
    with Server(tmp_path / "run", "--model", str(path), *SMALL) as server:
        before = server.status()
        new = path.with_suffix(".new")
        shutil.copy(path, new)
        new.replace(path)
        assert before.template is not None
        assert before.template.pid is not None
        os.kill(before.template.pid, signal.SIGKILL)
        server.wait(
            lambda s: s.template is not None and "lbhost reload" in (s.template.last_exit or ""),
            "the new fork server refuses the new file",
        )
        assert "lbhost reload" in server.cli("events").stdout
        assert server.complete().status_code == 200
        assert [w.pid for w in server.status().workers] == [w.pid for w in before.workers]


@pytest.mark.e2e
def test_a_file_that_changes_in_place_changes_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(resolve("starter").path, path)
    with Server(tmp_path / "run", "--model", str(path), *SMALL) as server:
        before = server.complete(max_tokens=8).json()["choices"][0]["text"]
        pids = [w.pid for w in server.status().workers]
        size = path.stat().st_size
        for how in ("overwritten", "truncated"):
            with path.open("r+b") as file:
                if how == "truncated":
                    file.truncate(size // 2)
                else:
                    file.seek(size // 4)
                    file.write(b"\xff" * (size // 2))
            # Another prompt, so that nothing comes from the KV cache of the first.
            server.complete(f"Something else entirely: {how}", max_tokens=4)
            assert server.complete(max_tokens=8).json()["choices"][0]["text"] == before, how
            assert [w.pid for w in server.status().workers] == pids, how
