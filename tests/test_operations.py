"""The operator's commands on a real supervisor over stand-ins: drain, resume, restart, scale."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from lbhost.board import WorkerState
from lbhost.config import Settings
from lbhost.errors import (
    ConflictError,
    InvalidRequestError,
    WorkerNotFoundError,
)
from lbhost.placement.placement import Placement
from lbhost.supervisor.succession import Context
from supervising import box, gone, refused

pytestmark = pytest.mark.anyio

S = WorkerState


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
                spare = running.server.fleet.workers.get(2)
                if spare is not None and spare.pid is not None and spare.state is S.READY:
                    spares.add(spare.place.cpus)
                    pinned.add(frozenset(os.sched_getaffinity(spare.pid)))
                ready = [w for w in running.server.fleet.workers.values() if w.state is S.READY]
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


async def test_without_memory_for_a_spare_workers_are_restarted_in_turn_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        monkeypatch.setattr(running.server.fleet.models[0].room, "_worker_bytes", 1 << 60)
        assert await running.server.restart_all() == "rolling restart done: 2 workers"
        assert [w.epoch for w in running.server.status().workers] == [2, 2]
        assert not any("worker 2" in line for line in running.kinds("worker_state"))
        assert any("no spare worker" in line for line in running.kinds("rolling"))


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
        await running.until(lambda: 2 not in running.server.fleet.workers, "the spare has gone")
        running.tell("worker-0", "")
        await running.server.resume(0)
        assert sorted(running.server.fleet.workers) == [0, 1]


async def test_a_rolling_restart_touches_nothing_when_the_spare_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(restart_budget=1)
    async with box(tmp_path, monkeypatch, settings=settings) as running:
        running.tell("worker-2", "fail")
        await refused(running.server.restart_all(), ConflictError)
        assert [w.epoch for w in running.server.fleet.workers.values()] == [1, 1]
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
        assert list(running.server.fleet.workers) == [0]


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


async def test_what_operators_of_the_server_before_have_wanted_since_is_wanted_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(min_workers=1, max_workers=3, shutdown_grace_s=5)
    before = Context("fake", "/nowhere/fake.gguf", 512, workers=2)
    placed = [Placement((cpu,), 1) for cpu in range(3)]
    async with box(
        tmp_path, monkeypatch, settings=settings, before=before, placements=placed
    ) as running:
        operations, workers = running.server.operations, running.server.fleet.workers
        homes = {i: worker.place for i, worker in workers.items()}
        operations.follow([msgspec.structs.replace(before, workers=1, down=(homes[0],))])
        await running.state(0, S.STOPPED)
        assert [row.wanted for row in running.server.status().workers] == ["down", "up"]
        operations.follow([msgspec.structs.replace(before, workers=3, pinned=True)])
        for worker in range(3):
            await running.state(worker, S.READY)
        assert running.server.desired.models["fake"].pinned
        operations.follow([])
        operations.follow([msgspec.structs.replace(before, name="another", down=(homes[1],))])
        assert all(row.wanted == "up" for row in running.server.status().workers)
        operations.stopping = True
        operations.follow([msgspec.structs.replace(before, workers=2, down=(homes[1],))])
        assert all(row.wanted == "up" for row in running.server.status().workers)
