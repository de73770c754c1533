"""/sys and /proc of other machines, written into a folder from compact descriptions.

Each builder lays out what the kernel shows on that kind of machine, as far as lbhost reads
it. A test changes a file with `put` and takes the next sample.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from lbhost.machine import cpulist
from lbhost.machine.topology import Topology, discover
from lbhost.machine.tree import Roots

GIB = 1 << 30
CPU = "sys/devices/system/cpu"


class Tree:
    """One machine's /sys and /proc under a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.roots = Roots(sysfs=folder / "sys", procfs=folder / "proc")
        self.roots.sysfs.mkdir(parents=True)
        self.roots.procfs.mkdir()
        self.ticks: dict[int, list[int]] = {}
        """Per CPU: user nice system idle iowait irq softirq steal guest guest_nice."""

    def put(self, path: str, content: object) -> None:
        """Write one file in place, as the kernel's files are: open descriptors see it."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        data = f"{content}\n".encode()
        with file.open("r+b" if file.exists() else "wb", buffering=0) as stream:
            stream.write(data)  # at once, and cut after it: nobody reads an empty file
            stream.truncate()

    def link(self, path: str, target: str) -> None:
        """Make `path` a symbolic link to `target`, both inside the tree; makes the folder."""
        (self.folder / target).mkdir(parents=True, exist_ok=True)
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(self.folder / target)

    def remove(self, path: str) -> None:
        """A driver was unloaded, a CPU went offline."""
        gone = self.folder / path
        if gone.is_dir():
            shutil.rmtree(gone)
        else:
            gone.unlink()

    def stat(self, cpus: Iterable[int]) -> None:
        """Begin /proc/stat with these CPUs online, all idle."""
        self.ticks = {cpu: [1000, 0, 500, 90000, 100, 0, 20, 0, 0, 0] for cpu in cpus}
        self.run({})

    def run(self, busy: Mapping[int, tuple[int, int, int]], ticks: int = 25) -> None:
        """Let `ticks` of 10 ms pass. Per CPU (user, iowait, steal) ticks; the rest is idle."""
        for cpu, row in self.ticks.items():
            user, iowait, steal = busy.get(cpu, (0, 0, 0))
            row[0] += user
            row[3] += ticks - user - iowait - steal
            row[4] += iowait
            row[7] += steal
        total = [sum(column) for column in zip(*self.ticks.values(), strict=True)]
        lines = [f"cpu  {_words(total)}"]
        lines += [f"cpu{cpu} {_words(row)}" for cpu, row in sorted(self.ticks.items())]
        lines += ["intr 309409" + " 0" * 200, "ctxt 1000", "btime 1763750000", "processes 4242"]
        self.put("proc/stat", "\n".join(lines))

    def cores(self, layout: Iterable[tuple[int, int, int, tuple[int, ...]]]) -> None:
        """Describe the cores: (package, node, core_id, logical CPUs) each."""
        nodes: dict[int, list[int]] = {}
        every: list[int] = []
        for package, node, core_id, cpus in layout:
            nodes.setdefault(node, []).extend(cpus)
            every.extend(cpus)
            for cpu in cpus:
                folder = f"{CPU}/cpu{cpu}/topology"
                self.put(f"{folder}/core_id", core_id)
                self.put(f"{folder}/physical_package_id", package)
                self.put(f"{folder}/thread_siblings_list", cpulist.render(cpus))
                self.put(f"{folder}/core_cpus_list", cpulist.render(cpus))
        self.put(f"{CPU}/online", cpulist.render(every))
        self.put(f"{CPU}/present", cpulist.render(every))
        for node, cpus_of_node in nodes.items():
            self.put(f"sys/devices/system/node/node{node}/cpulist", cpulist.render(cpus_of_node))
        self.stat(every)

    def clock(self, cpus: Iterable[int], max_khz: int, now_khz: int) -> None:
        """cpufreq, a policy per CPU."""
        for cpu in cpus:
            policy = f"{CPU}/cpufreq/policy{cpu}"
            self.put(f"{policy}/cpuinfo_max_freq", max_khz)
            self.put(f"{policy}/scaling_cur_freq", now_khz)
            self.put(f"{policy}/scaling_governor", "powersave")
            self.link(f"{CPU}/cpu{cpu}/cpufreq", policy)

    def throttle(self, cpus: Iterable[int], core: int = 0, package: int = 0) -> None:
        """Intel's thermal throttle counters."""
        for cpu in cpus:
            folder = f"{CPU}/cpu{cpu}/thermal_throttle"
            self.put(f"{folder}/core_throttle_count", core)
            self.put(f"{folder}/package_throttle_count", package)

    def hwmon(self, number: int, name: str, device: str, temps: Mapping[str, int]) -> None:
        """A chip with temperatures by label, in millidegrees."""
        folder = f"sys/class/hwmon/hwmon{number}"
        self.put(f"{folder}/name", name)
        self.link(f"{folder}/device", f"sys/devices/{device}")
        for index, (label, value) in enumerate(temps.items(), 1):
            self.put(f"{folder}/temp{index}_label", label)
            self.put(f"{folder}/temp{index}_input", value)

    def zone(self, number: int, kind: str, millidegrees: int) -> None:
        """A thermal zone."""
        self.put(f"sys/class/thermal/thermal_zone{number}/type", kind)
        self.put(f"sys/class/thermal/thermal_zone{number}/temp", millidegrees)

    def memory(self, total: int, available: int, swap: int = 0, swap_free: int = 0) -> None:
        """/proc/meminfo, bytes."""
        rows = {"MemTotal": total, "MemFree": available // 2, "MemAvailable": available}
        rows |= {"Buffers": 2 << 20, "SwapTotal": swap, "SwapFree": swap_free}
        self.put(
            "proc/meminfo", "\n".join(f"{k + ':':<15}{v // 1024:>10} kB" for k, v in rows.items())
        )

    def pressure(self, cpu: float, memory: float, io: float) -> None:
        """PSI, percent over the last 10 s."""
        for name, value in (("cpu", cpu), ("memory", memory), ("io", io)):
            rest = "avg60=0.75 avg300=3.28 total=178438536"
            self.put(
                f"proc/pressure/{name}",
                f"some avg10={value:.2f} {rest}\nfull avg10=0.00 {rest}",
            )

    def cgroup_v2(self, path: str = "/", mount: str = "/sys/fs/cgroup", root: str = "/") -> None:
        """This process in a v2 group, as /proc shows it."""
        self.put("proc/self/cgroup", f"0::{path}")
        self.put(
            "proc/self/mountinfo",
            f"23 27 0:22 / /sys rw,relatime - sysfs sysfs rw\n"
            f"31 23 0:28 {root} {mount} ro,nosuid shared:9 - cgroup2 cgroup rw,nsdelegate",
        )
        self.put("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids")

    def topology(self, affinity: Iterable[int] | None = None) -> Topology:
        """What discover makes of it; the mask defaults to all CPUs that are online."""
        return discover(self.roots, self.ticks if affinity is None else affinity)


def _words(row: Iterable[int]) -> str:
    return " ".join(map(str, row))


def intel_desktop(folder: Path) -> Tree:
    """6 cores, 12 CPUs (n and n+6 are siblings), coretemp, throttle counters, cpufreq, 32 GiB."""
    tree = Tree(folder)
    tree.cores((0, 0, n, (n, n + 6)) for n in range(6))
    tree.clock(range(12), 4_700_000, 4_300_000)
    tree.throttle(range(12), core=7, package=40)
    temps = {"Package id 0": 61000} | {f"Core {n}": 50000 + 1000 * n for n in range(6)}
    tree.hwmon(0, "acpitz", "virtual/thermal/thermal_zone0", {"": 27800})
    tree.hwmon(1, "nvme", "pci0000:00/0000:00:1d.0/nvme/nvme0", {"Composite": 41850})
    tree.hwmon(2, "coretemp", "platform/coretemp.0", temps)
    tree.zone(0, "acpitz", 27800)
    tree.zone(1, "x86_pkg_temp", 61000)
    tree.memory(32 * GIB, 24 * GIB, swap=2 * GIB, swap_free=2 * GIB)
    tree.pressure(1.15, 0.0, 0.29)
    tree.cgroup_v2("/user.slice/user-1000.slice/session-2.scope")
    tree.put("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
    return tree


def amd_server(folder: Path) -> Tree:
    """2 sockets of 8 cores, 32 CPUs, a NUMA node and a k10temp each; hwmon numbers swapped."""
    tree = Tree(folder)
    tree.cores((n // 8, n // 8, n % 8, (n, n + 16)) for n in range(16))
    tree.clock(range(32), 3_700_000, 3_400_000)
    for number, device, tctl in ((1, "19.3", 71250), (3, "18.3", 48500)):
        tree.hwmon(
            number,
            "k10temp",
            f"pci0000:00/0000:00:{device}",
            {"Tctl": tctl, "Tccd1": tctl - 6000, "Tccd2": tctl - 7000},
        )
    tree.memory(256 * GIB, 240 * GIB)
    tree.pressure(0.0, 0.0, 0.0)
    tree.cgroup_v2("/system.slice/lbhost.service")
    return tree


def raspberry_pi(folder: Path) -> Tree:
    """4 cores that share one clock and one thermal zone; no throttle counters."""
    tree = Tree(folder)
    tree.cores((0, 0, n, (n,)) for n in range(4))
    policy = f"{CPU}/cpufreq/policy0"
    tree.put(f"{policy}/cpuinfo_max_freq", 2_400_000)
    tree.put(f"{policy}/scaling_cur_freq", 1_500_000)
    tree.put(f"{policy}/scaling_governor", "ondemand")
    for cpu in range(4):
        tree.link(f"{CPU}/cpu{cpu}/cpufreq", policy)
    tree.zone(0, "cpu-thermal", 67712)
    tree.memory(8 * GIB, 6 * GIB)
    tree.cgroup_v2("/user.slice")
    return tree


def bare_vm(folder: Path, cpus: int = 4) -> Tree:
    """A VM whose kernel describes nothing: /proc/stat and /proc/meminfo alone."""
    tree = Tree(folder)
    tree.stat(range(cpus))
    tree.memory(4 * GIB, 3 * GIB)
    return tree


def container_v2(folder: Path) -> Tree:
    """A container with 1.5 CPUs and 2 GiB on the Intel desktop; own cgroup namespace."""
    tree = intel_desktop(folder)
    tree.cgroup_v2("/")
    group = "sys/fs/cgroup"
    tree.put(f"{group}/cpu.max", "150000 100000")
    tree.put(f"{group}/cpuset.cpus.effective", "0-11")
    tree.put(f"{group}/cpu.stat", _cpu_stat(100, 10))
    tree.put(f"{group}/memory.max", 2 * GIB)
    tree.put(f"{group}/memory.high", "max")
    tree.put(f"{group}/memory.current", GIB)
    tree.put(f"{group}/memory.stat", f"anon {GIB // 2}\ninactive_file {GIB // 4}\nactive_file 0")
    return tree


def container_v1(folder: Path) -> Tree:
    """A container with 2 CPUs' quota on CPUs 0-3 and 3 GiB; it sees the host's cgroup paths."""
    tree = intel_desktop(folder)
    path = "/docker/0123abcd"
    tree.put(
        "proc/self/cgroup",
        f"12:memory:{path}\n5:cpuset:{path}\n4:cpu,cpuacct:{path}\n1:name=systemd:{path}\n0::/",
    )
    mounts = ["23 27 0:22 / /sys ro,nosuid - sysfs sysfs ro"]
    for number, name in enumerate(("memory", "cpuset", "cpu,cpuacct"), 40):
        mounts.append(
            f"{number} 30 0:{number} {path} /sys/fs/cgroup/{name} ro,nosuid master:{number} "
            f"- cgroup cgroup rw,{name}"
        )
    tree.put("proc/self/mountinfo", "\n".join(mounts))
    group = "sys/fs/cgroup"
    tree.put(f"{group}/cpu,cpuacct/cpu.cfs_quota_us", 200000)
    tree.put(f"{group}/cpu,cpuacct/cpu.cfs_period_us", 100000)
    tree.put(f"{group}/cpu,cpuacct/cpu.stat", "nr_periods 100\nnr_throttled 0\nthrottled_time 0")
    tree.put(f"{group}/cpuset/cpuset.cpus", "0-3")
    tree.put(f"{group}/memory/memory.limit_in_bytes", 3 * GIB)
    tree.put(f"{group}/memory/memory.usage_in_bytes", GIB)
    tree.put(f"{group}/memory/memory.stat", f"cache 4096\ntotal_inactive_file {GIB // 2}")
    return tree


def mixed_cgroups(folder: Path) -> Tree:
    """A VM with each v1 controller mounted, an empty v2 beside them, and no limit anywhere."""
    tree = bare_vm(folder, cpus=2)
    tree.cores((0, 0, n, (n,)) for n in range(2))
    tree.put("proc/self/cgroup", "4:memory:/jobs/1\n3:cpuset:/\n2:cpuacct:/\n1:cpu:/\n0::/")
    mounts = ["31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755"]
    for number, name in enumerate(("cpu", "cpuacct", "cpuset", "memory"), 32):
        mounts.append(
            f"{number} 31 0:{number} / /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}"
        )
    mounts.append("41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw")
    tree.put("proc/self/mountinfo", "\n".join(mounts))
    tree.put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", -1)
    tree.put("sys/fs/cgroup/cpu/cpu.cfs_period_us", 100000)
    tree.put("sys/fs/cgroup/cpuset/cpuset.cpus", "")
    tree.put("sys/fs/cgroup/cpuset/cpuset.effective_cpus", "0-1")
    tree.put("sys/fs/cgroup/memory/jobs/1/memory.limit_in_bytes", 9223372036854771712)
    tree.put("sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    tree.put("sys/fs/cgroup/unified/cpu.stat", "usage_usec 1\nuser_usec 1\nsystem_usec 0")
    return tree


def hybrid_laptop(folder: Path) -> Tree:
    """2 performance cores with SMT (CPUs 0-3) and 8 efficiency cores (4-11), coretemp."""
    tree = Tree(folder)
    fast = [(0, 0, 4 * n, (2 * n, 2 * n + 1)) for n in range(2)]
    tree.cores([*fast, *((0, 0, 8 + n, (4 + n,)) for n in range(8))])
    tree.clock(range(4), 4_400_000, 4_000_000)
    tree.clock(range(4, 12), 3_300_000, 3_000_000)
    tree.put("sys/devices/cpu_core/cpus", "0-3")
    tree.put("sys/devices/cpu_atom/cpus", "4-11")
    labels = ["Package id 0", "Core 0", "Core 4", *(f"Core {8 + n}" for n in range(8))]
    temps = {label: 60000 + 1000 * n for n, label in enumerate(labels)}
    tree.hwmon(5, "coretemp", "platform/coretemp.0", temps)
    tree.throttle(range(12))
    tree.memory(16 * GIB, 10 * GIB)
    return tree


def big_server(folder: Path, cores: int = 64) -> Tree:
    """A sensor of every kind on every core, and a quota: what the sampler's cost is measured on."""
    tree = Tree(folder)
    half = cores // 2
    tree.cores((n // half, n // half, n % half, (n,)) for n in range(cores))
    tree.clock(range(cores), 3_800_000, 3_300_000)
    tree.throttle(range(cores), core=3, package=9)
    for package in range(2):
        temps = {f"Package id {package}": 70000} | {f"Core {n}": 60000 for n in range(half)}
        tree.hwmon(package, "coretemp", f"platform/coretemp.{package}", temps)
    tree.memory(512 * GIB, 400 * GIB)
    tree.pressure(3.0, 0.5, 0.1)
    tree.cgroup_v2("/system.slice/lbhost.service")
    group = "sys/fs/cgroup/system.slice/lbhost.service"
    tree.put(f"{group}/cpu.max", f"{cores * 100000} 100000")
    tree.put(f"{group}/cpu.stat", _cpu_stat(1000, 10))
    tree.put(f"{group}/memory.max", 300 * GIB)
    tree.put(f"{group}/memory.current", 100 * GIB)
    tree.put(f"{group}/memory.stat", f"anon {50 * GIB}\ninactive_file {GIB}\nactive_file {GIB}")
    return tree


def _cpu_stat(periods: int, throttled: int) -> str:
    return (
        "usage_usec 123456\nuser_usec 100000\nsystem_usec 23456\n"
        f"nr_periods {periods}\nnr_throttled {throttled}\nthrottled_usec {throttled * 50000}"
    )
