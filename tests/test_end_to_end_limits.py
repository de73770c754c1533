"""The real server where the box sets limits, and takes away what it needs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.comparison import disturb
from faults import injection
from lbhost.status import Status
from serving import PATIENCE_S, Server, finished, wait_for

pytestmark = pytest.mark.e2e

SMALL = ("--ctx-size", "1024", "--workers", "2")


def ready(status: Status) -> list[int]:
    return [w.id for w in status.workers if w.state == "ready"]


def test_a_server_whose_runtime_dir_is_removed_can_be_administered_again(tmp_path: Path) -> None:
    with Server(tmp_path / "run", *SMALL, "--shutdown-grace", "600") as server:
        stream = server.later(server.stream, max_tokens=200, ignore_eos=True)
        shutil.rmtree(server.runtime_dir)
        wait_for(lambda: server.cli("status").returncode == 0, "a new client reaches it")
        events = server.cli("events", "--level", "warning")
        assert "was taken away; listening there again" in events.stdout
        assert server.cli("restart", "0").returncode == 0
        assert finished(stream.result())
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 0
        assert not server.runtime_dir.exists()


def test_with_64_descriptors_200_connections_keep_nobody_out(tmp_path: Path) -> None:
    few = ("sh", "-c", 'ulimit -n 64 && exec "$0" "$@"')
    with Server(tmp_path / "run", *SMALL, before=few) as server, ExitStack() as open_ones:
        host, port = server.endpoint.removeprefix("http://").split(":")
        for _ in range(200):
            open_ones.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_S))
        for i in range(3):
            assert server.complete(f"Beside them, {i}").status_code == 200
        pid = server.worker(0).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        server.wait(
            lambda status: ready(status) == [0, 1] and status.workers[0].restarts == 1,
            "a killed worker is replaced",
        )
        assert server.complete("After that").status_code == 200


def allow(group: Path, cpus: int | None) -> None:
    """A real cgroup's quota, of either version; None lifts it."""
    if (group / "cpu.max").exists():
        limit = "max" if cpus is None else str(cpus * 100_000)
        (group / "cpu.max").write_text(f"{limit} 100000")
    else:
        limit = "-1" if cpus is None else str(cpus * 100_000)
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text(limit)


@pytest.fixture
def in_a_cgroup() -> Iterator[tuple[tuple[str, ...], Path]]:
    """What runs a command in a cgroup without limits, and its folder."""
    try:
        with disturb.quota() as before:
            group = Path(before[3]).parent
            allow(group, None)
            yield before, group
    except disturb.DisturbanceError as error:
        pytest.skip(str(error))


def test_a_quota_that_is_set_and_lifted_under_a_running_server_moves_its_workers(
    tmp_path: Path, in_a_cgroup: tuple[tuple[str, ...], Path]
) -> None:
    before, group = in_a_cgroup
    with Server(tmp_path / "run", *SMALL, before=before) as server:
        allow(group, 1)
        server.wait(lambda status: len(ready(status)) == 1, "one CPU, one worker")
        assert server.complete().status_code == 200
        allow(group, None)
        status = server.wait(lambda status: len(ready(status)) == 2, "both work again")
        assert [w.restarts for w in status.workers] == [0, 0]
        assert server.complete().status_code == 200


def test_a_worker_over_its_memory_limit_is_replaced_and_its_streams_go_on(tmp_path: Path) -> None:
    limit = 400 << 20
    with Server(tmp_path / "run", *SMALL, "--memory-limit", "400M") as server:
        before = server.status().workers
        assert all(w.memory_limit == limit for w in before)
        # Its KV cache is its own (4 x 1024 tokens of 23 KB), the 200 MB of weights are not.
        assert all(90 << 20 < (w.memory_own or 0) < limit for w in before), before
        streams = [server.later(server.stream, max_tokens=200, ignore_eos=True) for _ in range(2)]
        server.wait(lambda status: all(w.slots_busy for w in status.workers), "both are busy")
        pid = server.worker(0).pid
        assert pid is not None
        injection.grow(pid, limit)
        server.wait(
            lambda status: (
                ready(status) == [0, 1]
                and [w.memory_restarts for w in status.workers] == [1, 0]
                and status.workers[0].epoch == 2
            ),
            "it is replaced",
        )
        for stream in streams:
            assert finished(stream.result())
        assert server.worker(0).restarts == 0
        assert (server.worker(0).memory_own or 0) < limit
        events = server.cli("events", "--level", "warning").stdout
        assert "over its limit of 400 MiB: replacing it" in events


def test_a_memory_limit_that_no_worker_fits_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lbhost", "serve", *SMALL, "--memory-limit", "100M"]
    command += ["--port", "0", "--runtime-dir", str(tmp_path / "run"), "--no-probe"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 1
    assert "--memory-limit is 100 MiB" in ended.stderr
