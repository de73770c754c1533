"""A real supervisor over stand-ins for template, workers and gateway: real processes, real
links, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from lbhost.board import WorkerState
from lbhost.config import Settings
from lbhost.errors import (
    ConflictError,
    InvalidRequestError,
    LbhostError,
    StartupError,
    WorkerNotFoundError,
)
from supervising import box

pytestmark = pytest.mark.anyio

S = WorkerState


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def refused(command: Coroutine[Any, Any, str], error: type[LbhostError]) -> str:
    with pytest.raises(error) as caught:
        await command
    assert "\n" not in caught.value.message
    return caught.value.message


# --- start ------------------------------------------------------------------------------


async def test_workers_gateway_and_template_come_up_and_that_is_announced_once(
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


@pytest.mark.parametrize(
    ("name", "mode", "why"),
    [
        ("template", "fail", "template was told to fail"),
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
        fork_server = running.server.fork_servers.of(None)
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
        running.tell("template", "barren")
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


# --- the operator -----------------------------------------------------------------------


async def test_drain_stops_a_worker_for_good_and_resume_brings_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        pid = running.pid(0)
        assert await running.server.drain(0, None) == "worker 0 is drained and stopped"
        assert running.worker(0).state is S.STOPPED
        assert gone(pid)
        assert running.server.status().state == "ready", "what is wanted is so"
        assert await running.server.drain(0, None) == "worker 0 is drained and stopped"
        assert await running.server.resume(0) == "worker 0 is up"
        assert await running.server.resume(0) == "worker 0 is up"
        assert running.worker(0).epoch == 2
        assert running.worker(0).restarts == 0, "the operator's restarts are no crashes"


async def test_a_drain_waits_for_requests_and_can_be_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        running.tell("worker-0", "busy")
        pid = running.pid(0)
        draining = asyncio.create_task(running.server.drain(0, None))
        await running.state(0, S.DRAINING)
        assert await running.server.resume(0) == "worker 0 is up"
        assert running.pid(0) == pid
        with pytest.raises(ConflictError, match="was resumed"):
            await draining


async def test_a_drain_that_takes_too_long_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        running.tell("worker-0", "busy")
        await running.server.drain(0, 0.05)
        assert running.worker(0).state is S.STOPPED
        assert any("time to drain is over" in line for line in running.kinds("worker_state"))


async def test_a_worker_that_ignores_stop_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        running.tell("worker-0", "deaf")
        pid = running.pid(0)
        await running.server.drain(0, None)
        assert running.worker(0).state is S.STOPPED
        assert gone(pid)
        assert running.worker(0).health_kills == 0


async def test_a_worker_that_is_killed_while_it_drains_is_drained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        running.tell("worker-0", "busy")
        draining = asyncio.create_task(running.server.drain(0, None))
        await running.state(0, S.DRAINING)
        running.kill(running.pid(0))
        assert await draining == "worker 0 is drained and stopped"


async def test_drain_of_a_worker_that_is_starting_or_in_backoff(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        running.tell("worker-0", "mute")
        running.kill(running.pid(0))
        await running.until(lambda: running.worker(0).epoch == 2 and running.worker(0).pid, "fork")
        await running.server.drain(0, None)
        assert running.worker(0).state is S.STOPPED
        running.tell("worker-1", "crash")
        running.kill(running.pid(1))
        await running.until(lambda: running.worker(1).crashes.streak >= 3, "long backoffs")
        await running.state(1, S.BACKOFF)
        await running.server.drain(1, None)
        assert running.worker(1).state is S.STOPPED
        assert running.worker(1).retry_at_s is None


async def test_restart_gives_a_worker_a_new_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        pid = running.pid(1)
        assert await running.server.restart(1) == "worker 1 is up again"
        assert gone(pid)
        assert running.worker(1).epoch == 2


async def test_restart_of_a_drained_worker_starts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        await running.server.drain(1, None)
        await running.server.restart(1)
        assert running.worker(1).state is S.READY
        assert running.server.status().workers[1].wanted == "up"


async def test_a_restart_that_is_taken_back_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        running.tell("worker-0", "busy")
        restarting = asyncio.create_task(running.server.restart(0))
        await running.state(0, S.DRAINING)
        await running.server.resume(0)
        with pytest.raises(ConflictError, match="was resumed"):
            await restarting


async def test_a_rolling_restart_keeps_capacity_ids_and_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        least = [9]
        spares: set[tuple[int, ...]] = set()
        pinned: set[frozenset[int]] = set()

        async def count() -> None:
            while True:
                spare = running.server.pool.workers.get(2)
                if spare is not None and spare.pid is not None and spare.state is S.READY:
                    spares.add(spare.place.cpus)
                    pinned.add(frozenset(os.sched_getaffinity(spare.pid)))
                ready = [w for w in running.server.pool.workers.values() if w.state is S.READY]
                least[0] = min(least[0], len(ready))
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        assert await running.server.restart_all() == "rolling restart done: 2 workers"
        counting.cancel()
        assert least[0] == 2
        assert spares == {(0,), (1,)}, "the spare takes each core in turn"
        # Stand-ins pin nothing at their start: what is seen on CPU 1 has been moved there.
        assert pinned >= {frozenset({cpu}) for cpu in os.sched_getaffinity(0) & {1}}
        status = running.server.status()
        assert [(w.id, w.epoch, w.cores) for w in status.workers] == [(0, 2, [0]), (1, 2, [1])]
        assert status.rolling is None
        assert not running.server.prepared.board.identity.read(2).present  # type: ignore[union-attr]


async def test_a_rolling_restart_stops_at_a_worker_that_does_not_come_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(restart_budget=1)
    async with box(tmp_path, monkeypatch, settings=settings) as running:
        running.tell("worker-0", "fail")
        message = await refused(running.server.restart_all(), ConflictError)
        assert "worker-0 was told to fail" in message
        assert running.worker(0).state is S.FAILED
        assert running.worker(1).epoch == 1
        await running.until(lambda: 2 not in running.server.pool.workers, "the spare has gone")
        running.tell("worker-0", "")
        await running.server.resume(0)
        assert sorted(running.server.pool.workers) == [0, 1]


async def test_a_rolling_restart_touches_nothing_when_the_spare_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(restart_budget=1)
    async with box(tmp_path, monkeypatch, settings=settings) as running:
        running.tell("worker-2", "fail")
        await refused(running.server.restart_all(), ConflictError)
        assert [w.epoch for w in running.server.pool.workers.values()] == [1, 1]
        assert running.server.operations.rolling is None


async def test_while_a_rolling_restart_runs_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        running.tell("worker-0", "busy")
        rolling = asyncio.create_task(running.server.restart_all())
        await running.state(0, S.DRAINING)
        assert (running.server.status().rolling or "").startswith("worker 0, 0 of 2")
        for command in (
            running.server.restart_all(),
            running.server.restart(1),
            running.server.scale(3),
        ):
            assert "rolling restart" in await refused(command, ConflictError)
        running.tell("worker-0", "")
        await rolling


async def test_scale_up_and_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with box(tmp_path, monkeypatch) as running:
        assert await running.server.scale(4) == "4 workers"
        assert [w.cores for w in running.server.status().workers] == [[0], [1], [2], [3]]
        pids = [running.pid(i) for i in (1, 2, 3)]
        assert await running.server.scale(1) == "1 worker"
        assert [w.id for w in running.server.status().workers] == [0]
        assert all(gone(pid) for pid in pids)
        await running.server.scale(2)
        assert running.worker(1).epoch == 2, "an id never has the same epoch twice"
        assert "at most 4 fit" in await refused(running.server.scale(5), InvalidRequestError)


async def test_scaling_down_removes_workers_in_any_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(restart_budget=1)
    async with box(tmp_path, monkeypatch, settings=settings, workers=4) as running:
        await running.server.drain(1, None)
        running.tell("worker-2", "crash")
        running.kill(running.pid(2))
        await running.state(2, S.FAILED)
        running.tell("worker-3", "mute")
        running.kill(running.pid(3))
        await running.state(3, S.STARTING)
        await running.server.scale(1)
        assert list(running.server.pool.workers) == [0]


async def test_unknown_workers_are_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        for command in (
            running.server.drain(7, None),
            running.server.resume(7),
            running.server.restart(7),
        ):
            assert "7" in await refused(command, WorkerNotFoundError)


# --- the end ----------------------------------------------------------------------------


async def test_stopping_leaves_no_process_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        server = running.server
        fork_server = server.fork_servers.of(None)
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
        with pytest.raises(ConflictError):
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
    def __init__(self, *_): ...
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
        ("loading", "SIGHUP", 7),
    ],
)
def test_stop_signals_during_the_clean_up_leave_nothing_behind(
    tmp_path: Path, moment: str, number: str, code: int
) -> None:
    where = tmp_path / "run"
    command = [sys.executable, "-c", _ENDING, str(where), moment, number]
    ended = subprocess.run(command, timeout=60, check=False, capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr
    assert not where.exists()


async def test_children_leave_stop_signals_to_the_supervisor_from_their_first_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        fork_server = running.server.fork_servers.of(None)
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
