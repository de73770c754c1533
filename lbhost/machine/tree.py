"""Where /sys and /proc are, and one-shot reads of their little files.

All hardware code reads through `Roots`, so that LBHOST_SYSFS_ROOT and LBHOST_PROCFS_ROOT can
show it another machine. A file that is missing or unreadable is None here, never an error:
which files exist differs from machine to machine.

Sensors are opened once and read through the open descriptor: whoever changes a file of a
simulated tree under a running server writes it in place, as `echo 90000 > temp1_input` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from lbhost.errors import UsageError


class Roots(msgspec.Struct, frozen=True):
    """The two trees that the kernel's readings come from."""

    sysfs: Path = Path("/sys")
    procfs: Path = Path("/proc")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Roots:
        """The trees that the environment asks for, by default the machine's own.

        Raises:
            UsageError: a variable names something that is not a folder.
        """
        roots = cls()
        return cls(
            sysfs=_folder(environ, "LBHOST_SYSFS_ROOT", roots.sysfs),
            procfs=_folder(environ, "LBHOST_PROCFS_ROOT", roots.procfs),
        )

    @property
    def cpus(self) -> Path:
        """The folder that holds cpu0, cpu1, …"""
        return self.sysfs / "devices/system/cpu"

    def node_cpus(self, node: int) -> Path:
        """The file that lists a NUMA node's CPUs."""
        return self.sysfs / f"devices/system/node/node{node}/cpulist"


def _folder(environ: Mapping[str, str], name: str, default: Path) -> Path:
    path = Path(environ.get(name) or default)
    if not path.is_dir():
        raise UsageError(f"{name}: {path}: no such folder")
    return path


def text(path: Path) -> str | None:
    """The file's text without surrounding white space; None if it cannot be read."""
    try:
        return path.read_bytes().decode(errors="replace").strip()
    except OSError:
        return None


def integer(path: Path) -> int | None:
    """The file's one decimal number; None if it cannot be read or is something else."""
    value = text(path)
    try:
        return None if value is None else int(value)
    except ValueError:
        return None


def numbered(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    """Entries `prefix<number>` of a folder (cpu0, hwmon3, …), in the order of the numbers."""
    try:
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return []
    found = [
        (int(name[len(prefix) :]), folder / name)
        for name in names
        if name.startswith(prefix) and name[len(prefix) :].isdecimal()
    ]
    return sorted(found)
