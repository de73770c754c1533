"""`lbhost serve --tui` in a real terminal: asks before it stops the server, and keeps the log."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from lbhost import cockpit
from lbhost.supervisor import runtime
from lbhost.supervisor.runtime import RuntimeDir
from test_tui_terminal import Terminal

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def terminal(folder: Path, command: str) -> AsyncIterator[Terminal]:
    screen = Terminal(folder / "tmux")
    unset = "env -u COLORTERM -u NO_COLOR -u COLUMNS -u LINES TERM=xterm-256color"
    line = f"{unset} {command}; echo exit code $?; exec cat"
    await screen.tmux("new-session", "-d", "-x", "120", "-y", "32", line)
    try:
        yield screen
    finally:
        await screen.tmux("kill-server")


def serve(where: Path, *more: str) -> str:
    words = [sys.executable, "-m", "lbhost", "serve", "--tui", "--port", "0", *more]
    return shlex.join([*words, "--runtime-dir", str(where)])


def holder_of(where: Path) -> int:
    """The pid in the runtime dir's lock."""
    return int(msgspec.json.decode((where / runtime.LOCK_NAME).read_bytes())["pid"])


@pytest.mark.e2e
async def test_quitting_asks_then_stops_the_server_and_leaves_only_its_log() -> None:
    with tempfile.TemporaryDirectory(prefix="lbhost-") as name:
        where = Path(name) / "run"
        where.mkdir(mode=0o700)
        log = where / cockpit.LOG_NAME
        log.write_text("of an earlier server\n")
        async with terminal(Path(name), serve(where, "--ctx-size", "256")) as screen:
            await screen.sees("● ready", "q quit")
            server = holder_of(where)
            await screen.keys("q")
            await screen.sees("Quit and stop the server?", "Cancel")
            await screen.keys("Enter")
            await screen.sees("● ready", without="Quit and stop the server?")
            assert Path(f"/proc/{server}").exists()
            await screen.keys("q")
            await screen.sees("Quit and stop the server?")
            await screen.keys("y")
            await screen.sees("the server has stopped", cockpit.LOG_NAME, "exit code 0")
            assert not Path(f"/proc/{server}").exists()
        text = log.read_text()
        assert text.startswith("of an earlier server\n")
        assert len(text.splitlines()) > 1
        assert [entry.name for entry in where.iterdir()] == [cockpit.LOG_NAME]


async def test_a_second_one_is_refused_and_leaves_the_firsts_log_alone() -> None:
    with tempfile.TemporaryDirectory(prefix="lbhost-") as name:
        where = Path(name) / "run"
        claimed = RuntimeDir.claim(where)
        log = where / cockpit.LOG_NAME
        log.write_text("what the first one wrote\n")
        try:
            async with terminal(Path(name), serve(where)) as screen:
                await screen.sees(f"a server with pid {os.getpid()}", "exit code 1")
            assert log.read_text() == "what the first one wrote\n"
        finally:
            claimed.release()


async def test_a_server_that_does_not_start_is_explained_by_its_own_last_line() -> None:
    with tempfile.TemporaryDirectory(prefix="lbhost-") as name:
        where = Path(name) / "run"
        async with terminal(Path(name), serve(where, "--model", "/nowhere.gguf")) as screen:
            await screen.sees("lbhost: ", "/nowhere.gguf does not exist", "exit code 1")


def test_a_log_that_has_grown_long_is_kept_beside_a_new_one(tmp_path: Path) -> None:
    log = tmp_path / cockpit.LOG_NAME
    assert cockpit._rotated(log) == 0
    log.write_bytes(b"x" * 10)
    assert cockpit._rotated(log) == 10
    log.write_bytes(b"x" * (cockpit.LOG_LIMIT + 1))
    assert cockpit._rotated(log) == 0
    assert not log.exists()
    assert (tmp_path / cockpit.OLD_LOG_NAME).stat().st_size == cockpit.LOG_LIMIT + 1


_SERVER = """
import signal, sys
def told(number, _frame):
    if number == signal.SIGINT:
        sys.exit(0)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, told)
print("ready", flush=True)
while True:
    signal.pause()
"""


def test_who_does_not_want_to_wait_is_understood_by_the_server() -> None:
    """The supervisor takes a SIGTERM soon after the first for its echo, a SIGINT never."""
    with subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        cockpit._stop(server, 0.1 - cockpit.BEYOND_GRACE_S)
        assert server.returncode == 0
