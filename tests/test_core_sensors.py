"""What the sampler reads of clocks, temperatures and throttling, on simulated machines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import trees
from lbhost.board import CoreRow
from lbhost.machine import temperature
from sampled_box import Box


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
        sampled_ns=box.now_ns,
        idle=0.0,
        others=1.0,
        steal=0.0,
        niced=0.0,
        lasting=1.0,
        lead=True,
        foreign=1.0,
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


def test_without_the_hardwares_maximum_the_governors_is_taken(desktop: Box) -> None:
    for cpu in range(12):
        policy = f"{trees.CPU}/cpufreq/policy{cpu}"
        desktop.tree.remove(f"{policy}/cpuinfo_max_freq")
        desktop.tree.put(f"{policy}/scaling_max_freq", 4_000_000)
        desktop.tree.put(f"{policy}/scaling_cur_freq", 3_000_000)
    desktop.sampler.adopt(desktop.tree.topology())
    desktop.step(times=2)
    assert desktop.core(0).freq_ratio == 0.75
