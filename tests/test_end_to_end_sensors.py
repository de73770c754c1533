"""The real server on boxes that tell it something else than this one does: heat, quiet CPUs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbhost.status import Status
from serving import Server

pytestmark = pytest.mark.e2e

SMALL = ("--ctx-size", "1024", "--workers", "2")


class Box:
    """A server whose sensors are files of the test's.

    Use of the CPUs stays unknown, so that whatever else runs here does not keep cores back.
    """

    def __init__(self, folder: Path) -> None:
        self.sysfs, proc = folder / "sys", folder / "proc"
        self.heat({0: 50, 1: 50})
        proc.mkdir()
        (proc / "stat").write_text("cpu0 1 1 1 1 1 1 1 1\ncpu1 1 1 1 1 1 1 1 1\n")
        environ = {"LBHOST_SYSFS_ROOT": str(self.sysfs), "LBHOST_PROCFS_ROOT": str(proc)}
        self.server = Server(folder / "run", *SMALL, environ=environ)

    def heat(self, temps_c: dict[int, float]) -> None:
        write_hot_box(self.sysfs, temps_c)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"))
    with box.server:
        yield box


def write_hot_box(sysfs: Path, temps_c: dict[int, float]) -> None:
    """A sysfs with coretemp sensors for two cores of one package."""
    for cpu in temps_c:
        topology = sysfs / f"devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True, exist_ok=True)
        (topology / "core_id").write_text(f"{cpu}\n")
        (topology / "physical_package_id").write_text("0\n")
        (topology / "thread_siblings_list").write_text(f"{cpu}\n")
    (sysfs / "devices/system/cpu/online").write_text("0-1\n")
    hwmon = sysfs / "class/hwmon/hwmon0"
    hwmon.mkdir(parents=True, exist_ok=True)
    (hwmon / "name").write_text("coretemp\n")
    for cpu, temp_c in temps_c.items():
        (hwmon / f"temp{cpu + 2}_label").write_text(f"Core {cpu}\n")
        (hwmon / f"temp{cpu + 2}_input").write_text(f"{round(temp_c * 1000)}\n")


def test_a_hot_core_loses_its_traffic_and_gets_it_back(shared: Box) -> None:
    server = shared.server
    assert server.worker(0).temp_c == 50
    shared.heat({0: 99, 1: 50})
    server.wait(lambda s: s.workers[0].state == "resting", "worker 0 rests")
    served = {server.complete(max_tokens=4).headers["x-lbhost-worker"] for _ in range(6)}
    assert served == {"1"}
    shared.heat({0: 90, 1: 50})
    server.wait(lambda s: (s.workers[0].temp_c or 0) == 90, "it cools")
    assert server.worker(0).state == "resting"
    shared.heat({0: 50, 1: 50})
    server.wait(
        lambda s: [(w.state, w.temp_c) for w in s.workers] == [("ready", 50)] * 2,
        "both are ready",
    )


def test_a_lone_request_computes_on_both_cores(shared: Box) -> None:
    server = shared.server
    ask = {"max_tokens": 200, "ignore_eos": True, "temperature": 0}
    wide = [server.later(server.complete, "A story:", **ask)]

    def lent(status: Status) -> bool:
        if wide[-1].done():  # others used the second core all the while: once more
            wide.append(server.later(server.complete, "A story:", **ask))
        return any(worker.lent for worker in status.workers)

    status = server.wait(lent, "one computes on both cores")
    one = next(worker for worker in status.workers if worker.lent)
    two = next(worker for worker in status.workers if worker.id != one.id)
    assert one.lent == two.cores
    assert {core.cpu: core.lent_to for core in status.cores}[two.cores[0]] == one.id
    both = [server.later(server.complete, f"{n} story:", **ask) for n in "AB"]
    for answer in (*wide, *both):
        assert answer.result().json()["usage"]["completion_tokens"] == 200
    server.wait(lambda s: not any(w.lent for w in s.workers), "each has its own core again")
    assert [w.health_kills for w in server.status().workers] == [0, 0]
    steps = re.findall(
        r"lbhost_worker_wide_steps_total\{.*\} (\S+)", server.http.get("/metrics").text
    )
    assert sum(map(float, steps)) > 0
