"""When flash attention pays on a CPU, and how a build that spoils it is recognised."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from lbhost import flash


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    flash.uses_fp16_vectors.cache_clear()
    yield
    flash.uses_fp16_vectors.cache_clear()


def build_whose_sums_are(monkeypatch: pytest.MonkeyPatch, total: float) -> None:
    def dot(n: int, result: Any, *_rest: Any) -> None:
        assert n == 128
        ctypes.cast(result, ctypes.POINTER(ctypes.c_float))[0] = total

    monkeypatch.setattr(flash, "ggml", lambda *_signature: dot)


def test_sums_in_half_precision_give_the_build_away(monkeypatch: pytest.MonkeyPatch) -> None:
    build_whose_sums_are(monkeypatch, float("inf"))
    assert flash.uses_fp16_vectors()
    assert not flash.pays(64)
    assert not flash.pays(96)
    assert flash.pays(128)


def test_other_builds_take_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    build_whose_sums_are(monkeypatch, 128 * 256.0 * 256.0)
    assert not flash.uses_fp16_vectors()
    assert flash.pays(64)


def test_a_build_that_hides_its_kernels_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(*_signature: Any) -> None:
        raise AttributeError("undefined symbol")

    monkeypatch.setattr(flash, "ggml", hidden)
    assert flash.pays(64)


def test_ggml_is_called_as_it_wants_to_be() -> None:
    half_of_1 = 0x3C00
    assert flash._sum_of_squares(half_of_1) == 128.0
