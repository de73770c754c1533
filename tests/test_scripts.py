"""The set-up scripts, with stubs for Python, pip, uv and the compiler on a PATH of their own."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["sh", "cat", "cut", "date", "env", "readlink", "cksum", "flock", "grep", "mkdir", "rm"]
TOOLS += ["setsid", "sleep", "tail", "tr"]
DEADLINE_S = 60.0

PYTHON_STUB = """#!/bin/sh
# Stands for python3 and for the environment's python; says on $CALLS what it is asked to do.
case "$*" in
"-c import sys"*) echo "$PYTHON_VERSION" ;;
"-c import ensurepip"*) [ -z "${NO_VENV:-}" ] ;;
"-m pip --version") ;;
"-m venv --clear "*)
    echo "venv" >>"$CALLS"
    rm -rf "$4"
    mkdir -p "$4/bin"
    cat "$0" >"$4/bin/python"
    printf '#!/bin/sh\\necho "lbhost $*"\\n' >"$4/bin/lbhost"
    "$CHMOD" +x "$4/bin/python" "$4/bin/lbhost"
    ;;
"-m pip install "*)
    for last; do :; done
    echo "pip install ${last##*/}" >>"$CALLS"
    [ -z "${PIP_SAYS:-}" ] || { echo "$PIP_SAYS"; exit 1; }
    [ -z "${PIP_HANGS:-}" ] || { echo $$ >"$PIP_HANGS"; exec sleep 600; }
    ;;
*) echo "python $*" ;;
esac
"""

UV_STUB = """#!/bin/sh
echo "uv $1 $2" >>"$CALLS"
[ "$1" != venv ] || "$STUBS/python3" -m venv --clear "$6"
"""


class Clone:
    """A fresh clone with nothing but the scripts in it, and a PATH with nothing but stubs."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a clone"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        (self.root / "pyproject.toml").write_text("[project]\n")
        self.stubs = folder / "bin"
        self.stubs.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.stubs / tool).symlink_to(found)
        self.stub("python3", PYTHON_STUB)
        self.stub("c++", "#!/bin/sh\n")
        self.calls_file = folder / "calls"
        self.environ = {
            "PATH": str(self.stubs),
            "STUBS": str(self.stubs),
            "HOME": str(folder),
            "CALLS": str(self.calls_file),
            "CHMOD": shutil.which("chmod") or "",
            "PYTHON_VERSION": "3.12",
        }

    def stub(self, name: str, text: str) -> None:
        path = self.stubs / name
        path.write_text(text)
        path.chmod(0o755)

    def run(self, script: str, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "scripts" / script, *args],
            env=self.environ | environ,
            cwd=self.stubs,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    @property
    def calls(self) -> list[str]:
        """What Python and uv were asked since the last look."""
        if not self.calls_file.exists():
            return []
        calls = self.calls_file.read_text().splitlines()
        self.calls_file.unlink()
        return calls


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def only_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a failure that needs no other."""
    assert result.returncode == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


# --- what is missing is named in one line ------------------------------------------------------


def test_without_python_it_says_which_python_is_needed(clone: Clone) -> None:
    (clone.stubs / "python3").unlink()
    assert only_line(clone.run("serve")) == "lbhost: no python3: lbhost needs Python 3.11 or newer"


def test_a_python_that_is_too_old_is_named_with_its_version(clone: Clone) -> None:
    line = only_line(clone.run("serve", PYTHON_VERSION="3.9"))
    assert "Python too old: python3 is 3.9, lbhost needs 3.11 or newer" in line


def test_a_newer_python_beside_an_old_python3_is_taken(clone: Clone) -> None:
    clone.stub("python3", "#!/bin/sh\necho 3.9\n")
    clone.stub("python3.11", PYTHON_STUB)
    assert clone.run("serve", PYTHON_VERSION="3.11").returncode == 0
    assert clone.calls == ["venv", "pip install a clone[starter]"]


def test_without_the_venv_module_it_says_what_to_install(clone: Clone) -> None:
    assert "no venv module" in only_line(clone.run("serve", NO_VENV="1"))


def test_without_a_compiler_it_says_so_before_doing_anything(clone: Clone) -> None:
    (clone.stubs / "c++").unlink()
    assert "no C++ compiler" in only_line(clone.run("serve"))
    assert clone.calls == []


def test_no_compiler_is_needed_when_the_built_wheel_is_in_pips_cache(clone: Clone) -> None:
    (clone.stubs / "c++").unlink()
    kept = Path(clone.environ["HOME"], ".cache/pip/wheels/a/b/c/d")
    kept.mkdir(parents=True)
    (kept / "llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl").touch()
    assert clone.run("serve").returncode == 0


def test_without_a_network_it_says_so(clone: Clone) -> None:
    result = clone.run("serve", PIP_SAYS="error: [Errno -3] Temporary failure in name resolution")
    assert result.returncode == 1
    assert result.stderr.splitlines()[1:] == [
        "lbhost: no network: the package index cannot be reached "
        f"(log: {clone.root}/.venv/setup.log)"
    ]


def test_any_other_failure_shows_the_end_of_the_log(clone: Clone) -> None:
    result = clone.run("serve", PIP_SAYS="error: the compiler ran out of memory")
    assert result.returncode == 1
    assert "installing failed" in result.stderr
    assert result.stderr.splitlines()[-1] == "error: the compiler ran out of memory"


def test_an_unknown_installer_is_refused(clone: Clone) -> None:
    assert "is uv or pip, not conda" in only_line(clone.run("serve", LBHOST_INSTALLER="conda"))


# --- setting up ------------------------------------------------------------------------------


def test_the_first_start_says_that_it_builds_for_minutes_and_passes_its_arguments_on(
    clone: Clone,
) -> None:
    result = clone.run("serve", "--port", "0", "--alias", "two words")
    assert result.returncode == 0
    assert result.stdout == "lbhost serve --port 0 --alias two words\n"
    assert "builds from source: 5 to 6 minutes" in result.stderr
    assert clone.calls == ["venv", "pip install a clone[starter]"]


def test_the_second_start_installs_nothing_and_says_nothing(clone: Clone) -> None:
    clone.run("serve")
    assert clone.calls
    again = clone.run("serve")
    assert (again.returncode, again.stdout, again.stderr) == (0, "lbhost serve\n", "")
    assert clone.calls == []


def test_a_failed_set_up_is_tried_again(clone: Clone) -> None:
    assert clone.run("serve", PIP_SAYS="boom").returncode == 1
    assert clone.run("serve").returncode == 0


def test_changed_dependencies_are_installed(clone: Clone) -> None:
    clone.run("serve")
    assert clone.calls
    (clone.root / "pyproject.toml").write_text("[project]\nname = 'lbhost'\n")
    clone.run("serve")
    assert clone.calls == ["pip install a clone[starter]"]


def test_extras_add_up_so_that_serve_and_test_take_turns(clone: Clone) -> None:
    clone.run("serve")
    tested = clone.run("test", "-q", "tests/test_x.py")
    assert tested.stdout == "python -m pytest -q tests/test_x.py\n"
    assert clone.calls == [
        "venv",
        "pip install a clone[starter]",
        "pip install a clone[starter,dev]",
    ]
    clone.run("serve")
    clone.run("test")
    assert clone.calls == []


def test_an_environment_that_was_moved_is_made_anew(clone: Clone, tmp_path: Path) -> None:
    clone.run("serve")
    assert clone.calls
    clone.root = clone.root.rename(tmp_path / "elsewhere")
    assert clone.run("serve").returncode == 0
    assert clone.calls == ["venv", "pip install elsewhere[starter]"]


def test_an_environment_that_is_a_link_is_left_alone(clone: Clone, tmp_path: Path) -> None:
    others = tmp_path / "elsewhere/.venv"
    others.mkdir(parents=True)
    (others / "pyvenv.cfg").touch()
    (clone.root / ".venv").symlink_to(others)
    line = only_line(clone.run("serve"))
    assert f".venv is a link to {others}" in line
    assert f"rm {clone.root}/.venv" in line
    assert clone.calls == []
    assert [file.name for file in others.iterdir()] == ["pyvenv.cfg"]


def test_an_environment_whose_python_is_gone_is_made_anew(clone: Clone) -> None:
    clone.run("serve")
    assert clone.calls
    (clone.root / ".venv/bin/python").unlink()
    assert clone.run("serve").returncode == 0
    assert clone.calls == ["venv", "pip install a clone[starter]"]


def test_uv_is_used_when_it_is_there(clone: Clone) -> None:
    clone.stub("uv", UV_STUB)
    assert clone.run("serve").returncode == 0
    assert clone.calls == ["uv venv --quiet", "venv", "uv pip install"]


def test_stopping_the_set_up_stops_the_installer(clone: Clone, tmp_path: Path) -> None:
    pid_file = tmp_path / "pip.pid"
    with subprocess.Popen(
        [clone.root / "scripts/serve"],
        env=clone.environ | {"PIP_HANGS": str(pid_file)},
        stderr=subprocess.PIPE,
        text=True,
    ) as script:
        deadline = time.monotonic() + DEADLINE_S
        while not (pid_file.exists() and pid_file.read_text().endswith("\n")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        pip = os.pidfd_open(int(pid_file.read_text()))
        script.send_signal(signal.SIGTERM)
        _, complaint = script.communicate(timeout=DEADLINE_S)
    assert script.returncode == 143
    assert "set-up stopped" in complaint
    ended = select.poll()
    ended.register(pip, select.POLLIN)
    assert ended.poll(DEADLINE_S * 1000), "pip outlived the set-up"
    os.close(pip)


def test_check_takes_no_arguments(clone: Clone) -> None:
    assert "takes no arguments" in only_line(clone.run("check", "tests"))


# --- the gates, as a bare machine runs them --------------------------------------------------


def ci(
    clone: Clone, *, check: str = "exit 0", clients: str = "exit 0", test: str = "exit 0"
) -> list[str]:
    """Runs .ci/run over stand-ins for the scripts that it calls; its lines, then its code."""
    shutil.copytree(ROOT / ".ci", clone.root / ".ci")
    for name, text in (("check", check), ("clients", clients), ("test", test)):
        (clone.root / "scripts" / name).write_text(f"#!/bin/sh\n{text}\n")
    for tool in ("bash", "dirname", "id", "mktemp", "tee", "timeout"):
        (clone.stubs / tool).symlink_to(shutil.which(tool) or "")
    clone.stub("curl", "#!/bin/sh\n")
    clone.stub("apt-get", '#!/bin/sh\necho "apt-get $*" >>"$CALLS"\n')
    clone.stub("sudo", '#!/bin/sh\nshift\nexec "$@"\n')
    ended = clone.run("../.ci/run")
    return [*ended.stdout.splitlines(), f"exit {ended.returncode}"]


PASSED = "===== 3 passed in 1.23s ====="
FAILED = "===== 1 failed, 2 passed in 61.20s (0:01:01) ====="


def test_ci_installs_what_is_missing_and_ends_with_pytests_closing_line(clone: Clone) -> None:
    assert ci(clone, test=f"echo '{PASSED}'")[-2:] == [PASSED, "exit 0"]
    assert [call for call in clone.calls if call.startswith("apt-get")] == [
        "apt-get -qq update",
        "apt-get -qq install -y --no-install-recommends tmux",
    ]


def test_ci_fails_with_the_tests(clone: Clone) -> None:
    clone.stub("tmux", "#!/bin/sh\n")
    assert ci(clone, test=f"echo '{FAILED}'; exit 1")[-2:] == [FAILED, "exit 1"]
    assert clone.calls == []


def test_ci_runs_the_tests_even_when_the_checks_fail_and_fails_all_the_same(clone: Clone) -> None:
    clone.stub("tmux", "#!/bin/sh\n")
    lines = ci(clone, check="exit 3", test=f"echo '{PASSED}'")
    assert "ci: scripts/check failed (3)" in lines
    assert lines[-2:] == [PASSED, "exit 3"]


@pytest.mark.parametrize(
    ("code", "says", "ends"), [(75, "was skipped", 0), (124, "was not judged", 0), (1, "failed", 1)]
)
def test_ci_judges_clients_only_where_it_could_have_them(
    clone: Clone, code: int, says: str, ends: int
) -> None:
    clone.stub("tmux", "#!/bin/sh\n")
    lines = ci(clone, clients=f"exit {code}", test=f"echo '{PASSED}'")
    told = [line for line in lines if line.startswith("ci: ")]
    assert len(told) == 2
    assert all(says in line for line in told)
    assert lines[-2:] == [PASSED, f"exit {ends}"]
