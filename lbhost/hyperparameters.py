"""Numbers in a model's header with which every answer would be nonsense, or none could be computed.

Pure; only of those that llama.cpp takes as they are. What a file does not say is its matter.
"""

from __future__ import annotations

import math
from typing import Protocol

_COUNTS = ("block_count", "embedding_length")
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
_BASES = ("rope.freq_base",)


class Header(Protocol):
    """See GgufFile."""

    def number(self, key: str) -> int | None: ...
    def real(self, key: str) -> float | None: ...


def problem(header: Header, architecture: str) -> str | None:
    """The first number that cannot be; None: there is none."""
    for key in (f"{architecture}.{name}" for name in _COUNTS):
        if header.number(key) == 0:
            return f"{key} is 0"
    for key in (f"{architecture}.{name}" for name in _EPSILONS):
        found = header.real(key)
        if found is not None and not 0 <= found < math.inf:
            return f"{key} is {found:g}"
    for key in (f"{architecture}.{name}" for name in _BASES):
        found = header.real(key)
        if found is not None and not 0 < found < math.inf:
            return f"{key} is {found:g}"
    return None
