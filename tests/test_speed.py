"""The speed meter finds the speeds that made the steps."""

from __future__ import annotations

import random

import pytest

from lbhost.worker.batch import Speeds
from lbhost.worker.speed import CHUNK_BASE, SpeedMeter


def test_nothing_is_known_before_the_first_step() -> None:
    assert SpeedMeter().speeds == Speeds(None, None, None, None, CHUNK_BASE)


def test_decode_speed_is_fitted_over_batch_sizes() -> None:
    meter = SpeedMeter()
    for n in (1, 2, 4, 3, 1, 4) * 5:
        meter.observe(n, 0, 0.004 + n * 0.006)
    assert meter.speeds.step_base_s == pytest.approx(0.004, rel=1e-3)
    assert meter.speeds.step_seq_s == pytest.approx(0.006, rel=1e-3)


def test_what_a_sequence_costs_does_not_follow_the_noise() -> None:
    rng = random.Random(7)
    meter = SpeedMeter()
    found = []
    for step in range(600):
        n = 3 + (step // 10) % 2
        meter.observe(n, 0, (0.022 + n * 0.003) * rng.uniform(0.9, 1.1))
        found.append(meter.speeds.step_seq_s or 0.0)
    assert all(0.002 < seq_s < 0.0045 for seq_s in found[100:])


def test_a_step_follows_a_slower_box_at_once() -> None:
    meter = SpeedMeter()
    for step in range(200):
        n = 1 + step % 4
        meter.observe(n, 0, 0.004 + n * 0.006)
    for step in range(60):
        n = 1 + step % 4
        meter.observe(n, 0, 2 * (0.004 + n * 0.006))
    assert meter.speeds.decode_s(3) == pytest.approx(2 * 0.022, rel=0.1)


def test_one_batch_size_alone_still_predicts_itself() -> None:
    meter = SpeedMeter()
    for _ in range(5):
        meter.observe(2, 0, 0.02)
    assert meter.speeds.decode_s(2) == pytest.approx(0.02)
    assert meter.speeds.decode_s(8) == pytest.approx(0.02 * (0.3 + 0.7 * 8) / (0.3 + 0.7 * 2))


def test_prefill_speed_leaves_out_the_decodes_that_ran_along() -> None:
    meter = SpeedMeter()
    for n in (1, 2, 3, 4) * 5:
        meter.observe(n, 0, 0.004 + n * 0.006)
    meter.observe(4, 64, 0.028 + 64 / 400)
    assert meter.speeds.prefill_tok_s == pytest.approx(400, rel=0.01)


def test_it_follows_a_change() -> None:
    meter = SpeedMeter()
    for speed in [400.0] * 10 + [100.0] * 30:
        meter.observe(0, 128, 128 / speed)
    assert meter.speeds.prefill_tok_s == pytest.approx(100, rel=0.01)


def test_a_step_without_cpu_time_teaches_nothing() -> None:
    meter = SpeedMeter()
    meter.observe(1, 0, 0.0)
    assert meter.speeds == Speeds(None, None, None, None, CHUNK_BASE)


def test_what_a_chunk_costs_as_such_is_found_from_chunks_of_different_sizes() -> None:
    meter = SpeedMeter()
    for n in (16, 64, 128, 32, 16, 64) * 40:
        meter.observe(0, n, (n + 12) / 400)
    assert meter.speeds.chunk_base == pytest.approx(12, rel=0.02)
    assert meter.speeds.chunk_tok_s == pytest.approx(400, rel=0.02)
    assert meter.speeds.chunk_s(48) == pytest.approx(60 / 400, rel=0.02)


def test_chunks_of_one_size_predict_themselves() -> None:
    meter = SpeedMeter()
    for _ in range(20):
        meter.observe(0, 64, 0.2)
    assert meter.speeds.chunk_base == CHUNK_BASE
    assert meter.speeds.chunk_s(64) == pytest.approx(0.2)


def test_what_was_found_of_chunks_is_kept_while_all_are_alike() -> None:
    meter = SpeedMeter()
    for n in (16, 64) * 100:
        meter.observe(0, n, (n + 12) / 400)
    for _ in range(2000):
        meter.observe(0, 16, (16 + 12) / 200)
    assert meter.speeds.chunk_s(16) == pytest.approx(28 / 200, rel=0.01)
    assert meter.speeds.chunk_s(64) == pytest.approx(76 / 200, rel=0.15)


def test_a_noisy_box_does_not_make_up_a_fixed_cost() -> None:
    rng = random.Random(5)
    meter = SpeedMeter()
    for _ in range(400):
        n = rng.choice([16, 32, 64, 128])
        meter.observe(0, n, (n + 6) / 400 * rng.uniform(0.7, 1.5))
    assert 0 <= meter.speeds.chunk_base < 14
    assert meter.speeds.chunk_s(64) == pytest.approx(70 / 400 * 1.1, rel=0.25)


def test_chunks_without_any_fixed_cost_have_none() -> None:
    meter = SpeedMeter()
    for n in (16, 64) * 100:
        meter.observe(0, n, n / 400 if n == 64 else 0.9 * n / 400)
    assert meter.speeds.chunk_base == 0


def test_in_tiles_what_a_loose_token_costs_is_found() -> None:
    meter = SpeedMeter(tiled=True)
    for n in (16, 64, 129, 33, 16, 50) * 40:
        tiles, rest = divmod(n, 64)
        work = 64 * tiles + (64 if rest >= 48 else 1.6 * rest)
        meter.observe(0, n, work / 300)
    assert meter.speeds.loose == pytest.approx(1.6, rel=0.02)
    assert meter.speeds.chunk_s(32) == pytest.approx(1.6 * 32 / 300, rel=0.03)
    assert meter.speeds.chunk_s(64) == pytest.approx(64 / 300, rel=0.03)


def test_small_chunks_are_not_taken_for_cheaper_than_tiles() -> None:
    meter = SpeedMeter(tiled=True)
    for n in (16, 64) * 100:
        meter.observe(0, n, (n if n == 64 else n / 2) / 300)
    assert meter.speeds.loose == 1.0
