"""What a measurement holds for: this model, on this box, with this build of llama.cpp.

If any of it changes, what was measured is not found any more, and that is all that happens.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lbhost import llama
from lbhost.machine import tree
from lbhost.machine.topology import Topology
from lbhost.machine.tree import Roots
from lbhost.weights import FilePart


class Identity(msgspec.Struct, frozen=True):
    """Equal where a measurement holds."""

    model: tuple[tuple[str, int, int], ...]
    """Of every file: name, bytes, modification time in nanoseconds."""
    cpu: str
    """The CPU's name."""
    cores: tuple[str, ...]
    """Those that may be used: node and kind of each."""
    at_once: int
    """Of which so many may run at once."""
    build: str
    """llama.cpp's own description, and the version of the package."""
    slots: int

    @property
    def key(self) -> str:
        """A file's name for it."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:32]


def of(parts: Sequence[FilePart], box: Topology, roots: Roots, slots: int) -> Identity:
    """What identifies the present case."""
    return Identity(
        model=tuple((Path(part.path).name, part.size, part.mtime_ns) for part in parts),
        cpu=_cpu(roots),
        cores=tuple(f"node {core.node} {core.kind}" for core in box.usable),
        at_once=box.effective_cores,
        build=f"{importlib.metadata.version('llama-cpp-python')}: {llama.system_info()}",
        slots=slots,
    )


def _cpu(roots: Roots) -> str:
    """The CPU's name in /proc/cpuinfo; on ARM its part numbers stand for one."""
    lines = (tree.text(roots.procfs / "cpuinfo") or "").splitlines()
    pairs = [line.partition(":") for line in lines]
    wanted = {"model name", "cpu model", "CPU implementer", "CPU part"}
    return ", ".join(dict.fromkeys(v.strip() for k, _, v in pairs if k.strip() in wanted))
