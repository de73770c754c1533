"""How a real supervisor over stand-ins ends: signals, waiting commands, what must not stay."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lbhost.board import WorkerState
from lbhost.config import Settings
from lbhost.errors import (
    ConflictError,
)
from supervising import box, gone, refused

pytestmark = pytest.mark.anyio

S = WorkerState


async def test_stopping_leaves_no_process_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        server = running.server
        fork_server = server.fleet.models[0].fork_servers.of(None)
        assert fork_server is not None
        pids = [running.pid(0), running.pid(1), server.gateway.pid, fork_server.pid]
        os.kill(running.pid(0), signal.SIGSTOP)
        assert (tmp_path / "run/admin.sock").stat().st_mode & 0o777 == 0o600
    assert all(gone(pid) for pid in pids if pid)
    assert not (tmp_path / "run").exists()


async def test_a_second_signal_ends_the_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(shutdown_grace_s=86400)
    async with box(tmp_path, monkeypatch, settings=settings) as running:
        running.tell("gateway", "deaf")
        running.tell("worker-0", "deaf")
        running.server.request_stop(signal.SIGTERM)
        await running.until(lambda: running.server.status().state == "stopping", "it stops")
        assert "stopping" in await refused(running.server.drain(0, None), ConflictError)
        running.server.request_stop(signal.SIGINT)
        await running.ended()


async def test_commands_that_wait_end_when_the_server_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        running.tell("worker-0", "busy")
        restarting = asyncio.create_task(running.server.restart(0))
        await running.state(0, S.DRAINING)
        running.server.request_stop(signal.SIGTERM)
        with pytest.raises(ConflictError, match="the server is stopping"):
            await restarting


async def test_a_gateway_that_is_ready_only_after_the_stop_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(shutdown_grace_s=86400)
    async with box(
        tmp_path, monkeypatch, settings=settings, modes={"gateway": "slow"}, wait=False
    ) as running:
        await running.until(lambda: running.server.gateway.pid, "the gateway loads")
        running.server.request_stop(signal.SIGTERM)
        await running.until(lambda: running.server.gateway.state == "stopping", "it stops")
        running.tell("gateway", "")
        await running.ended()
        assert running.server.gateway.restarts == 0
        assert running.kinds("gateway") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_signals_that_belong_to_the_first_one_do_not_end_the_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        running.server.request_stop(signal.SIGTERM)
        running.server.request_stop(number)
        assert running.server.signals == [signal.SIGTERM]


_ENDING = """
import asyncio, os, signal, sys, types
from pathlib import Path
from lbhost.config import Settings
from lbhost.supervisor import main

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

def all_of_them():
    for number in STOP_SIGNALS:
        os.kill(os.getpid(), number)

class Served:
    def __init__(self, *_, **__): ...
    async def run(self):
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, print)

def prepare(*_):
    if sys.argv[2] == "loading":
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
    return types.SimpleNamespace(
        sampler=types.SimpleNamespace(close=all_of_them),
        gpu_reader=types.SimpleNamespace(close=all_of_them),
    )

def release(self):
    all_of_them()
    real(self)

real, main.RuntimeDir.release = main.RuntimeDir.release, release
main.Supervisor, main.prepare = Served, prepare
try:
    main.serve(Settings(port=0, runtime_dir=sys.argv[1]), {}, print)
except KeyboardInterrupt:
    sys.exit(7)
"""


@pytest.mark.parametrize(
    ("moment", "number", "code"),
    [
        ("served", "", 0),
        ("loading", "SIGTERM", 7),
        ("loading", "SIGINT", 7),
        ("loading", "SIGHUP", 0),  # kept: a reload is no end
        ("loading", "SIGUSR2", 0),
    ],
)
def test_stop_signals_during_the_clean_up_leave_nothing_behind(
    tmp_path: Path, moment: str, number: str, code: int
) -> None:
    where = tmp_path / "run"
    command = [sys.executable, "-c", _ENDING, str(where), moment, number]
    ended = subprocess.run(
        command,
        timeout=60,
        check=False,
        capture_output=True,
        text=True,
        start_new_session=True,  # no terminal can hang up
    )
    assert ended.returncode == code, ended.stderr
    assert not where.exists()


async def test_children_leave_stop_signals_to_the_supervisor_from_their_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        fork_server = running.server.fleet.models[0].fork_servers.of(None)
        assert fork_server is not None
        # The stand-ins do nothing about SIGTERM and SIGHUP themselves.
        for pid in (running.server.gateway.pid, fork_server.pid, running.pid(0)):
            status = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            )
            ignored = int(status["SigIgn"], 16)
            for number in (signal.SIGTERM, signal.SIGHUP):
                assert ignored >> (number - 1) & 1, (pid, number)


async def test_a_hang_up_that_nohup_has_us_ignore_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with box(tmp_path, monkeypatch) as running:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)  # comes after it, and is acted on
            await running.until(lambda: running.server.signals, "a signal is noted")
            assert running.server.signals == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)
