from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

import trees
from lbhost.board import Board, CoreRow, HostRow
from lbhost.linux import ThreadUse, cpu_s, helpers
from lbhost.machine import cpustat, hostload, temperature
from lbhost.machine.sampler import Sampler, Watched
from lbhost.machine.topology import discover
from lbhost.machine.tree import Roots
from trees import GIB, Tree

TICKS = 25
"""Ticks in a quarter second."""


class Box:
    """A sampler on a simulated machine, with a clock that only `step` moves."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.topology = tree.topology()
        self.board = Board.create(workers=0, cores=self.topology.rows, gpus=0)
        self.now_ns = 10_000_000_000
        self.cpu_s: dict[int, float | None] = {}
        self.threads: dict[int, dict[int, ThreadUse]] = {}
        self.workers: list[Watched] = []
        self.sampler = Sampler(
            self.board,
            self.topology,
            tree.roots,
            clock_ns=lambda: self.now_ns,
            cpu_clock_s=lambda pid: self.cpu_s.get(pid),
            threads=lambda pid: self.threads.get(pid, {}),
        )
        self.sampler.sample()

    def watch(self, worker: int, *cpus: int) -> None:
        """A worker whose pid is 100 + its id, and which has run for 5 s."""
        self.workers.append(Watched(worker, 100 + worker, cpus))
        self.cpu_s[100 + worker] = 5.0

    def step(
        self,
        busy: Mapping[int, tuple[int, int, int]] | None = None,
        own_s: Mapping[int, float] | None = None,
        times: int = 1,
    ) -> None:
        """Quarter seconds pass: (user, iowait, steal) ticks by CPU, CPU seconds by worker."""
        for _ in range(times):
            self.now_ns += 250_000_000
            self.tree.run(busy or {}, TICKS)
            for worker, seconds in (own_s or {}).items():
                used = self.cpu_s[100 + worker]
                assert used is not None
                self.cpu_s[100 + worker] = used + seconds
            self.sampler.sample(self.workers)

    def core(self, cpu: int) -> CoreRow:
        row = self.board.cores.read(cpu)
        assert row is not None
        return row

    @property
    def host(self) -> HostRow:
        row = self.board.host.read(0)
        assert row is not None
        return row


@pytest.fixture
def desktop(tmp_path: Path) -> Iterator[Box]:
    box = Box(trees.intel_desktop(tmp_path / "box"))
    yield box
    box.sampler.close()


@pytest.fixture
def pi(tmp_path: Path) -> Iterator[Box]:
    box = Box(trees.raspberry_pi(tmp_path / "box"))
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


# --- clock, heat, throttling ------------------------------------------------------------


def test_intel_cores_have_their_own_temperature_by_label(desktop: Box) -> None:
    desktop.step()
    for cpu in range(12):
        assert desktop.core(cpu).temp_c == 50 + cpu % 6
        assert desktop.core(cpu).freq_ratio == pytest.approx(4.3 / 4.7)


def test_hybrid_cores_are_matched_by_core_id(tmp_path: Path) -> None:
    box = Box(trees.hybrid_laptop(tmp_path / "box"))
    box.sampler.close()
    # Labels Core 0, 4, 8 … 15 are 61, 62, 63 … 70 degrees.
    temps = [box.core(cpu).temp_c for cpu in range(12)]
    assert temps == [61, 61, 62, 62, *range(63, 71)]


def test_amd_sockets_are_told_apart_by_pci_address(tmp_path: Path) -> None:
    box = Box(trees.amd_server(tmp_path / "box"))
    box.sampler.close()
    assert {box.core(cpu).temp_c for cpu in (0, 7, 16, 23)} == {48.5}
    assert {box.core(cpu).temp_c for cpu in (8, 15, 24, 31)} == {71.25}
    assert box.core(0).throttle_s is None


def test_one_zone_serves_all_cores_of_a_pi(pi: Box) -> None:
    pi.step()
    for cpu in range(4):
        assert pi.core(cpu).temp_c == pytest.approx(67.712)
        assert pi.core(cpu).freq_ratio == pytest.approx(1.5 / 2.4)
        assert pi.core(cpu).throttle_s is None


def test_a_vm_with_nothing_knows_use_and_nothing_else(tmp_path: Path) -> None:
    box = Box(trees.bare_vm(tmp_path / "box"))
    box.step({1: (25, 0, 0)}, times=8)
    box.sampler.close()
    assert box.core(1) == CoreRow(
        sampled_ns=box.now_ns, idle=0.0, others=1.0, steal=0.0, niced=0.0, lasting=1.0, lead=True
    )


@pytest.mark.parametrize("value", ["0", "-128000", "255000", "45", "", "hot", "127\x00"])
def test_bogus_temperatures_are_unknown(pi: Box, value: str) -> None:
    pi.tree.put("sys/class/thermal/thermal_zone0/temp", value)
    pi.step(times=4)
    assert pi.core(0).temp_c is None
    pi.tree.put("sys/class/thermal/thermal_zone0/temp", 50000)
    pi.step(times=4)
    assert pi.core(0).temp_c == 50


def test_acpi_zones_are_not_taken_for_the_cpu(tmp_path: Path) -> None:
    tree = trees.bare_vm(tmp_path / "box")
    tree.zone(0, "acpitz", 27800)
    tree.zone(1, "iwlwifi_1", 41000)
    assert temperature.find(tree.roots, tree.topology()) == {}
    tree.zone(2, "x86_pkg_temp", 55000)
    sources = temperature.find(tree.roots, tree.topology())
    assert set(sources) == {0, 1, 2, 3}


def test_the_hottest_of_several_cpu_zones_counts(tmp_path: Path) -> None:
    tree = trees.bare_vm(tmp_path / "box")
    tree.zone(0, "soc-thermal", 90000)
    tree.zone(1, "cpu-big-thermal", 61000)
    tree.zone(2, "cpu-little-thermal", 52000)
    box = Box(tree)
    box.sampler.close()
    assert {box.core(cpu).temp_c for cpu in range(4)} == {61.0}


def test_a_chip_without_core_labels_gives_the_package_temperature(tmp_path: Path) -> None:
    tree = trees.bare_vm(tmp_path / "box")
    tree.hwmon(0, "coretemp", "platform/coretemp.0", {"Physical id 0": 58000})
    tree.hwmon(1, "k10temp", "pci0000:00/0000:00:18.3", {"Tctl": 90000})
    box = Box(tree)
    box.sampler.close()
    # Intel's driver is asked first; a box never has both.
    assert {box.core(cpu).temp_c for cpu in range(4)} == {58.0}


def test_sensors_that_are_renumbered_at_runtime_are_found_again(desktop: Box) -> None:
    desktop.tree.remove("sys/class/hwmon/hwmon2")
    desktop.tree.hwmon(7, "coretemp", "platform/coretemp.0x", {"Package id 0": 72000})
    desktop.step(times=130)
    assert desktop.core(0).temp_c == 72


def test_throttle_events_are_counted_per_second_over_a_few_seconds(desktop: Box) -> None:
    desktop.step(times=20)
    assert desktop.core(0).throttle_s == 0.0
    desktop.tree.throttle([0, 6], core=11, package=40)
    desktop.step(times=4)
    # 4 new events, over 4 to 5 s.
    assert desktop.core(0).throttle_s == pytest.approx(0.9, abs=0.11)
    assert desktop.core(6).throttle_s == desktop.core(0).throttle_s
    assert desktop.core(1).throttle_s == 0.0
    desktop.step(times=24)
    assert desktop.core(0).throttle_s == 0.0


def test_package_throttling_counts_for_every_core(desktop: Box) -> None:
    desktop.step(times=20)
    desktop.tree.throttle(range(12), core=7, package=48)
    desktop.step(times=4)
    for cpu in range(12):
        assert desktop.core(cpu).throttle_s == pytest.approx(1.8, abs=0.21)


def test_a_throttle_counter_that_goes_backwards_is_unknown_then_starts_again(
    desktop: Box,
) -> None:
    desktop.step(times=12)
    desktop.tree.throttle(range(12), core=0, package=0)
    desktop.step(times=4)
    assert desktop.core(0).throttle_s is None
    desktop.step(times=4)
    assert desktop.core(0).throttle_s == 0.0


def test_a_clock_of_zero_or_above_the_maximum_is_no_nonsense(desktop: Box) -> None:
    desktop.tree.put(f"{trees.CPU}/cpufreq/policy0/scaling_cur_freq", 0)
    desktop.tree.put(f"{trees.CPU}/cpufreq/policy1/scaling_cur_freq", 9_900_000)
    desktop.tree.put(f"{trees.CPU}/cpufreq/policy2/scaling_cur_freq", "<unsupported>")
    desktop.step(times=2)
    assert [desktop.core(cpu).freq_ratio for cpu in range(3)] == [None, 1.0, None]


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
