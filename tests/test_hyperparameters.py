"""Which numbers of a model's header are refused."""

from __future__ import annotations

import math

import pytest

from lbhost.hyperparameters import problem


class Said:
    """A header that says one thing."""

    def __init__(self, key: str, value: float) -> None:
        self._key, self._value = key, value

    def number(self, key: str) -> int | None:
        whole = isinstance(self._value, int) and key == self._key
        return int(self._value) if whole else None

    def real(self, key: str) -> float | None:
        real = isinstance(self._value, float) and key == self._key
        return self._value if real else None


RMS, BASE = "attention.layer_norm_rms_epsilon", "rope.freq_base"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),
        ("embedding_length", 0),
        (RMS, math.nan),
        (RMS, math.inf),
        (RMS, -1e-5),
        ("attention.layer_norm_epsilon", math.nan),
        (BASE, 0.0),
        (BASE, -1.0),
        (BASE, math.nan),
        (BASE, math.inf),
    ],
)
def test_what_cannot_be_is_named_with_its_value(key: str, value: float) -> None:
    assert problem(Said(f"llama.{key}", value), "llama") == f"llama.{key} is {value:g}"


@pytest.mark.parametrize(
    ("key", "value"), [("block_count", 1), (RMS, 0.0), (RMS, 1e-5), (BASE, 1e11), ("none", 0)]
)
def test_what_may_be_passes(key: str, value: float) -> None:
    assert problem(Said(f"llama.{key}", value), "llama") is None


def test_another_architectures_numbers_are_not_looked_at() -> None:
    assert problem(Said("llama.block_count", 0), "qwen2") is None
