"""What the sampler finds of who uses the CPUs and of the box, on simulated machines."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import trees
from lbhost.board import Board, CoreRow
from lbhost.linux import ThreadUse, cpu_s, helpers
from lbhost.machine import cpustat, hostload
from lbhost.machine.sampler import Sampler, Watched
from lbhost.machine.topology import discover
from lbhost.machine.tree import Roots
from sampled_box import Box
from trees import GIB


@pytest.fixture
def desktop(tmp_path: Path) -> Iterator[Box]:
    box = Box(trees.intel_desktop(tmp_path / "box"))
    yield box
    box.sampler.close()


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Box]:
    box = Box(trees.container_v2(tmp_path / "box"))
    yield box
    box.sampler.close()


# --- who uses the CPU -------------------------------------------------------------------


def test_nothing_is_known_of_use_before_the_second_sample(desktop: Box) -> None:
    core = desktop.core(0)
    assert (core.idle, core.others, core.steal) == (None, None, None)
    assert core.sampled_ns == desktop.now_ns


def test_a_workers_own_use_does_not_count_as_others(desktop: Box) -> None:
    desktop.watch(0, 0)
    desktop.step({0: (25, 0, 0)}, {0: 0.25})
    desktop.step({0: (25, 0, 0)}, {0: 0.25}, times=2)
    assert desktop.core(0).idle == 0.0
    assert desktop.core(0).others == pytest.approx(0.0)
    assert desktop.core(1).idle == 1.0


def test_a_neighbour_on_the_workers_core_counts_in_full_after_two_samples(desktop: Box) -> None:
    desktop.watch(0, 0)
    desktop.step({0: (25, 0, 0)}, {0: 0.25}, times=3)
    desktop.step({0: (25, 0, 0)}, {0: 0.125})
    assert desktop.core(0).others == pytest.approx(0.25)
    desktop.step({0: (25, 0, 0)}, {0: 0.125})
    assert desktop.core(0).others == pytest.approx(0.5)
    desktop.step({0: (25, 0, 0)}, {0: 0.25}, times=2)
    assert desktop.core(0).others == pytest.approx(0.0)


def test_a_short_use_hardly_shows_in_what_lasts_and_a_neighbour_soon_does(desktop: Box) -> None:
    desktop.watch(0, 0)
    desktop.step(times=4)
    assert desktop.core(0).lasting == pytest.approx(0.0)
    desktop.step({0: (25, 0, 0)})
    desktop.step()
    seen = []
    for _ in range(12):
        seen.append(desktop.core(0).lasting or 0.0)
        desktop.step()
    assert max(seen) < 0.22
    assert seen[-1] < 0.02
    desktop.step({0: (25, 0, 0)}, times=3)
    assert 0.25 < (desktop.core(0).lasting or 0.0) < 0.5
    desktop.step({0: (25, 0, 0)}, times=8)
    assert (desktop.core(0).lasting or 0.0) > 0.85


def test_all_use_of_a_core_without_a_worker_is_others(desktop: Box) -> None:
    desktop.step({3: (10, 0, 0)}, times=2)
    assert desktop.core(3).others == pytest.approx(0.4)
    assert desktop.core(3).idle == pytest.approx(0.6)


def test_waiting_for_io_is_idle_and_steal_is_others(desktop: Box) -> None:
    desktop.step({0: (0, 20, 0), 1: (0, 0, 10)}, times=2)
    assert desktop.core(0).idle == 1.0
    assert desktop.core(0).others == 0.0
    assert desktop.core(1).steal == pytest.approx(0.4)
    assert desktop.core(1).others == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("user", "nice", "own_s", "niced"),
    [
        (0, 100, 0.0, 1.0),
        (100, 0, 0.0, 0.0),
        (40, 60, 0.0, 0.6),
        (0, 100, 0.75, 0.25),  # the worker is niced itself
        (50, 50, 0.5, 0.0),
        (50, 48, 0.5, 0.0),  # sampled ticks fall short of the exact clock
    ],
)
def test_what_others_use_at_lowered_priority_is_told_apart(
    user: int, nice: int, own_s: float, niced: float
) -> None:
    meter = cpustat.UsageMeter(100)
    meter.add(0.0, {0: cpustat.Ticks(0, 0, 0)}, {})
    usage = meter.add(1.0, {0: cpustat.Ticks(0, 0, user + nice, nice)}, {0: own_s})[0]
    assert usage.others == pytest.approx(1 - own_s)
    assert usage.niced == pytest.approx(niced)


def test_a_worker_of_two_threads_is_spread_over_its_cpus(desktop: Box) -> None:
    desktop.watch(0, 2, 3)
    desktop.step({2: (25, 0, 0), 3: (25, 0, 0)}, {0: 0.0})
    desktop.step({2: (25, 0, 0), 3: (15, 0, 0)}, {0: 0.3}, times=2)
    assert desktop.core(2).others == pytest.approx(0.4)
    assert desktop.core(3).others == pytest.approx(0.0)


def test_what_a_worker_uses_of_lent_cores_is_not_others_there_nor_its_own_at_home(
    desktop: Box,
) -> None:
    desktop.watch(0, 0)
    desktop.step(times=2)
    desktop.workers[0] = msgspec.structs.replace(desktop.workers[0], wide=True)
    for _ in range(4):  # half of the time it computes on both; another program is on core 1
        used_s = desktop.threads.get(100, {}).get(7, ThreadUse(1, 0.0)).used_s
        desktop.threads[100] = {7: ThreadUse(1, used_s + 0.12)}
        desktop.step({0: (12, 0, 0), 1: (25, 0, 0)}, {0: 0.24})
    assert desktop.core(0).others == pytest.approx(0.0, abs=0.05)
    assert desktop.core(1).others == pytest.approx(0.52, abs=0.05)
    desktop.workers[0] = msgspec.structs.replace(desktop.workers[0], wide=False)
    for _ in range(4):
        desktop.step({0: (12, 0, 0)}, {0: 0.12})
    assert desktop.core(0).others == pytest.approx(0.0, abs=0.05)
    assert desktop.core(1).others == pytest.approx(0.0, abs=0.05)


def test_a_process_tells_how_long_each_of_its_threads_ran_and_where() -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            pass

    thread = threading.Thread(target=work)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while True:
            found = helpers(os.getpid())
            assert thread.native_id is not None
            use = found[thread.native_id]
            if use.used_s >= 0.05 or time.monotonic() > deadline:
                break
        assert use.used_s >= 0.05
        assert use.cpu in os.sched_getaffinity(0)
        assert os.getpid() not in found
    finally:
        stop.set()
        thread.join()
    assert helpers(2**22 + 1) == {}


def test_two_workers_on_one_cpu_are_added_up(desktop: Box) -> None:
    desktop.watch(0, 1)
    desktop.watch(1, 1)
    desktop.step({1: (25, 0, 0)}, {0: 0.125, 1: 0.125})
    desktop.step({1: (25, 0, 0)}, {0: 0.125, 1: 0.0625}, times=2)
    assert desktop.core(1).others == pytest.approx(0.25)


def test_a_worker_that_has_just_been_forked_does_not_make_its_core_look_taken(
    desktop: Box,
) -> None:
    desktop.step(times=3)
    desktop.watch(0, 0)
    desktop.step({0: (25, 0, 0)}, {0: 0.25})
    # Its clock has no earlier reading to compare with: the quarter second before it counts.
    assert desktop.core(0).others == pytest.approx(0.0)
    desktop.step({0: (25, 0, 0)}, {0: 0.25}, times=2)
    assert desktop.core(0).others == pytest.approx(0.0)


def test_a_dead_worker_makes_others_unknown_until_it_is_not_watched(desktop: Box) -> None:
    desktop.watch(0, 0)
    desktop.step({0: (25, 0, 0)}, {0: 0.25}, times=3)
    desktop.cpu_s[100] = None
    desktop.step({0: (25, 0, 0)}, times=3)
    assert desktop.core(0).others is None
    assert desktop.core(0).idle == 0.0
    desktop.workers.clear()
    desktop.step({0: (5, 0, 0)}, times=2)
    assert desktop.core(0).others == pytest.approx(0.2)


def test_a_pid_that_became_another_process_is_not_believed(desktop: Box) -> None:
    desktop.watch(0, 0)
    desktop.step(times=3)
    desktop.cpu_s[100] = 0.01
    desktop.step({0: (25, 0, 0)})
    desktop.step({0: (25, 0, 0)}, {0: 0.25}, times=2)
    assert desktop.core(0).others == pytest.approx(0.0)


def test_a_tick_of_rounding_costs_two_percent_at_most(desktop: Box) -> None:
    desktop.watch(0, 0)
    for ticks in (24, 25, 25, 24, 25, 25, 25, 24):
        desktop.step({0: (ticks, 0, 0)}, {0: 0.245})
        others = desktop.core(0).others
        assert others is None or others <= 0.0401


def test_a_cpu_that_goes_offline_is_unknown_and_comes_back(desktop: Box) -> None:
    desktop.step(times=2)
    ticks = desktop.tree.ticks.pop(5)
    desktop.step()
    assert desktop.core(5).idle is None
    desktop.tree.ticks[5] = [value // 2 for value in ticks]
    desktop.step()
    assert desktop.core(5).idle is None
    desktop.step()
    assert desktop.core(5).idle == 1.0


def test_cpus_that_come_and_go_are_read_once_they_are_adopted(tmp_path: Path) -> None:
    tree = trees.intel_desktop(tmp_path / "box")
    tree.put(f"{trees.CPU}/online", "0-4,6-10")
    box = Box(tree)
    box.step(times=2)
    assert box.board.cores.read(5) == CoreRow()
    tree.put(f"{trees.CPU}/online", "0-3,5-9,11")
    box.sampler.adopt(tree.topology())
    box.step(times=8)
    box.sampler.close()
    assert (box.core(5).idle, box.core(5).temp_c) == (1.0, 55)
    assert (box.core(4).idle, box.core(4).temp_c) == (None, None)


def test_a_cpu_beyond_the_boards_rows_is_left_out(tmp_path: Path) -> None:
    tree = trees.bare_vm(tmp_path / "box")
    box = Box(tree)
    tree.stat(range(6))
    box.sampler.adopt(tree.topology())
    box.step(times=3)
    box.sampler.close()
    assert [box.core(cpu).idle for cpu in range(4)] == [1.0] * 4


def test_counters_that_jump_back_are_not_believed(desktop: Box) -> None:
    desktop.step(times=2)
    desktop.tree.ticks[0][3] -= 500
    desktop.step()
    assert desktop.core(0).idle is None
    desktop.step()
    assert desktop.core(0).idle == 1.0


def test_a_kernel_that_shows_zeros_is_unknown_not_busy(tmp_path: Path) -> None:
    tree = trees.bare_vm(tmp_path / "box")
    box = Box(tree)
    for _ in range(3):
        box.now_ns += 250_000_000
        tree.put("proc/stat", "cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0")
        box.sampler.sample()
    box.sampler.close()
    assert box.core(0).idle is None
    assert box.core(0).others is None


def test_samples_close_together_give_no_wild_figures(desktop: Box) -> None:
    desktop.step({0: (10, 0, 0)}, times=2)
    desktop.now_ns += 1_000_000
    desktop.sampler.sample()
    assert desktop.core(0).idle == pytest.approx(0.6, abs=0.01)


def test_stat_lines_of_every_age_are_parsed() -> None:
    parsed = cpustat.parse(b"cpu  9 9 9 9\ncpu0 1 2 3 4\ncpu2 1 2 3 4 5 6 7 8 9 9\nintr 1\ncpu9 1")
    assert parsed == {0: cpustat.Ticks(4, 0, 10, 2), 2: cpustat.Ticks(9, 8, 36, 2)}
    assert cpustat.parse(b"cpu0 1 x 3 4\ncpu1 1\n") == {}


def test_the_kernels_clock_of_a_process() -> None:
    own = cpu_s(os.getpid())
    assert own is not None
    assert own > 0
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert cpu_s(child) is None


# --- the box as a whole -----------------------------------------------------------------


def test_pressure_and_memory(desktop: Box) -> None:
    assert desktop.host.psi_cpu == pytest.approx(0.0115)
    assert desktop.host.psi_memory == 0.0
    assert desktop.host.psi_io == pytest.approx(0.0029)
    assert desktop.host.memory_total == 32 * GIB
    assert desktop.host.memory_available == 24 * GIB
    assert desktop.host.quota_cpus is None
    assert desktop.host.throttled is None


def test_a_containers_memory_is_its_limit(container: Box) -> None:
    assert container.host.memory_total == 2 * GIB
    assert container.host.memory_available == GIB + GIB // 4
    assert container.host.quota_cpus == 1.5
    assert hostload.available_bytes(container.tree.roots) == GIB + GIB // 4


def test_throttled_periods_are_taken_over_the_last_second(container: Box) -> None:
    assert container.host.throttled is None
    for periods, throttled in ((102, 10), (105, 12), (107, 14), (110, 15)):
        container.tree.put(
            "sys/fs/cgroup/cpu.stat", f"nr_periods {periods}\nnr_throttled {throttled}"
        )
        container.step()
    assert container.host.throttled == pytest.approx(0.5)
    container.tree.put("sys/fs/cgroup/cpu.stat", "nr_periods 1\nnr_throttled 0")
    container.step()
    assert container.host.throttled is None
    container.step()
    assert container.host.throttled == 0.0


def test_a_quota_lifted_at_runtime_is_forgotten(container: Box) -> None:
    container.tree.put("sys/fs/cgroup/cpu.max", "max 100000")
    container.step(times=8)
    assert container.host.quota_cpus is None
    assert container.host.throttled is None


def test_a_server_moved_to_another_group_has_the_limits_of_that(container: Box) -> None:
    container.tree.put("sys/fs/cgroup/memory.events", "oom_kill 2")
    container.step()
    for path, content in (
        ("cpu.max", "50000 100000"),
        ("memory.max", GIB),
        ("memory.current", GIB // 4),
        ("memory.events", "oom_kill 9"),
    ):
        container.tree.put(f"sys/fs/cgroup/moved/{path}", content)
    container.tree.remove("sys/fs/cgroup/cpu.max")
    container.tree.cgroup_v2("/moved")
    container.step(times=8)
    assert container.host.quota_cpus == 0.5
    assert container.host.memory_total == GIB
    assert container.host.memory_available == GIB - GIB // 4
    assert container.host.oom_kills == 0


def test_kills_for_want_of_memory_count_from_the_first_reading(container: Box) -> None:
    found = []
    for kills in (2, 2, 5, 6):
        container.tree.put("sys/fs/cgroup/memory.events", f"oom 1\noom_kill {kills}")
        container.step()
        found.append(container.host.oom_kills)
    assert found == [0, 0, 3, 4]


@pytest.mark.parametrize("data", [None, b"", b"some", b"some avg10=", b"some avg10=x y"])
def test_odd_pressure_files_are_unknown(data: bytes | None) -> None:
    assert hostload.some_avg10(data) is None


def test_the_machine_itself_can_be_sampled() -> None:
    box = discover(Roots())
    board = Board.create(workers=0, cores=box.rows, gpus=0)
    sampler = Sampler(board, box, Roots())
    sampler.sample([Watched(0, os.getpid(), box.cpus[:1])])
    sampler.close()
    host = board.host.read(0)
    assert host is not None
    assert host.memory_available is None or host.memory_available > 0


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    box = Box(trees.container_v2(tmp_path / "box"))
    box.step(times=30)
    box.sampler.close()
    box.board.close()
    after = len(list(Path("/proc/self/fd").iterdir()))
    assert after - before <= 1  # the board's mapping keeps a descriptor of its own
