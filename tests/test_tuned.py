"""A tuned choice is found while it holds, and removed without a trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from lbhost.errors import TuningError
from lbhost.tuning import tuned
from lbhost.tuning.identity import Identity
from lbhost.tuning.shapes import Shape, Speeds
from lbhost.tuning.tuned import Finding, RewrittenFile, Tuned

CASE = Identity((("a.gguf", 3, 4),), "a CPU", ("node 0 standard",), 1, "a build", tuned.ANY_SLOTS)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path)}


def chosen(identity: Identity = CASE, file: RewrittenFile | None = None) -> Tuned:
    finding = Finding("as it is", Speeds(300, 100), 1.0)
    return Tuned(identity, "/models/a.gguf", Shape(1, 1), file, None, (finding,))


def rewritten(environ: dict[str, str], identity: Identity = CASE) -> Tuned:
    """A choice with a file, kept."""
    with tuned.workroom(environ) as work:
        path = work / "Q8_0.gguf"
        path.write_bytes(b"GGUF")
        stat = path.stat()
        name = f"{identity.key}-Q8_0.gguf"
        file = RewrittenFile(name, "Q8_0", stat.st_size, stat.st_mtime_ns)
        choice = chosen(identity, file)
        tuned.keep(environ, choice, path)
    return choice


def names(environ: dict[str, str]) -> set[str]:
    return {path.name for path in tuned.folder(environ).iterdir()}


def test_a_choice_is_found_again_with_its_file(environ: dict[str, str]) -> None:
    choice = rewritten(environ)
    assert tuned.find(environ, CASE) == choice
    assert choice.file is not None
    assert tuned.path(environ, choice.file).read_bytes() == b"GGUF"
    assert names(environ) == {f"{CASE.key}.json", f"{CASE.key}-Q8_0.gguf"}


def test_a_choice_holds_for_its_case_only(environ: dict[str, str]) -> None:
    rewritten(environ)
    assert tuned.find(environ, msgspec.structs.replace(CASE, build="another")) is None


def test_a_file_that_is_not_the_measured_one_is_not_used(environ: dict[str, str]) -> None:
    choice = rewritten(environ)
    assert choice.file is not None
    path = tuned.path(environ, choice.file)
    os.utime(path, ns=(1, 1))
    assert tuned.find(environ, CASE) is None
    path.unlink()
    assert tuned.find(environ, CASE) is None


def test_a_record_names_no_file_elsewhere(environ: dict[str, str], tmp_path: Path) -> None:
    outside = tmp_path / "evil.gguf"
    outside.write_bytes(b"GGUF")
    stat = outside.stat()
    file = RewrittenFile("../../evil.gguf", "Q8_0", stat.st_size, stat.st_mtime_ns)
    with tuned.workroom(environ):
        tuned.keep(environ, chosen(CASE, file), None)
    assert tuned.find(environ, CASE) is None


def test_a_new_choice_replaces_the_old_one_of_the_same_model(environ: dict[str, str]) -> None:
    rewritten(environ)
    later = msgspec.structs.replace(CASE, build="a newer build")
    choice = rewritten(environ, later)
    assert tuned.find(environ, later) == choice
    assert names(environ) == {f"{later.key}.json", f"{later.key}-Q8_0.gguf"}


def test_another_choice_without_a_file_removes_the_file(environ: dict[str, str]) -> None:
    rewritten(environ)
    tuned.keep(environ, chosen(), None)
    assert names(environ) == {f"{CASE.key}.json"}


def test_forgetting_removes_the_models_choices_and_nobody_elses(environ: dict[str, str]) -> None:
    rewritten(environ)
    other = msgspec.structs.replace(chosen(), model="/models/b.gguf")
    other = msgspec.structs.replace(other, identity=msgspec.structs.replace(CASE, cpu="other"))
    tuned.keep(environ, other, None)
    assert tuned.forget(environ, Path("/models/a.gguf")) == 1
    assert names(environ) == {f"{other.identity.key}.json"}
    assert tuned.forget(environ, Path("/models/a.gguf")) == 0


def test_nothing_tuned_is_nothing_to_forget(environ: dict[str, str]) -> None:
    assert tuned.forget(environ, Path("/models/a.gguf")) == 0


@pytest.mark.parametrize("ending", [KeyboardInterrupt, TuningError])
def test_a_workroom_is_gone_however_the_work_ends(
    environ: dict[str, str], ending: type[BaseException]
) -> None:
    def work() -> None:
        with tuned.workroom(environ) as folder:
            (folder / "half.gguf").write_bytes(b"GG")
            raise ending("stop")

    with pytest.raises(ending):
        work()
    assert not names(environ)


def test_what_a_killed_run_left_goes_with_the_next_and_what_runs_stays(
    environ: dict[str, str],
) -> None:
    code = "import os, sys\nfrom lbhost.tuning import tuned\n"
    code += "with tuned.workroom(os.environ) as work:\n"
    code += "    (work / 'half.gguf').write_bytes(b'GG')\n    os.kill(os.getpid(), 9)\n"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **environ}, check=False)
    (left,) = names(environ)
    with tuned.workroom(environ) as running:
        assert left not in names(environ)
        with tuned.workroom(environ):
            assert running.is_dir()


def test_a_cache_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "lbhost").write_text("a file where a folder should be")
    with (
        pytest.raises(TuningError, match="cannot write to"),
        tuned.workroom({"XDG_CACHE_HOME": str(tmp_path)}),
    ):
        raise AssertionError("there is nowhere to work")
