"""What rewritten weights lose is measured in nats a token."""

from __future__ import annotations

import math
from pathlib import Path

import numpy
import pytest

from lbhost import model
from lbhost.errors import TuningError
from lbhost.llama import Model
from lbhost.tuning import quality


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
