"""What the control group of this process allows: CPU quota, CPU set, memory. v1 and v2.

Finds the group's folders once (`locate`); the limits are read again at every call, because
an operator can change them under a running server. A limit anywhere up the hierarchy binds,
so every ancestor that can be seen counts.
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path

import msgspec

from lbhost.machine import cpulist, tree
from lbhost.machine.tree import Roots

_NO_LIMIT = 1 << 60
"""v1 says "unlimited" with a number near 2^63."""


class Hierarchy(msgspec.Struct, frozen=True):
    """One controller's folders for this process: its own first, then every ancestor's."""

    v2: bool = True
    folders: tuple[Path, ...] = ()
    path: str = "/"
    """Of its own group, as /proc/self/cgroup names it."""


class Cgroup(msgspec.Struct, frozen=True):
    """Where this process's limits are written. Empty hierarchies when there are no cgroups."""

    cpu: Hierarchy = Hierarchy()
    cpuset: Hierarchy = Hierarchy()
    memory: Hierarchy = Hierarchy()

    def quota_cpus(self) -> float | None:
        """CPUs' worth of time per second that the group may use; None without a quota."""
        quotas = [_quota(folder, self.cpu.v2) for folder in self.cpu.folders]
        return min((quota for quota in quotas if quota is not None), default=None)

    def quota_folders(self) -> tuple[Path, ...]:
        """The folders that set a CPU quota: those whose cpu.stat counts throttling."""
        v2 = self.cpu.v2
        return tuple(folder for folder in self.cpu.folders if _quota(folder, v2) is not None)

    def shares_cpu(self) -> bool:
        """Whether the kernel weighs this group as a whole against its neighbours."""
        if not self.cpu.v2:
            # In a namespace the path is "/" as well, but only the real root has a release agent.
            top = self.cpu.folders[-1:]
            hidden = any(not (folder / "release_agent").exists() for folder in top)
            return self.cpu.path != "/" or hidden
        return any((folder / "cpu.weight").is_file() for folder in self.cpu.folders)  # no root's

    def cpus(self) -> frozenset[int] | None:
        """CPUs that the group may use; None if it does not say."""
        names = (
            ("cpuset.cpus.effective",)
            if self.cpuset.v2
            else ("cpuset.effective_cpus", "cpuset.cpus")
        )
        for folder in self.cpuset.folders:  # the nearest that has the controller enabled
            for name in names:
                cpus = cpulist.parse(tree.text(folder / name))
                if cpus:
                    return cpus
        return None

    def memory_limit(self) -> int | None:
        """Bytes that the group may hold; None without a limit."""
        limits = [_memory_limit(folder, self.memory.v2) for folder in self.memory.folders]
        return min((limit for limit in limits if limit is not None), default=None)

    def memory_available(self) -> int | None:
        """Bytes that the group can still take, page cache counted as free like the kernel's
        MemAvailable does; None without a limit."""
        left = [_memory_left(folder, self.memory.v2) for folder in self.memory.folders]
        return min((rest for rest in left if rest is not None), default=None)

    def oom_kills(self) -> int | None:
        """Processes of the group that the kernel has ever ended for want of memory; None if it does
        not say. (v1 counts since Linux 4.13.)"""
        name = "memory.events" if self.memory.v2 else "memory.oom_control"
        for folder in self.memory.folders:  # the nearest that has the controller enabled
            for line in (tree.text(folder / name) or "").splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill" and value.isdecimal():
                    return int(value)
        return None

    def ends_whole(self) -> bool:
        """Whether the kernel, where memory runs out, ends every process of a group that this one is
        in at once (v2's memory.oom.group; Kubernetes sets it)."""
        folders = self.memory.folders if self.memory.v2 else ()
        return any(tree.integer(folder / "memory.oom.group") == 1 for folder in folders)


def locate(roots: Roots) -> Cgroup:
    """Find this process's control groups through /proc/self/cgroup and the mounts."""
    paths = _own_paths(roots)
    mounts = _mounts(roots)

    def hierarchy(controller: str) -> Hierarchy:
        for v2, name in ((False, controller), (True, "")):
            if name in mounts and name in paths:
                root, mount = mounts[name]
                return Hierarchy(v2, _upwards(mount, root, paths[name]), paths[name])
        return Hierarchy()

    return Cgroup(hierarchy("cpu"), hierarchy("cpuset"), hierarchy("memory"))


def _own_paths(roots: Roots) -> dict[str, str]:
    """Path in each v1 controller's hierarchy, and in the v2 one under the name ""."""
    paths: dict[str, str] = {}
    for line in (tree.text(roots.procfs / "self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                paths[controller] = parts[2]
    return paths


def _mounts(roots: Roots) -> dict[str, tuple[str, Path]]:
    """(root inside the hierarchy, mount point) of each v1 controller, and of v2 under ""."""
    mounts: dict[str, tuple[str, Path]] = {}
    for line in (tree.text(roots.procfs / "self/mountinfo") or "").splitlines():
        before, dash, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if not dash or len(left) < 5 or len(right) < 3 or right[0] not in ("cgroup", "cgroup2"):
            continue
        point = _relocate(left[4], roots)
        if point is None:
            continue
        names = [""] if right[0] == "cgroup2" else right[2].split(",")
        for name in names:
            mounts.setdefault(name, (left[3], point))
    return mounts


def _relocate(mount_point: str, roots: Roots) -> Path | None:
    """A mount point as seen from the roots; None if it lies outside of a tree that was given."""
    # White space and backslashes are written as octal numbers, everything else as it is.
    path = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mount_point))
    if path.is_relative_to("/sys"):
        return roots.sysfs / path.relative_to("/sys")
    return path if roots.sysfs == Path("/sys") else None


def _upwards(mount: Path, root: str, path: str) -> tuple[Path, ...]:
    """The existing folders from the group's own up to the mount point.

    Without a cgroup namespace a container sees the host's path (/docker/x) and a mount whose
    root is that same path; a path outside of the mounted part shows as the mount point alone.
    """
    inside = os.path.relpath(path, root)
    if inside == "." or inside.startswith(".."):
        return (mount,)
    folders = [mount / inside, *(mount / inside).parents]
    upto = folders[: folders.index(mount) + 1]
    return tuple(folder for folder in upto if folder.is_dir()) or (mount,)


def _quota(folder: Path, v2: bool) -> float | None:
    if v2:
        words = (tree.text(folder / "cpu.max") or "").split()
        quota, period = [*words, "", ""][:2]
        if not (quota.isdecimal() and period.isdecimal()):
            return None  # absent, or "max 100000"
        return int(quota) / int(period) if int(period) and int(quota) else None
    quota_us = tree.integer(folder / "cpu.cfs_quota_us")
    period_us = tree.integer(folder / "cpu.cfs_period_us")
    if quota_us is None or quota_us <= 0 or not period_us:
        return None  # -1 is no quota
    return quota_us / period_us


def _memory_limit(folder: Path, v2: bool) -> int | None:
    # memory.high counts as well: over it the kernel slows the group down to a crawl.
    names = ("memory.max", "memory.high") if v2 else ("memory.limit_in_bytes",)
    limits = [tree.integer(folder / name) for name in names]  # "max" is not a number
    return min((n for n in limits if n is not None and 0 < n < _NO_LIMIT), default=None)


def _memory_left(folder: Path, v2: bool) -> int | None:
    limit = _memory_limit(folder, v2)
    used = tree.integer(folder / ("memory.current" if v2 else "memory.usage_in_bytes"))
    if limit is None or used is None:
        return None
    wanted = {"inactive_file", "active_file"}
    wanted = wanted if v2 else {f"total_{name}" for name in wanted}
    cache = 0
    for line in (tree.text(folder / "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name in wanted and value.isdecimal():
            cache += int(value)
    return min(limit, max(0, limit - max(0, used - cache)))
