"""The command line: flags from settings, errors in one line, exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from lbhost import __version__, cli, config
from lbhost.board import WorkerState
from lbhost.cli import operate
from lbhost.errors import UsageError
from lbhost.supervisor.children import Children
from supervising import box


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("LBHOST_"):
            monkeypatch.delenv(name)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.run(argv)
    out, err = capsys.readouterr()
    return code, out, err


def one_line(err: str) -> str:
    assert err.startswith("lbhost: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


# --- usage ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["serve", "--prot", "1"], "did you mean --port"),
        (["serve", "--port", "70000"], "--port: expected int <= 65535, got '70000'"),
        (["serve", "--port"], "--port"),
        (["tui", "--json"], "tui --json needs --once"),
        (["tui", "--once", "--export-svg", "a.svg"], "not both"),
        (["tui", "--export-svg", "a.svg", "--size", "10x10"], "--size: expected COLUMNSxROWS"),
        (["cancel"], "REQUEST"),
        (["serve", "--workers", "0"], "--workers: "),
        (["serve", "--policy", "best"], "cost, round-robin"),
        (["serve", "--config", "/nowhere.toml"], "no such configuration file"),
        (["serve", "stray"], "stray"),
        (["sevre"], "serve"),
        (["drain"], "WORKER"),
        (["drain", "one"], "one"),
        (["restart", "some"], "`all`"),
        (["scale", "many"], "expected a whole number or auto, got 'many'"),
        (["scale", "1.5"], "expected a whole number or auto, got '1.5'"),
        (["drain", "0.5"], "expected a whole number, got '0.5'"),
        (["events", "--worker", "0x1"], "--worker: expected a whole number, got '0x1'"),
        (["status", "--jsn"], "--json"),
        (["status", "--watch", "--interval", "0"], "--interval"),
        (["scale", "0"], "must be >= 1"),
        (["drain", "0", "--timeout", "-1"], "--timeout"),
        (["events", "--backlog", "-5"], "--backlog"),
        (["events", "--level", "loud"], "warning"),
        (["events", "--since", "yesterday"], "--since"),
        (["completion", "tcsh"], "bash"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], argv: Sequence[str], said: str
) -> None:
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert said.lower() in one_line(err).lower()
    assert out == ""


def test_environment_and_file_are_checked_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LBHOST_SLOT", "3")
    code, _, err = run(capsys, "serve")
    assert code == 2
    assert "LBHOST_SLOT: unknown key; did you mean 'LBHOST_SLOTS'?" in one_line(err)
    monkeypatch.delenv("LBHOST_SLOT")
    file = tmp_path / "lbhost.toml"
    file.write_text("prot = 1\n")
    code, _, err = run(capsys, "serve", "--config", str(file))
    assert code == 2
    assert "did you mean 'port'?" in one_line(err)


def test_every_setting_is_a_flag_with_its_docstring_as_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = run(capsys, "serve", "--help")
    assert code == 0
    text = re.sub(r"[\s│]+", " ", out)
    for key in config.FLAGS:
        assert f"--{config.flag_name(key)} " in text
    assert "Sequences that each worker runs at once. [default: 4]" in text
    assert "--shutdown-grace SECONDS" in text
    for flag in ("--config", "--tui", "--runtime-dir", "--ctx-size", "--threads-per-worker"):
        assert flag in text


def test_the_help_is_whole_without_docstrings_and_sources() -> None:
    command = [sys.executable, "-OO", "-m", "lbhost", "serve", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Sequences that each worker runs at once." in re.sub(r"[\s│]+", " ", done.stdout)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("lbhost serve --pol", "--policy"),
        ("lbhost sta", "status"),
        ("lbhost drain --tim", "--timeout"),
    ],
)
def test_bash_completes_commands_and_flags(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: str, found: str
) -> None:
    code, script, _ = run(capsys, "completion", "bash")
    assert code == 0
    (tmp_path / "lbhost.bash").write_text(script)
    ask = (
        'source "$1"; COMP_WORDS=($2); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE=$2; '
        'COMP_POINT=${#2}; _lbhost; echo "${COMPREPLY[@]}"'
    )
    command = ["bash", "-c", ask, "bash", str(tmp_path / "lbhost.bash"), words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found in done.stdout.split()


def test_since_takes_spans_and_times() -> None:
    assert operate.moment("90s", 1000.0) == 910.0
    assert operate.moment("1.5h", 10_000.0) == 4600.0
    assert operate.moment("2h", 1.0) == 0.0
    assert operate.moment("1970-01-01T00:01:00+00:00", 0.0) == 60.0
    with pytest.raises(UsageError, match="--since"):
        operate.moment("yesterday", 0.0)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", out)


def test_python_dash_m_is_the_same_and_never_loads_the_dashboard() -> None:
    check = (
        "import sys; from lbhost import cli"
        "; code = cli.run(['status', '--runtime-dir', '/nowhere'])"
        "; assert not [m for m in sys.modules if m.startswith(('textual', 'lbhost_tui'))]"
        "; assert not [m for m in sys.modules if m.startswith('llama_cpp')]; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no server runs on /nowhere" in one_line(done.stderr)


# --- start-up errors --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said", "code"),
    [
        (["--model", "/nowhere/x.gguf"], "/nowhere/x.gguf does not exist", 1),
        (["--model", __file__], "not a GGUF file", 2),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid", 1),
        (["--runtime-dir", "/" + "x" * 120], "shorter --runtime-dir", 1),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(
    tmp_path: Path, flags: list[str], said: str, code: int
) -> None:
    where = ["--runtime-dir", str(tmp_path / "run")] if "--runtime-dir" not in flags else []
    command = [sys.executable, "-m", "lbhost", "serve", "--port", "0", *where, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in one_line(done.stderr)
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "lbhost", "serve", "--port", str(port)]
        command += ["--runtime-dir", str(tmp_path / "run"), "--model", "/nowhere"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: address already in use" in one_line(done.stderr)


def test_the_dashboard_needs_a_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lbhost", "serve", "--tui", "--runtime-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs a terminal" in one_line(done.stderr)


def test_a_runtime_dir_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    command = [sys.executable, "-m", "lbhost", "serve", "--port", "0", "--runtime-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "chmod 700" in one_line(done.stderr)


# --- commands on a server ---------------------------------------------------------------


async def lbhost(runtime_dir: Path, *argv: str) -> tuple[int, str, str]:
    """`lbhost ARGV` as a process of its own, beside the server in this one."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lbhost", *argv, "--runtime-dir", str(runtime_dir)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.anyio
async def test_the_commands_do_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Children, "sweep", lambda _: None)  # the commands are children, too
    async with box(tmp_path, monkeypatch) as running:
        where = tmp_path / "run"
        code, out, _ = await lbhost(where, "status")
        assert code == 0
        assert max(map(len, out.splitlines())) <= 80
        assert "\x1b" not in out
        assert re.search(r"^ *1 ready +1 ", out, re.MULTILINE)
        code, out, _ = await lbhost(where, "status", "--json")
        assert code == 0
        assert '"state": "ready"' in out

        code, out, _ = await lbhost(where, "requests")
        assert code == 0
        assert out.startswith("1 request, 1 queued, 0 in prefill, 0 in decode\n")
        assert "req_1" in out
        assert max(map(len, out.splitlines())) <= 80
        code, out, _ = await lbhost(where, "requests", "--json")
        assert json.loads(out)["requests"][0]["starts_in_s"] == 1.25
        assert (await lbhost(where, "cancel", "req_1"))[:2] == (0, "request req_1 is ended\n")
        code, _, err = await lbhost(where, "cancel", "req_2")
        assert code == 1
        assert "no live request has the id 'req_2'" in one_line(err)
        assert running.kinds("operator") == ["request req_1 is ended"]
        running.tell("gateway", "deaf")
        code, _, err = await lbhost(where, "requests")
        assert code == 1
        assert "the gateway did not answer within 2 s" in one_line(err)
        running.tell("gateway", "")
        code, out, _ = await lbhost(where, "tui", "--once", "--json")
        assert code == 0
        assert json.loads(out)["state"] == "ready"

        assert await lbhost(where, "drain", "0", "--timeout", "5") == (
            *(0, "worker 0 is drained and stopped\n", ""),
        )
        assert running.worker(0).state is WorkerState.STOPPED
        assert (await lbhost(where, "resume", "0"))[0] == 0
        assert running.worker(0).state is WorkerState.READY
        assert (await lbhost(where, "restart", "1"))[0] == 0
        assert running.worker(1).epoch == 2
        assert (await lbhost(where, "restart", "all"))[0] == 0
        assert running.worker(1).epoch == 3
        assert (await lbhost(where, "scale", "3"))[0] == 0
        assert len(running.server.fleet.workers) == 3

        code, out, _ = await lbhost(where, "logs", "1")
        assert code == 0
        written = [line.split(maxsplit=1)[1].strip() for line in out.splitlines()]
        assert written == [f"process {epoch} of worker 1" for epoch in (1, 2, 3)]
        code, out, _ = await lbhost(where, "logs", "1", "--json", "--backlog", "1")
        line = json.loads(out)
        assert (line["epoch"], line["message"]) == (3, "process 3 of worker 1")
        code, _, err = await lbhost(where, "logs", "9")
        assert code == 1
        assert "no worker has the id 9" in one_line(err)

        code, out, err = await lbhost(where, "drain", "9")
        assert (code, out) == (1, "")
        assert "no worker has the id 9" in one_line(err)
        code, _, err = await lbhost(where, "scale", "64")
        assert code == 1
        assert "cannot scale to 64 workers: at most 4 fit here" in one_line(err)

        running.tell("worker-0", "busy")
        assert await lbhost(where, "drain", "0", "--no-wait") == (0, "accepted\n", "")
        await running.state(0, WorkerState.DRAINING)

        code, out, _ = await lbhost(where, "events", "--backlog", "3")
        assert code == 0
        assert len(out.splitlines()) == 3
        assert "draining" in out.splitlines()[-1]

        code, out, _ = await lbhost(where, "events", "--worker", "1", "--since", "1h", "--json")
        assert code == 0
        assert {line["worker"] for line in map(json.loads, out.splitlines())} == {1}
        assert (await lbhost(where, "events", "--since", "2100-01-01"))[:2] == (0, "")
        code, out, err = await lbhost(where, "events", "--worker", "99")
        assert (code, out) == (2, "")
        assert "no event of a worker 99" in err
        unsaid = await lbhost(where, "events", "--worker", "99", "--level", "error")
        assert unsaid[:2] == (0, "")  # it may have gone, and have had others
        assert (await lbhost(where, "events", "--level", "error"))[:2] == (0, "")

        watching = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lbhost", "status", "--watch", "--json", "--interval", "0.1"),
            *("--runtime-dir", str(where)),
            stdout=subprocess.PIPE,
        )
        assert watching.stdout is not None
        async with asyncio.timeout(60):
            pictures = [json.loads(await watching.stdout.readline()) for _ in range(3)]
            watching.send_signal(signal.SIGINT)
            assert await watching.wait() == 130
        assert [picture["state"] for picture in pictures] == ["ready"] * 3


@pytest.mark.anyio
async def test_a_second_server_is_refused_and_the_first_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Children, "sweep", lambda _: None)
    async with box(tmp_path, monkeypatch):
        code, _, err = await lbhost(tmp_path / "run", "serve", "--port", "0")
        assert code == 1
        assert f"a server with pid {os.getpid()}" in one_line(err)


def test_a_stale_socket_is_a_server_that_is_gone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "admin.sock"))
    code, _, err = run(capsys, "status", "--runtime-dir", str(tmp_path))
    assert code == 1
    assert "no server runs on" in one_line(err)


@pytest.mark.anyio
@pytest.mark.parametrize("version", ["9.9.9", __version__])
async def test_a_status_of_another_version_is_one_line(tmp_path: Path, version: str) -> None:
    answer = f'{{"version": "{version}", "workers": "many"}}'

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not await reader.readline():  # it only looked whether somebody listens
            writer.close()
            return
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(answer)}\r\nconnection: close\r\n\r\n"
        writer.write((head + answer).encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(other, tmp_path / "admin.sock"):
        code, out, err = await lbhost(tmp_path, "status")
    assert (code, out) == (1, "")
    said = f"the server is lbhost {version}" if version != __version__ else "cannot be read"
    assert said in one_line(err)
