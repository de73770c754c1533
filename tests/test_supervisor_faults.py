"""What used to leave a worker STARTING for ever, or on a core that is gone: real processes."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import pytest

from lbhost import control
from lbhost.board import WorkerState
from lbhost.config import Settings
from lbhost.errors import ConflictError, InvalidRequestError
from supervising import Box, box

pytestmark = pytest.mark.anyio

S = WorkerState


class Refusal:
    """A link that takes nothing."""

    times = 0

    def __call__(self, *_: object) -> bool:
        self.times += 1
        return False


async def look_again(running: Box) -> None:
    """Until the supervisor has read the limits that the test has changed."""
    wanted = tuple(sorted(running.allowed))
    await running.until(lambda: running.server.homes.allowed == wanted, "the limits are seen")


async def test_a_worker_whose_core_is_gone_moves_and_survives_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch, settings=Settings(restart_budget=1)) as running:
        running.allowed.difference_update({0})
        await look_again(running)
        assert [w.cores for w in running.server.status().workers] == [[2], [1]]
        assert running.worker(0).epoch == 1, "moved, not restarted"
        running.kill(running.pid(0))
        await running.until(lambda: running.worker(0).epoch == 2, "it is replaced")
        await running.state(0, S.READY)
        cores = {core.cpu: core.worker for core in running.server.status().cores}
        assert cores == {0: None, 1: 1, 2: 0, 3: None}


async def test_workers_that_no_longer_fit_drain_and_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        running.tell("worker-0", "busy")
        await running.until(lambda: running.server.status().workers[0].slots_busy, "it is busy")
        running.allowed.difference_update({0, 2, 3})
        await running.state(0, S.DRAINING)
        assert running.worker(0).place.cpus == (1,), "it runs out its requests where it may"
        assert running.worker(1).state is S.READY
        running.tell("worker-0", "")
        await running.state(0, S.STOPPED)
        status = running.server.status()
        assert (status.state, status.workers[0].cores) == ("degraded", [])
        with pytest.raises(ConflictError, match="no core for worker 0"):
            await running.server.resume(0)
        running.allowed.update({0, 2, 3})
        await running.state(0, S.READY)
        assert running.server.status().state == "ready"


async def test_a_process_that_is_no_child_is_not_taken_for_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is watched is killed one day: here it would be the supervisor itself."""
    async with box(
        tmp_path, monkeypatch, settings=Settings(restart_budget=100), modes={"worker-1": "lies"}
    ) as running:
        await running.until(
            lambda: "no new child" in (running.worker(1).last_exit or ""), "it is refused"
        )
        assert running.worker(1).pid is None
        running.tell("worker-1", "")
        await running.state(1, S.READY)


async def test_a_running_worker_is_pinned_to_its_new_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if cpus[:2] != [0, 1]:
        pytest.skip("needs CPUs 0 and 1")
    async with box(tmp_path, monkeypatch, workers=1, cores=2) as running:
        running.allowed.difference_update({0})
        await running.until(
            lambda: os.sched_getaffinity(running.pid(0)) == {1}, "it runs on CPU 1 alone"
        )


async def test_no_descriptors_at_a_restart_are_a_crash_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch, settings=Settings(restart_budget=100)) as running:
        gateway = running.server.gateway
        real = control.socketpair
        refused = []

        def no_descriptors() -> object:
            refused.append(1)
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(control, "socketpair", no_descriptors)
        running.kill(gateway.pid)
        running.kill(running.pid(0))
        await running.until(lambda: len(refused) >= 3, "starts were tried")
        await running.until(lambda: gateway.state == "backoff", "the gateway is tried again")
        await running.state(0, S.BACKOFF)
        monkeypatch.setattr(control, "socketpair", real)
        await running.state(0, S.READY)
        await running.until(lambda: gateway.state == "ready", "the gateway is back")


@pytest.mark.parametrize("hears", [True, False])
async def test_a_gateway_that_has_retired_is_not_started_again_however_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hears: bool
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        gateway = running.server.gateway
        running.kill(gateway.pid, signal.SIGSTOP)  # it does not get to do as it is told
        if not hears:
            monkeypatch.setattr(gateway, "send", Refusal())
        gateway.retire(control.Retire(60.0))
        running.kill(gateway.pid)
        await running.until(lambda: gateway.pid is None, "it has ended")
        assert (gateway.state, gateway.restarts) == ("stopped", 0)
        assert running.kinds("gateway")[-1] == "gateway ended: SIGKILL"


async def test_a_fork_that_could_not_be_sent_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        fork_server = running.server.fleet.models[0].fork_servers.of(None)
        assert fork_server is not None
        send, refused = fork_server.send, Refusal()
        monkeypatch.setattr(fork_server, "send", refused)
        running.kill(running.pid(0))
        await running.until(lambda: refused.times >= 2, "the fork was asked for twice")
        assert running.worker(0).state is S.STARTING
        monkeypatch.setattr(fork_server, "send", send)
        await running.state(0, S.READY)


async def test_a_data_link_that_could_not_be_made_is_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        gateway = running.server.gateway
        send, refused = gateway.send, Refusal()
        monkeypatch.setattr(gateway, "send", refused)
        running.kill(running.pid(0))
        await running.until(lambda: refused.times >= 2, "the link was tried twice")
        assert running.worker(0).state is S.READY
        monkeypatch.setattr(gateway, "send", send)
        await running.until(lambda: running.worker(0).gateway == gateway.pid, "it is linked")


async def test_a_stale_drained_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        running.tell("worker-0", "busy")
        worker, pool = running.worker(0), running.server.fleet.pools[0]
        tell = pool.processes.message
        await running.until(lambda: running.server.status().workers[0].slots_busy, "it is busy")
        pool.want(worker, up=False)
        pool.reconcile()
        pool.want(worker, up=True)
        pool.reconcile()
        pool.want(worker, up=False)
        pool.reconcile()
        tell(worker, worker.epoch, control.Drained(worker.drain - 1))
        assert worker.state.name == "DRAINING"
        tell(worker, worker.epoch, control.Drained(worker.drain))
        assert worker.state.name == "STOPPING"


@pytest.mark.parametrize(
    ("count", "message"),
    [(0, "cannot scale to 0 workers: at least 1"), (50, "cannot scale to 50 workers: at most 4")],
)
async def test_scaling_to_what_cannot_be_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, message: str
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        with pytest.raises(InvalidRequestError, match=message):
            await running.server.scale(count)


async def test_a_state_changes_before_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        worker = running.worker(0)
        add, told = running.server.events.add, []

        def listen(level: str, kind: str, message: str, about: int | None = None) -> None:
            if kind == "worker_exit":
                told.append(worker.state)
            add(level, kind, message, about)

        monkeypatch.setattr(running.server.events, "add", listen)
        running.kill(running.pid(0))
        await running.until(lambda: worker.epoch == 2 and worker.state is S.READY, "it is back")
        assert told == [S.BACKOFF]


async def test_status_shows_the_cpus_that_are_there_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        assert [core.cpu for core in running.server.status().cores] == [0, 1, 2, 3]
        (tmp_path / "sys/devices/system/cpu/online").write_text("0-2\n")
        await running.until(
            lambda: [core.cpu for core in running.server.status().cores] == [0, 1, 2],
            "CPU 3 is gone from status",
        )


async def test_a_fork_server_that_is_stopped_is_replaced_once_a_fork_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        fork_server = running.server.fleet.models[0].fork_servers.of(None)
        assert fork_server is not None
        running.kill(fork_server.pid, signal.SIGSTOP)
        running.kill(running.pid(0))
        await running.until(lambda: running.worker(0).epoch == 2, "a fork is asked for")
        await running.state(0, S.READY)
        assert (fork_server.restarts, fork_server.health_kills) == (1, 1)
        assert running.worker(0).restarts == 1, "that is not the worker's fault"


async def test_a_fork_server_that_refuses_is_asked_ever_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with box(tmp_path, monkeypatch) as running:
        fork_server = running.server.fleet.models[0].fork_servers.of(None)
        assert fork_server is not None
        running.tell("fork_server", "fail")
        running.kill(fork_server.pid)
        running.kill(running.pid(0))
        await running.until(lambda: fork_server.restarts >= 5, "it is tried again and again")
        delays = [float(line.split()[-2]) for line in running.kinds("fork_server") if "in " in line]
        assert all(later > 1.2 * sooner for sooner, later in itertools.pairwise(delays))
        assert running.worker(0).state is S.STARTING
        assert running.worker(1).state is S.READY
        running.tell("fork_server", "")
        await running.state(0, S.READY)
