"""What rewritten weights lose is measured in nats a token."""

from __future__ import annotations

import math
from pathlib import Path

import numpy
import pytest

import tiny_bert
from lbhost import model
from lbhost.errors import TuningError
from lbhost.llama import Model
from lbhost.purpose import Pooling
from lbhost.tuning import quality, vector_quality


def test_divergence_is_that_of_the_textbook() -> None:
    """KL((3/4, 1/4) || (1/2, 1/2)), from logits with any offset."""
    reference = numpy.log(numpy.array([0.75, 0.25], numpy.float32)) + numpy.float32(5)
    changed = numpy.zeros(2, numpy.float32)
    wanted = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert quality.divergence(reference, changed) == pytest.approx(wanted, abs=1e-6)
    assert quality.divergence(changed, changed) == 0


def test_the_text_is_long_enough_for_its_tokens() -> None:
    text = (Path(quality.__file__).parent / "text.txt").read_text(encoding="utf-8")
    assert len(text.split()) > quality.TOKENS


@pytest.mark.e2e
def test_a_model_loses_nothing_against_itself(tmp_path: Path) -> None:
    path = tmp_path / "logits"
    loaded = Model(model.resolve("starter").path)
    try:
        assert quality.keep(loaded, path) == quality.TOKENS
        assert quality.compare(loaded, path) == (0.0, 1.0)
        with path.open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(TuningError, match="another vocabulary"):
            quality.compare(loaded, path)
    finally:
        loaded.close()


# --- vectors ----------------------------------------------------------------------------


def test_vectors_lose_what_they_turn_by() -> None:
    """A third of a right angle, once in four."""
    before = numpy.eye(4, 8, dtype=numpy.float32)
    changed = before.copy()
    changed[0, 0], changed[0, 7] = math.cos(math.pi / 6), math.sin(math.pi / 6)
    lost, agreement = vector_quality.turned(before, changed)
    assert lost == pytest.approx((1 - math.cos(math.pi / 6)) / 4, abs=1e-6)
    assert agreement == 1.0
    assert vector_quality.turned(before, before) == (0.0, 1.0)


def test_vectors_whose_nearest_is_another_one_do_not_agree() -> None:
    angles = numpy.array([0.0, 0.1, 0.3, 2.0])
    moved = numpy.array([0.0, 0.25, 0.3, 2.0])
    before, changed = (
        numpy.stack([numpy.cos(a), numpy.sin(a)], axis=1).astype(numpy.float32)
        for a in (angles, moved)
    )
    _, agreement = vector_quality.turned(before, changed)
    assert agreement == 0.75, "the second's nearest was the first and is the third"


def test_vectors_that_are_no_numbers_are_refused() -> None:
    one = numpy.eye(2, dtype=numpy.float32)
    with pytest.raises(TuningError, match="no numbers"):
        vector_quality.turned(one, numpy.full_like(one, numpy.nan))


def test_an_embedding_model_loses_nothing_against_itself(tmp_path: Path) -> None:
    path = tmp_path / "vectors"
    loaded = Model(tiny_bert.write(tmp_path / "tiny.gguf"))
    try:
        assert vector_quality.keep(loaded, Pooling.MEAN, path) > 8
        lost, agreement = vector_quality.compare(loaded, Pooling.MEAN, path)
        assert lost == pytest.approx(0.0, abs=1e-6)
        assert agreement == 1.0
        with path.open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(TuningError, match="another width"):
            vector_quality.compare(loaded, Pooling.MEAN, path)
    finally:
        loaded.close()
