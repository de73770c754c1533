"""The supervisor on boxes that this one is not: two nodes, GPUs, a hundred workers."""

from __future__ import annotations

from pathlib import Path

import pytest

import trees
from lbhost.board import WorkerState
from lbhost.config import Settings
from lbhost.machine import niceness
from lbhost.machine.topology import discover
from lbhost.placement.placement import Placement
from lbhost.placement.plan import plan
from lbhost.supervisor import assembly
from supervising import box

pytestmark = pytest.mark.anyio

S = WorkerState


async def test_every_node_with_workers_has_a_fork_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [Placement((cpu,), 1, node=cpu // 2) for cpu in range(4)]
    async with box(tmp_path, monkeypatch, placements=places) as running:
        status = running.server.status()
        assert [(server.node, server.state) for server in status.fork_servers] == [
            (0, "ready"),
            (1, "ready"),
        ]
        near, far = (running.server.fleet.models[0].fork_servers.of(node) for node in (0, 1))
        assert near is not None
        assert far is not None
        pid = near.pid
        running.kill(far.pid)
        running.kill(running.pid(3))
        await running.until(lambda: running.worker(3).epoch == 2, "worker 3 is replaced")
        await running.state(3, S.READY)
        assert (near.pid, near.restarts, far.restarts) == (pid, 0, 1)


def two_nodes(tmp_path: Path) -> None:
    """Lets box() find CPUs 0 and 1 on one node, 2 and 3 on another."""
    for node, cpus in enumerate(("0-1", "2-3")):
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{cpus}\n")


async def test_a_fork_server_ends_with_its_nodes_last_home_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_nodes(tmp_path)
    async with box(tmp_path, monkeypatch, workers=4) as running:
        servers = running.server.fleet.models[0].fork_servers
        far = servers.of(1)
        assert far is not None
        pid = far.pid
        await running.server.drain(2, None)
        await running.server.drain(3, None)
        assert far.pid == pid, "who is down keeps its home, and comes back without a load"
        running.allowed.difference_update({2, 3})
        await running.until(lambda: servers.of(1) is None, "node 1 has no fork server")
        assert not Path(f"/proc/{pid}").exists()
        running.allowed.update({2, 3})
        await running.until(lambda: running.server.homes.allowed == (0, 1, 2, 3), "seen")
        await running.server.resume(3)
        await running.state(3, S.READY)


async def test_a_node_whose_fork_server_cannot_start_later_does_not_end_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_nodes(tmp_path)
    async with box(tmp_path, monkeypatch) as running:
        running.tell("fork_server", "fail")
        running.allowed.difference_update({0})
        await running.until(
            lambda: running.server.fleet.models[0].fork_servers.of(1), "node 1 needs one"
        )
        far = running.server.fleet.models[0].fork_servers.of(1)
        assert far is not None
        await running.until(lambda: far.restarts > 1, "it is tried again")
        assert running.server.status().state == "ready"
        running.tell("fork_server", "")
        await running.until(lambda: far.state == "ready", "it has come up")


GPUS = [Placement((i,), 1, gpu=i, gpu_uuid=f"GPU-{i}") for i in range(2)]


async def test_gpu_workers_are_spawned_without_a_fork_server_and_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch, placements=GPUS) as running:
        status = running.server.status()
        assert (status.template, status.fork_servers) == (None, [])
        assert [w.gpu for w in status.workers] == [0, 1]
        environ = Path(f"/proc/{running.pid(1)}/environ").read_bytes().split(b"\0")
        assert b"CUDA_VISIBLE_DEVICES=GPU-1" in environ
        running.kill(running.pid(1))
        await running.until(lambda: running.worker(1).epoch == 2, "it is replaced")
        await running.state(1, S.READY)


async def test_a_rolling_restart_of_gpu_workers_makes_no_spare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch, placements=GPUS) as running:
        assert await running.server.restart_all() == "rolling restart done: 2 workers"
        assert [(w.id, w.epoch) for w in running.server.status().workers] == [(0, 2), (1, 2)]
        assert not any("worker 2" in line for line in running.kinds("worker_state"))


async def test_a_lone_gpu_worker_is_restarted_behind_a_spare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch, placements=GPUS[:1]) as running:
        assert await running.server.restart_all() == "rolling restart done: 1 workers"
        assert any("worker 1" in line for line in running.kinds("worker_state"))
        assert [(w.id, w.epoch, w.gpu) for w in running.server.status().workers] == [(0, 2, 0)]


async def test_a_hundred_workers_start_roll_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TICK_S", "0.5")
    described = discover(trees.big_server(tmp_path / "described", 128).roots, range(128))
    places = plan(described, 128)[14:114]
    settings = Settings(restart_budget=1, shutdown_grace_s=30)
    async with box(
        tmp_path, monkeypatch, settings=settings, cores=128, placements=places
    ) as running:
        assert len(running.server.fleet.models[0].fork_servers.all()) == 2
        assert await running.server.restart_all() == "rolling restart done: 100 workers"
        status = running.server.status()
        assert [w.epoch for w in status.workers] == [2] * 100
        assert [w.cores[0] for w in status.workers] == [place.cpus[0] for place in places]


async def test_what_is_left_to_a_worker_is_told_as_the_router_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    def share(*cores: object, nice: int, **rest: object) -> float:
        told.append(nice)
        return 1.0

    monkeypatch.setattr(niceness, "counts", lambda roots: False)
    async with box(tmp_path, monkeypatch, workers=1) as running:
        monkeypatch.setattr(assembly, "share", share)
        assert running.server.status().workers[0].share == 1.0
        assert told[-1] == 0 != running.server.prepared.settings.nice
