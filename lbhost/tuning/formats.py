"""Weight formats that a model may be rewritten to, and which of the measured ones to take. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lbhost.tuning.shapes import Speeds

WIN = 1.05
"""So many times as fast a change must be: the model's own file and settings are the default."""


class Format(msgspec.Struct, frozen=True):
    """A weight format of llama.cpp."""

    name: str
    number: int
    """llama.cpp's `llama_ftype`."""
    bits: float
    """Of a weight, with its scales."""


FORMATS = (
    Format("Q8_0", 7, 8.5),
    Format("Q4_0", 2, 4.5),
    Format("Q4_K_M", 15, 4.85),
    Format("IQ4_NL", 25, 4.5),
)
"""Those for which llama.cpp has fast code on CPUs."""

FOR_VECTORS = (Format("BF16", 32, 16), FORMATS[0])
"""Those that are tried on embedding models, which only ever compute many tokens at once: what
counts is how fast a core multiplies, and not how soon it has the weights."""


def worth_trying(
    original: int, parameters: int, weights_bytes: int, *, generates: bool = True
) -> list[Format]:
    """Other formats than the original's, none of which makes a model much larger.

    Args:
        original: the file's own `llama_ftype`.
        generates: whether the model does, and does not embed.
    """
    return [
        format_
        for format_ in (FORMATS if generates else FOR_VECTORS)
        if format_.number != original and size(format_, parameters) < 2.5 * weights_bytes
    ]


def size(format_: Format, parameters: int) -> int:
    """Bytes that a file of this format has, roughly: some tensors keep more bits."""
    return int(1.2 * format_.bits * parameters / 8)


def gain(changed: Sequence[Speeds], before: Sequence[Speeds]) -> float:
    """How many times as fast a change made it: the lower middle of the paired ratios."""
    pairs = zip(changed, before, strict=True)
    ratios = sorted(a.requests_s / b.requests_s if b.requests_s else 0.0 for a, b in pairs)
    return ratios[(len(ratios) - 1) // 2] if ratios else 0.0
