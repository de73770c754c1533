"""The speed meter finds the speeds that made the steps."""

from __future__ import annotations

import random

import pytest

from lbhost.worker.batch import Speeds
from lbhost.worker.speed import SpeedMeter


def test_nothing_is_known_before_the_first_step() -> None:
    assert SpeedMeter().speeds == Speeds(None, None, None)


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
    assert meter.speeds == Speeds(None, None, None)
