"""A real supervisor over stand-ins for fork server, workers and gateway: real processes, real
links, real signals."""

from __future__ import annotations

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
    StartupError,
)
from supervising import box, gone, refused

pytestmark = pytest.mark.anyio

S = WorkerState


# --- start ------------------------------------------------------------------------------


async def test_workers_gateway_and_fork_server_come_up_and_that_is_announced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        status = running.server.status()
        assert status.state == "ready"
        assert [w.state for w in status.workers] == ["ready", "ready"]
        assert [w.cores for w in status.workers] == [[0], [1]]
        assert status.gateway.state == "ready"
        assert status.template is not None
        assert status.template.state == "ready"
        assert len(running.announced) == 1


async def test_every_worker_is_linked_to_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        await running.until(
            lambda: running.server.status().traffic.connections == 2, "two data links"
        )
        running.kill(running.server.gateway.pid)
        await running.until(
            lambda: (
                running.server.gateway.state == "ready"
                and running.server.gateway.restarts == 1
                and running.server.status().traffic.connections == 2
            ),
            "the new gateway has two data links",
        )
        await running.until(
            lambda: all(w.kv_total == 2 for w in running.server.status().workers),
            "each worker got a second link",
        )
        assert [w.steps_s for w in running.server.status().workers] == [[0.25, 0.5]] * 2


@pytest.mark.parametrize(
    ("name", "mode", "why"),
    [
        ("fork_server", "fail", "fork_server was told to fail"),
        ("gateway", "fail", "gateway was told to fail"),
        ("gateway", "crash", "exit code 3"),
        ("worker-0", "fail", "worker-0 was told to fail"),
    ],
)
async def test_what_never_comes_up_ends_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mode: str, why: str
) -> None:
    async def start() -> None:
        async with box(
            tmp_path,
            monkeypatch,
            settings=Settings(restart_budget=1),
            workers=1,
            modes={name: mode},
            wait=False,
        ) as running:
            await running.ended()

    with pytest.raises(StartupError, match=why):
        await start()
    assert not (tmp_path / "run").exists()


# --- what dies comes back ---------------------------------------------------------------


async def test_a_killed_worker_comes_back_with_a_new_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        worker, pid = running.worker(1), running.pid(1)
        running.kill(pid)
        await running.until(lambda: worker.epoch == 2 and worker.state is S.READY, "it is back")
        assert gone(pid)
        assert worker.restarts == 1
        assert worker.last_exit == "SIGKILL"
        assert running.worker(0).epoch == 1


async def test_a_worker_that_keeps_crashing_fails_until_the_operator_resumes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(restart_budget=2)
    async with box(tmp_path, monkeypatch, settings=settings) as running:
        running.tell("worker-0", "crash")
        running.kill(running.pid(0))
        await running.state(0, S.FAILED)
        assert running.worker(0).epoch == 3, "the first process and two restarts"
        assert running.worker(0).last_exit == "exit code 3"
        assert running.server.status().state == "degraded"
        message = await refused(running.server.resume(0), ConflictError)
        assert "exit code 3" in message
        running.tell("worker-0", "")
        assert await running.server.resume(0) == "worker 0 is up"
        assert running.server.status().state == "ready"


async def test_a_killed_fork_server_comes_back_and_forks_who_waited_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        fork_server = running.server.fleet.models[0].fork_servers.of(None)
        assert fork_server is not None
        other = running.pid(1)
        running.kill(fork_server.pid)
        running.kill(running.pid(0))
        await running.until(
            lambda: running.worker(0).epoch == 2 and running.worker(0).state is S.READY,
            "the new fork server has forked worker 0",
        )
        assert fork_server.restarts == 1
        assert running.pid(1) == other
        assert running.worker(0).restarts == 1, "waiting for the fork server is no crash"


async def test_a_fork_server_that_does_not_fork_counts_against_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(restart_budget=1)
    async with box(tmp_path, monkeypatch, settings=settings) as running:
        running.tell("fork_server", "barren")
        running.kill(running.pid(0))
        await running.state(0, S.FAILED)
        assert running.worker(0).last_exit == "the fork server could not fork it"


async def test_orphans_that_nobody_knows_are_reaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
import os
if (child := os.fork()) == 0:
    while os.getppid() != int(os.environ["REAPER"]):
        pass
    os._exit(5)
print(child, flush=True)
"""
    monkeypatch.setenv("REAPER", str(os.getpid()))
    async with box(tmp_path, monkeypatch) as running:
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            orphan = int(parent.stdout.readline())
        await running.until(lambda: gone(orphan), "the orphan is reaped")


# --- liveness ---------------------------------------------------------------------------


async def test_a_busy_worker_that_is_stopped_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        worker = running.worker(0)
        running.tell("worker-0", "busy")
        await running.until(lambda: running.server.status().workers[0].slots_busy, "it is busy")
        running.kill(running.pid(0), signal.SIGSTOP)
        running.tell("worker-0", "")
        await running.until(lambda: worker.epoch == 2 and worker.state is S.READY, "replaced")
        assert worker.health_kills == 1
        assert worker.last_exit == "hung: SIGKILL"


async def test_an_idle_worker_that_is_stopped_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        idle = running.worker(0)
        running.kill(running.pid(0), signal.SIGSTOP)
        running.tell("worker-1", "busy")
        await running.until(lambda: running.server.status().workers[1].slots_busy, "1 is busy")
        running.kill(running.pid(1), signal.SIGSTOP)
        running.tell("worker-1", "")
        await running.until(lambda: running.worker(1).health_kills == 1, "the busy one is killed")
        assert idle.health_kills == 0
        running.kill(running.pid(0), signal.SIGCONT)


async def test_a_gateway_that_is_stopped_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        gateway = running.server.gateway
        running.kill(gateway.pid, signal.SIGSTOP)
        await running.until(lambda: gateway.restarts == 1 and gateway.state == "ready", "replaced")
        assert gateway.health_kills == 1
