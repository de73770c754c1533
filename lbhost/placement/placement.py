"""Where one worker runs. Data only."""

from __future__ import annotations

import msgspec


class Placement(msgspec.Struct, frozen=True):
    """Where a worker runs."""

    cpus: tuple[int, ...]
    """Logical CPUs to pin to."""
    threads: int
    gpu: int | None = None
    """Index of the GPU's board row; None for a CPU worker."""
    gpu_uuid: str | None = None
    """What CUDA_VISIBLE_DEVICES gets."""
    node: int | None = None
    """The NUMA node of all its CPUs; None on a box of one node, or where they span several."""
