"""The kernel's notation for sets of CPUs: "0-3,8". Pure."""

from __future__ import annotations

from collections.abc import Iterable

_LIMIT = 1 << 16
"""No CPU number is larger: keeps a garbled file from becoming a huge set."""


def parse(text: str | None) -> frozenset[int] | None:
    """The CPUs of a list; None if the text is not one. The empty text is the empty set."""
    if text is None:
        return None
    cpus: set[int] = set()
    for part in text.replace("\n", ",").split(","):
        if not part.strip():
            continue
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            return None
        low, high = int(first), int(last if dash else first)
        if high >= _LIMIT:
            return None
        cpus.update(range(low, high + 1))
    return frozenset(cpus)


def render(cpus: Iterable[int]) -> str:
    """The shortest list of these CPUs."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in runs)
