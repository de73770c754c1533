"""Which temperature file speaks for which CPU, and what limits the chip gives for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbhost.config import DEFAULT_HOT_C
from lbhost.machine import temperature
from lbhost.machine.temperature import Sensor
from lbhost.machine.topology import PhysicalCore, Topology
from lbhost.machine.tree import Roots


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    return path


def test_two_chips_with_one_label_are_told_apart_by_their_device(tmp_path: Path) -> None:
    hwmon = tmp_path / "class/hwmon"
    for number, device in ((0, "coretemp.1"), (1, "coretemp.0")):
        chip = hwmon / f"hwmon{number}"
        write(chip / "name", "coretemp")
        write(chip / "temp1_label", "Package id 0")
        write(chip / "temp1_input", "50000")
        (tmp_path / "devices" / device).mkdir(parents=True)
        (chip / "device").symlink_to(tmp_path / "devices" / device)
    cores = tuple(PhysicalCore(cpus=(n,), core_id=0, package=n) for n in range(2))
    found = temperature.find(
        Roots(sysfs=tmp_path), Topology(cores=cores, allowed=frozenset({0, 1}))
    )
    assert found[0] == (hwmon / "hwmon1/temp1_input",)
    assert found[1] == (hwmon / "hwmon0/temp1_input",)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max": "84000", "crit": "105000"}, Sensor(84.0, 100.0)),
        ({"max": "84000", "crit": "100000"}, Sensor(84.0, 95.0)),
        ({"crit": "100000"}, Sensor(None, 95.0)),
        ({"max": "100000", "crit": "100000"}, Sensor(None, 95.0)),
        ({"max": "70000"}, Sensor()),
        ({"crit": "-1"}, Sensor()),
        ({"crit": "20000"}, Sensor()),
        ({}, Sensor()),
    ],
)
def test_a_chips_limits_are_taken_where_they_are_sane(
    tmp_path: Path, limits: dict[str, str], expected: Sensor
) -> None:
    file = write(tmp_path / "temp1_input", "50000")
    write(tmp_path / "name", "coretemp")
    for name, value in limits.items():
        write(tmp_path / f"temp1_{name}", value)
    assert temperature.limits(file) == expected


def test_a_thermal_zones_trip_points_are_its_limits(tmp_path: Path) -> None:
    file = write(tmp_path / "temp", "50000")
    for number, (kind, temp) in enumerate(
        [("active", 50000), ("passive", 70000), ("critical", 90000)]
    ):
        write(tmp_path / f"trip_point_{number}_type", kind)
        write(tmp_path / f"trip_point_{number}_temp", str(temp))
    assert temperature.limits(file) == Sensor(70.0, 85.0)


def test_where_a_board_switches_off_is_not_where_its_workers_rest(tmp_path: Path) -> None:
    """A Raspberry Pi 4's zone and its mirror in hwmon: nothing but a critical 110 degrees."""
    zone = write(tmp_path / "zone/temp", "50000")
    write(tmp_path / "zone/trip_point_0_type", "critical")
    write(tmp_path / "zone/trip_point_0_temp", "110000")
    mirror = write(tmp_path / "hwmon0/temp1_input", "50000")
    write(tmp_path / "hwmon0/temp1_crit", "110000")
    write(tmp_path / "hwmon0/name", "cpu_thermal")
    assert temperature.limits(zone) == temperature.limits(mirror) == Sensor(None, DEFAULT_HOT_C)
