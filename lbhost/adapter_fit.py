"""Whether a LoRA adapter's file fits a model, by what their headers say, before llama.cpp reads it.

What llama.cpp refuses when it loads one is found here sooner, and what it would end the process for
when it computes is found at all. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from lbhost.gguf import Tensor

_A, _B = b".lora_a", b".lora_b"
_IGNORED = b"_norm.weight"
"""What llama.cpp passes over in an adapter."""
_TOKENS = b"token_embd.weight"
"""Its rows are looked up: there the first matrix has a row a token."""
FORMATS = {0: "F32", 1: "F16", 8: "Q8_0", 30: "BF16"}
"""That adapters are written in, of `enum ggml_type`."""

Shapes = Mapping[bytes, tuple[int, ...]]


class Header(msgspec.Struct, frozen=True):
    """What an adapter's file says of itself. None: nothing, or not in the type that it should."""

    kind: str | None
    """general.type"""
    adapter: str | None
    """adapter.type"""
    architecture: str | None
    alpha: float | None
    """adapter.lora.alpha"""
    says_alpha: bool
    activated: bool
    """Whether it is to work from certain tokens on only (aLoRA)."""


def problem(
    header: Header, tensors: Sequence[Tensor], architecture: str, model: Shapes
) -> str | None:
    """Why the adapter is of no use; None: it fits.

    Args:
        architecture: the model's.
        model: the shapes of the model's tensors by name.
    """
    if header.kind != "adapter" or header.adapter != "lora":
        return f"it is no LoRA adapter: general.type is {header.kind!r}" + (
            f", adapter.type {header.adapter!r}" if header.kind == "adapter" else ""
        )
    if header.architecture != architecture:
        return f"it is for another model: for {header.architecture!r}, and this is {architecture!r}"
    if header.says_alpha and (header.alpha is None or not math.isfinite(header.alpha)):
        return "adapter.lora.alpha is no finite float32"
    if header.activated:
        return "it is an activated one (aLoRA), which is not supported"
    return _problem_of_tensors({tensor.name: tensor for tensor in tensors}, model)


def _problem_of_tensors(tensors: Mapping[bytes, Tensor], model: Shapes) -> str | None:
    pairs = {name[: -len(_A)] for name in tensors if name.endswith((_A, _B))}
    for name, tensor in tensors.items():
        if not name.endswith((_A, _B, _IGNORED)):
            return f"its tensor {_shown(name)} is no part of a LoRA adapter"
        if tensor.kind not in FORMATS:
            return f"its tensor {_shown(name)} is in none of {', '.join(FORMATS.values())}"
    if not pairs:
        return "it changes nothing: it has no tensors"
    for name in sorted(pairs):
        a, b = tensors.get(name + _A), tensors.get(name + _B)
        if a is None or b is None:
            return f"half of its pair for {_shown(name)} is missing"
        if name not in model:
            return f"it is for another model: this one has no tensor {_shown(name)}"
        of_a, of_b, own = (_four(one) for one in (a.dimensions, b.dimensions, model[name]))
        if not _fits(of_a, of_b, own, tokens=name.endswith(_TOKENS)):
            return (
                f"it is for another model: {_shown(name)} is {_text(own)} here, and its matrices "
                f"are {_text(of_a)} and {_text(of_b)}"
            )
    return None


def _fits(a: Sequence[int], b: Sequence[int], own: Sequence[int], *, tokens: bool) -> bool:
    """Whether the product of both matrices has the shape of what it is added to."""
    if a[2:] != own[2:] or b[2:] != own[2:]:
        return False
    if tokens:
        return own[0] == b[1] and own[1] == a[1] and a[0] == b[0]
    return own[0] == a[0] and own[1] == b[1] and a[1] == b[0]


def _four(dimensions: Sequence[int]) -> tuple[int, ...]:
    return (*dimensions, 1, 1, 1, 1)[:4]


def _text(dimensions: Sequence[int]) -> str:
    shown = [str(length) for length in dimensions]
    while len(shown) > 2 and shown[-1] == "1":
        shown.pop()
    return " x ".join(shown)


def _shown(name: bytes) -> str:
    text = name[:80].decode(errors="replace")
    return "".join(char if char.isprintable() else "?" for char in text)
