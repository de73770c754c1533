"""What more threads bring a worker."""

from __future__ import annotations

import msgspec


class WidthGain(msgspec.Struct, frozen=True):
    """How many times as fast a worker of so many threads is as one that has only its own."""

    threads: int
    prefill: float
    decode: float
