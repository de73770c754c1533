"""Clock, temperature and throttle counters of every CPU.

Owns the open files. Readings that change slowly are spread over the rounds: a clock is read
every CLOCK_EVERY rounds, a temperature or a counter every HEAT_EVERY, each round another part
of the CPUs, so that no round is dear. Call `refresh` now and then: sensors come and go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path

import msgspec

from lbhost.machine import temperature, tree
from lbhost.machine.probe import Probe
from lbhost.machine.topology import Topology
from lbhost.machine.tree import Roots

CLOCK_EVERY = 2
HEAT_EVERY = 4
THROTTLE_WINDOW_S = 4.0
"""New throttle events are counted over this."""
_THROTTLE_READINGS = 8
"""Counter readings kept, whatever the pace."""


class CoreReading(msgspec.Struct, frozen=True, gc=False):
    """What the sensors last said of one CPU; None if unknown."""

    freq_ratio: float | None = None
    temp_c: float | None = None
    throttle_s: float | None = None
    warm_c: float | None = None
    hot_c: float | None = None
    sensor: int = -1
    sensor_cores: int = 0


class _Domain(msgspec.Struct, frozen=True):
    """What is known of a temperature sensor besides its reading."""

    number: int
    cores: int
    limits: temperature.Sensor


class _Counter:
    """A throttle counter's rate: new events per second over the last few seconds."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self._history: deque[tuple[float, int]] = deque(maxlen=_THROTTLE_READINGS)

    def read(self, at_s: float) -> None:
        count = self.probe.integer()
        if count is None or (self._history and count < self._history[-1][1]):
            self._history.clear()  # gone, or reset when its CPU was offline
        if count is None:
            return
        self._history.append((at_s, count))
        while len(self._history) > 2 and at_s - self._history[1][0] >= THROTTLE_WINDOW_S:
            self._history.popleft()

    def rate(self) -> float | None:
        if len(self._history) < 2:
            return None
        (before_s, before), (now_s, now) = self._history[0], self._history[-1]
        # At least a second: two readings close together would make one event look like many.
        return (now - before) / max(1.0, now_s - before_s)


class CoreSensors:
    """Reads all CPUs of one box."""

    def __init__(self, roots: Roots, topology: Topology) -> None:
        self._roots = roots
        self._topology = topology
        self._probes: dict[Path, Probe] = {}
        self._max_khz: dict[int, int] = {}
        self._clocks: dict[int, Probe] = {}
        self._heat: dict[int, tuple[Probe, ...]] = {}
        self._counters: dict[Path, _Counter] = {}
        self._throttles: dict[int, tuple[_Counter, ...]] = {}
        self._khz: dict[Probe, int | None] = {}
        self._celsius: dict[Probe, float | None] = {}
        self._domains: dict[Probe, _Domain] = {}
        self._round = 0
        self.refresh()

    def refresh(self) -> None:
        """Look for the sensors again: opens what is new, lets go of what is gone."""
        wanted: set[Path] = set()

        def probe(path: Path) -> Probe:
            wanted.add(path)
            if path not in self._probes or not self._probes[path].alive:
                self._probes[path] = Probe(path)
            return self._probes[path]

        self._clocks, self._max_khz = {}, {}
        for cpu in self._topology.cpus:
            # A link to its policy: a clock that several CPUs share is read once.
            folder = (self._roots.cpus / f"cpu{cpu}/cpufreq").resolve()
            most = tree.integer(folder / "cpuinfo_max_freq")
            most = most or tree.integer(folder / "scaling_max_freq")
            most = most or tree.integer(folder / "base_frequency")
            if most and most > 0:
                self._clocks[cpu] = probe(folder / "scaling_cur_freq")
                self._max_khz[cpu] = most
        found = temperature.find(self._roots, self._topology)
        self._heat = {cpu: tuple(map(probe, files)) for cpu, files in found.items()}
        self._domains = self._find_domains(found)
        self._throttles = {}
        for core, files in throttle_files(self._roots, self._topology):
            counters = tuple(self._counter(file, probe(file)) for file in files)
            self._throttles.update(dict.fromkeys(core, counters))
        for path in self._probes.keys() - wanted:
            self._probes.pop(path).close()
            self._counters.pop(path, None)
        live = set(self._probes.values())
        self._khz = {p: value for p, value in self._khz.items() if p in live}
        self._celsius = {p: value for p, value in self._celsius.items() if p in live}

    def _find_domains(self, found: temperature.Sources) -> dict[Probe, _Domain]:
        """Each sensor's number, how many cores it speaks for, and the chip's limits for it."""
        speaks_for: dict[Path, int] = {}
        for core in self._topology.cores:
            for file in {file for cpu in core.cpus for file in found.get(cpu, ())}:
                speaks_for[file] = speaks_for.get(file, 0) + 1
        return {
            self._probes[file]: _Domain(number, cores, temperature.limits(file))
            for number, (file, cores) in enumerate(sorted(speaks_for.items()))
        }

    def _counter(self, path: Path, probe: Probe) -> _Counter:
        counter = self._counters.get(path)
        if counter is None or counter.probe is not probe:
            counter = self._counters[path] = _Counter(probe)
        return counter

    def read(self, at_s: float) -> bool:
        """Read this round's part of the sensors. False when one of them has vanished."""
        this = self._round
        self._round += 1
        vanished = False
        for number, probe in enumerate(_unique((p,) for p in self._clocks.values())):
            if (this + number) % CLOCK_EVERY == 0 or probe not in self._khz:
                self._khz[probe] = probe.integer()
                vanished |= not probe.alive
        for number, probe in enumerate(_unique(self._heat.values())):
            if (this + number) % HEAT_EVERY == 0 or probe not in self._celsius:
                self._celsius[probe] = temperature.celsius(probe.integer())
                vanished |= not probe.alive
        for number, counter in enumerate(self._counters.values()):
            if (this + number) % HEAT_EVERY == 0:
                counter.read(at_s)
                vanished |= not counter.probe.alive
        return not vanished

    def reading(self, cpu: int) -> CoreReading:
        """The latest of one CPU."""
        khz = self._khz.get(self._clocks[cpu]) if cpu in self._clocks else None
        read = [(self._celsius.get(probe), probe) for probe in self._heat.get(cpu, ())]
        known_heat = [(value, probe) for value, probe in read if value is not None]
        temp_c, hottest = max(known_heat, key=lambda pair: pair[0], default=(None, None))
        domain = None if hottest is None else self._domains[hottest]
        rates = [counter.rate() for counter in self._throttles.get(cpu, ())]
        known = [rate for rate in rates if rate is not None]
        return CoreReading(
            freq_ratio=min(1.0, khz / self._max_khz[cpu]) if khz and khz > 0 else None,
            temp_c=temp_c,
            throttle_s=sum(known) if known else None,
            warm_c=None if domain is None else domain.limits.warm_c,
            hot_c=None if domain is None else domain.limits.hot_c,
            sensor=-1 if domain is None else domain.number,
            sensor_cores=0 if domain is None else domain.cores,
        )

    def close(self) -> None:
        """Let go of all files."""
        for probe in self._probes.values():
            probe.close()


def _unique(groups: Iterable[tuple[Probe, ...]]) -> list[Probe]:
    return list(dict.fromkeys(probe for group in groups for probe in group))


def throttle_files(
    roots: Roots, topology: Topology
) -> list[tuple[tuple[int, ...], tuple[Path, ...]]]:
    """Per physical core its CPUs and its counters: its own and its package's.

    All CPUs of a package show the same package counter: it is read at one of them.
    """
    package_files: dict[int, Path] = {}
    found = []
    for core in topology.cores:
        for cpu in core.cpus:
            folder = roots.cpus / f"cpu{cpu}/thermal_throttle"
            if not (folder / "core_throttle_count").exists():
                continue  # offline now; its sibling shows the same counter
            whole = folder / "package_throttle_count"
            if core.package not in package_files and whole.exists():
                package_files[core.package] = whole
            files = [folder / "core_throttle_count", package_files.get(core.package)]
            found.append((core.cpus, tuple(file for file in files if file is not None)))
            break
    return found
