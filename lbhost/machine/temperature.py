"""Which temperature file belongs to which CPU.

In order of trust: hwmon `coretemp` (Intel: a sensor per core), hwmon `k10temp` and `zenpower`
(AMD: per socket), thermal zones of the CPU or the chip, hwmon `cpu_thermal`. ACPI zones are
left out: they show the board or a constant. Finds files; reading them is the sampler's part.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from lbhost.config import DEFAULT_HOT_C
from lbhost.machine import tree
from lbhost.machine.topology import Topology
from lbhost.machine.tree import Roots

Sources = dict[int, tuple[Path, ...]]
"""Per CPU the files that bear on it; the hottest counts. CPUs without any are left out."""

_ZONE_TYPES = ("cpu", "soc", "x86_pkg_temp")
_WHOLE = ("Package id ", "Physical id ")
"""coretemp's labels of a package's own sensor, newer and older."""
_OWN_LIMITS = ("coretemp", "k10temp", "zenpower")
"""Drivers whose limits are the chip's, where it throttles by itself."""
_MOST_TRIPS = 16
_BELOW_CRITICAL_C = 5.0
_LEAST_HOT_C, _MOST_HOT_C = 60.0, 120.0
_LEAST_MILLI_C, _MOST_MILLI_C = 1_000, 150_000


def celsius(millidegrees: int | None) -> float | None:
    """The reading in degrees; None for what no working sensor of a running CPU shows.

    Broken sensors show 0, negative numbers, 127 with the sign bit, or whole degrees.
    """
    if millidegrees is None or not _LEAST_MILLI_C <= millidegrees < _MOST_MILLI_C:
        return None
    return millidegrees / 1000


class Sensor(msgspec.Struct, frozen=True):
    """What belongs to a temperature file."""

    warm_c: float | None = None
    hot_c: float | None = None


def limits(path: Path) -> Sensor:
    """The chip's own limits beside a temperature file: `temp1_max` and `temp1_crit` of hwmon, the
    passive and hot or critical trip points of a thermal zone. None where not given, or not sane.

    Hot is 5 degrees under critical, where the chip switches off or throttles hard. A board's
    zone, or its mirror in hwmon, may only say where the board switches off: at 110 degrees on a
    Raspberry Pi, which throttles from 80. There hot is never above the settings' default.
    """
    if path.name == "temp":
        warm, critical = _trips(path.parent)
        most = DEFAULT_HOT_C
    else:
        own = tree.text(path.with_name("name")) in _OWN_LIMITS
        most = _MOST_HOT_C if own else DEFAULT_HOT_C
        warm, critical = (
            celsius(tree.integer(path.with_name(path.name.replace("_input", end))))
            for end in ("_max", "_crit")
        )
    hot = critical - _BELOW_CRITICAL_C if critical is not None else None
    if hot is None or not _LEAST_HOT_C <= hot <= _MOST_HOT_C:
        return Sensor()
    hot = min(hot, most)
    if warm is None or not _LEAST_HOT_C - 20 <= warm < hot:
        warm = None
    return Sensor(warm, hot)


def _trips(zone: Path) -> tuple[float | None, float | None]:
    """A thermal zone's lowest passive and its lowest hot or critical trip point."""
    passive: list[float] = []
    critical: list[float] = []
    for number in range(_MOST_TRIPS):
        kind = tree.text(zone / f"trip_point_{number}_type")
        temp = celsius(tree.integer(zone / f"trip_point_{number}_temp"))
        if kind is None:
            break
        if temp is not None and kind == "passive":
            passive.append(temp)
        elif temp is not None and kind in ("hot", "critical"):
            critical.append(temp)
    return min(passive, default=None), min(critical, default=None)


def find(roots: Roots, topology: Topology) -> Sources:
    """Look for the CPUs' temperature files. Empty where the machine has none."""
    chips = _chips(roots)
    for source in (
        _coretemp(chips, topology),
        _amd(chips, topology),
        _zones(roots, topology),
        _everywhere(_inputs(chips, ("cpu_thermal", "soc_thermal")), topology),
    ):
        if source:
            return source
    return {}


def _chips(roots: Roots) -> list[tuple[str, Path]]:
    """(driver's name, folder) of each hwmon chip; older drivers keep the files under device/."""
    found = []
    for _, folder in tree.numbered(roots.sysfs / "class/hwmon", "hwmon"):
        for place in (folder, folder / "device"):
            name = tree.text(place / "name")
            if name:
                found.append((name, place))
                break
    return found


def _labels(chip: Path) -> dict[str, Path]:
    """Temperature files by their label; those without one by their file's name."""
    labels: dict[str, Path] = {}
    try:
        files = sorted(chip.glob("temp*_input"))
    except OSError:
        return labels
    for file in files:
        label = tree.text(file.with_name(file.name.replace("_input", "_label")))
        labels[label or file.name] = file
    return labels


def _coretemp(chips: Iterable[tuple[str, Path]], topology: Topology) -> Sources:
    sources: Sources = {}
    packages = sorted({core.package for core in topology.cores})
    found = [(chip, _labels(chip)) for name, chip in chips if name == "coretemp"]
    named = [_named_package(labels) for _, labels in found]
    for position, (chip, labels) in enumerate(found):
        package = named[position]
        if package is None or named.count(package) > 1:  # some kernels label all "Package id 0"
            package = _package(chip, packages, position)
        whole = next((f for label, f in labels.items() if label.startswith(_WHOLE)), None)
        for core in topology.cores:
            file = labels.get(f"Core {core.core_id}") or whole
            if core.package == package and file is not None:
                sources.update(dict.fromkeys(core.cpus, (file,)))
    return sources


def _named_package(labels: dict[str, Path]) -> int | None:
    """The package that a coretemp chip's label names."""
    for label in labels:
        if label.startswith(_WHOLE) and label.split()[-1].isdecimal():
            return int(label.split()[-1])
    return None


def _package(chip: Path, packages: list[int], position: int) -> int:
    """The package a coretemp chip sits in by its device's name (coretemp.1), else in order."""
    suffix = (chip / "device").resolve().name.rpartition(".")[2]
    if suffix.isdecimal():
        return int(suffix)
    return packages[position] if position < len(packages) else -1


def _amd(chips: Iterable[tuple[str, Path]], topology: Topology) -> Sources:
    """One chip per socket, in the order of their PCI addresses (18.3, 19.3, …)."""
    found = [chip for name, chip in chips if name in ("k10temp", "zenpower")]
    found.sort(key=lambda chip: (chip / "device").resolve().name)
    sources: Sources = {}
    packages = sorted({core.package for core in topology.cores})
    for package, chip in zip(packages, found, strict=False):
        labels = _labels(chip)
        # Tdie is the real one where both exist: Tctl then has an offset for the fans.
        for wanted in ("Tdie", "Tctl", "Tccd1", "temp1_input"):
            if wanted in labels:
                for core in topology.cores:
                    if core.package == package:
                        sources.update(dict.fromkeys(core.cpus, (labels[wanted],)))
                break
    return sources


def _zones(roots: Roots, topology: Topology) -> Sources:
    zones: dict[str, list[Path]] = {}
    for _, folder in tree.numbered(roots.sysfs / "class/thermal", "thermal_zone"):
        kind = (tree.text(folder / "type") or "").lower()
        prefix = next((p for p in _ZONE_TYPES if kind.startswith(p)), None)
        if prefix and celsius(tree.integer(folder / "temp")) is not None:
            zones.setdefault(prefix, []).append(folder / "temp")
    if "x86_pkg_temp" in zones:
        packages = sorted({core.package for core in topology.cores})
        by_package = dict(zip(packages, zones["x86_pkg_temp"], strict=False))
        return {
            cpu: (by_package[core.package],)
            for core in topology.cores
            if core.package in by_package
            for cpu in core.cpus
        }
    return _everywhere(zones.get("cpu") or zones.get("soc") or [], topology)


def _inputs(chips: Iterable[tuple[str, Path]], names: tuple[str, ...]) -> list[Path]:
    return [file for name, chip in chips if name in names for file in _labels(chip).values()]


def _everywhere(files: Iterable[Path], topology: Topology) -> Sources:
    every = tuple(files)
    return dict.fromkeys(topology.cpus, every) if every else {}
