"""NVML in a thread of its own, because a driver that hangs hangs whoever asks it.

Owns the thread, which alone makes NVML calls and ends at once where there is no card. Readers get
the last reading and never wait. A thread is safe here: the supervisor and the doctor never fork
without exec (between the two run nothing but prctl and signal), and this thread starts no process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from lbhost.board import GpuRow
from lbhost.machine.gpu import GpuInfo, GpuReader
from lbhost.machine.tree import Roots

READ_EVERY_S = 1.0
STALE_NS = 5_000_000_000
"""A reading older than this tells nothing any more: its driver hangs."""
FIND_LIMIT_S = 20.0
"""So long the driver may take to start: seconds where it is not kept loaded."""
_END_LIMIT_S = 1.0


class GpuWatch:
    """The cards of the box as last read. `gpus` is empty where there are none."""

    def __init__(
        self,
        roots: Roots,
        nvml: Any = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        find_limit_s: float = FIND_LIMIT_S,
    ) -> None:
        """Find the cards and read each once, within find_limit_s.

        Args:
            find_limit_s: a driver that does not answer by then has no cards.
        """
        self._roots = roots
        self._nvml = nvml
        self._clock_ns = clock_ns
        self._rows: dict[int, GpuRow] = {}
        self._found: tuple[GpuInfo, ...] = ()
        self._ready = threading.Event()
        self._stop = threading.Event()
        # A daemon: one that hangs in the driver must not keep the process from ending.
        self._thread = threading.Thread(target=self._watch, name="lbhost nvml", daemon=True)
        self._thread.start()
        self.answered = self._ready.wait(find_limit_s)
        """Whether the driver said in time which cards there are."""
        self.gpus: tuple[GpuInfo, ...] = self._found if self.answered else ()

    def read(self, index: int) -> GpuRow:
        """The card's last reading; unknown when that is older than STALE_NS."""
        row = self._rows.get(index)
        if row is not None and self._clock_ns() - row.sampled_ns <= STALE_NS:
            return row
        info = self.gpus[index]
        at_ns = 0 if row is None else row.sampled_ns
        return GpuRow(sampled_ns=at_ns, uuid=info.uuid, name=info.name)

    def close(self) -> None:
        """Let go of the driver, unless it hangs. Safe to call twice."""
        self._stop.set()
        self._thread.join(_END_LIMIT_S)

    def _watch(self) -> None:
        try:
            reader = GpuReader(self._roots, self._nvml, self._clock_ns)
            self._found = reader.gpus
            while self._found and not self._stop.is_set():
                for gpu in self._found:
                    self._rows[gpu.index] = reader.read(gpu.index)
                self._ready.set()
                self._stop.wait(READ_EVERY_S)
            reader.close()
        finally:
            self._ready.set()
