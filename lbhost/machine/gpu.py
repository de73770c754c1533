"""NVIDIA GPUs through NVML. The only file that imports pynvml (package nvidia-ml-py).

No NVML library, no driver or no card means no GPUs, never an error. A card that stops
answering reads as unknown. Owns no policy: what a clock limit means is share.py's matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from lbhost.board import GpuRow
from lbhost.machine import tree
from lbhost.machine.tree import Roots


class GpuInfo(msgspec.Struct, frozen=True):
    """What does not change about a GPU."""

    index: int
    """Index of its board row."""
    uuid: str
    name: str
    memory_total: int | None = None
    """Bytes."""
    node: int | None = None
    """NUMA node that it hangs on."""


class Gpus(Protocol):
    """Something that knows the cards and tells how they are."""

    gpus: tuple[GpuInfo, ...]

    def read(self, index: int) -> GpuRow:
        """The card's row. What is not known is None."""

    def close(self) -> None:
        """Let go of the driver. Safe to call twice."""


class GpuReader:
    """Reads all cards of the box. `gpus` is empty where there are none."""

    def __init__(
        self, roots: Roots, nvml: Any = None, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """Start NVML.

        Args:
            roots: for the NUMA node of each card.
            nvml: a module with pynvml's functions; default: pynvml itself.
            clock_ns: CLOCK_MONOTONIC.
        """
        self._clock_ns = clock_ns
        self._handles: list[Any] = []
        self._open = False
        if nvml is None:
            # Imported late: it costs 20 ms, and only the supervisor reads GPUs.
            import pynvml

            nvml = pynvml
        self._nvml = nvml
        self.gpus: tuple[GpuInfo, ...] = self._find(roots)

    def _find(self, roots: Roots) -> tuple[GpuInfo, ...]:
        nvml = self._nvml
        try:
            nvml.nvmlInit()
            self._open = True
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError:
            return ()
        found: list[GpuInfo] = []
        for number in range(count):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(number)
                uuid = _as_text(nvml.nvmlDeviceGetUUID(handle))
            except nvml.NVMLError:
                continue  # a card that fell off the bus: without a UUID it cannot be used
            memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
            pci = self._ask("nvmlDeviceGetPciInfo", handle)
            self._handles.append(handle)
            found.append(
                GpuInfo(
                    index=len(found),
                    uuid=uuid,
                    name=_as_text(self._ask("nvmlDeviceGetName", handle) or "GPU"),
                    memory_total=None if memory is None else int(memory.total),
                    node=None if pci is None else _node(roots, _as_text(pci.busId)),
                )
            )
        return tuple(found)

    def read(self, index: int) -> GpuRow:
        """The card's row as of now. What it does not tell is unknown."""
        nvml, info, handle = self._nvml, self.gpus[index], self._handles[index]
        use = self._ask("nvmlDeviceGetUtilizationRates", handle)
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle)
        temp = self._ask("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU)
        # The name changed in driver 535; nvidia-ml-py keeps the old one for old drivers.
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if reasons is None:
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        if use is None and memory is None and temp is None:
            self._reopen(index)
        return GpuRow(
            sampled_ns=self._clock_ns(),
            uuid=info.uuid,
            name=info.name,
            utilisation=None if use is None else min(1.0, use.gpu / 100),
            memory_used=None if memory is None else float(memory.used),
            memory_total=None if memory is None else float(memory.total),
            temp_c=float(temp) if temp is not None and 0 < temp <= 150 else None,
            clock_limit="" if reasons is None else clock_limit(nvml, int(reasons)),
        )

    def close(self) -> None:
        """Let go of the driver. Safe to call twice."""
        if self._open:
            self._open = False
            self._ask("nvmlShutdown")

    def _ask(self, function: str, *arguments: Any) -> Any:
        """One NVML call; None when the card, the driver or this NVML does not answer it."""
        call = getattr(self._nvml, function, None)
        try:
            return None if call is None else call(*arguments)
        except self._nvml.NVMLError:
            return None

    def _reopen(self, index: int) -> None:
        """After a driver reset the old handle stays dead: get a new one for the next read."""
        handle = self._ask("nvmlDeviceGetHandleByUUID", self.gpus[index].uuid)
        if handle is not None:
            self._handles[index] = handle


def clock_limit(nvml: Any, reasons: int) -> str:
    """What holds the clocks down, from NVML's bits: "thermal", "power", "brake", "slowdown".

    Idling and clocks that someone set on purpose are no limits.
    """
    words = {
        "thermal": ("SwThermalSlowdown", "HwThermalSlowdown"),
        "power": ("SwPowerCap",),
        "brake": ("HwPowerBrakeSlowdown",),
        "slowdown": ("HwSlowdown",),
    }
    return ",".join(
        word
        for word, bits in words.items()
        if any(reasons & getattr(nvml, f"nvmlClocksThrottleReason{bit}", 0) for bit in bits)
    )


def visible(gpus: Sequence[GpuInfo], environ: Mapping[str, str]) -> tuple[GpuInfo, ...]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves to this process; all when it is not set.

    Like CUDA, stops at the first entry that names no card. Numbers are taken in PCI order.
    """
    wanted = environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return tuple(gpus)
    chosen: list[GpuInfo] = []
    for entry in (part.strip() for part in wanted.split(",")):
        match = [
            gpu
            for gpu in gpus
            if (entry.isdecimal() and gpu.index == int(entry))
            or (entry.startswith("GPU-") and gpu.uuid.startswith(entry))
        ]
        if len(match) != 1 or match[0] in chosen:
            break
        chosen += match
    return tuple(chosen)


def _as_text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _node(roots: Roots, bus_id: str) -> int | None:
    """NUMA node of a PCI device: NVML writes the domain with 8 digits, /sys with 4."""
    domain, _, rest = bus_id.lower().partition(":")
    path = Path("bus/pci/devices", f"{domain[-4:]}:{rest}", "numa_node")
    node = tree.integer(roots.sysfs / path)
    return node if node is not None and node >= 0 else None
