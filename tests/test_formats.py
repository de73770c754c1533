"""Which weight formats are tried, and what counts as a gain."""

from __future__ import annotations

from lbhost.tuning import formats
from lbhost.tuning.formats import FORMATS, gain, size, worth_trying
from lbhost.tuning.shapes import Speeds

MILLION = 1_000_000


def fast(factor: float) -> Speeds:
    return Speeds(300 * factor, 100 * factor)


def test_a_format_is_not_tried_on_itself() -> None:
    for known in FORMATS:
        tried = worth_trying(known.number, 100 * MILLION, 100 * MILLION)
        assert known not in tried
        assert len(tried) == len(FORMATS) - 1


def test_nothing_that_makes_a_model_much_larger_is_tried() -> None:
    tried = worth_trying(original=10, parameters=100 * MILLION, weights_bytes=30 * MILLION)
    assert "Q8_0" not in [format_.name for format_ in tried]
    assert tried


def test_only_formats_that_multiply_fast_are_tried_on_what_embeds() -> None:
    q8_0 = worth_trying(7, 20 * MILLION, 25 * MILLION, generates=False)
    assert [format_.name for format_ in q8_0] == ["BF16"]
    f32 = worth_trying(0, 20 * MILLION, 80 * MILLION, generates=False)
    assert [format_.name for format_ in f32] == ["BF16", "Q8_0"]


def test_a_size_is_not_less_than_the_bits_say() -> None:
    for known in FORMATS:
        assert size(known, 8 * MILLION) >= known.bits * MILLION


def test_a_gain_is_paired_and_one_lucky_round_is_none() -> None:
    assert gain([fast(1.2), fast(0.6)], [fast(1.0), fast(0.5)]) > 1.19
    assert gain([fast(3.0), fast(1.0)], [fast(1.0), fast(1.0)]) < formats.WIN


def test_what_only_embeds_gains_by_its_prefill() -> None:
    assert gain([Speeds(600, None)], [Speeds(300, None)]) == 2.0


def test_what_cannot_be_measured_gains_nothing() -> None:
    assert gain([fast(1)], [Speeds(0, 0)]) == 0
    assert gain([], []) == 0
