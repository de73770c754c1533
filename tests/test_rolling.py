"""Rates, quantiles and parts over a window, on a clock that the test moves."""

from __future__ import annotations

import pytest

from lbhost.gateway.rolling import Growth, Part, Quantiles, Rate


def test_a_rate_looks_back_over_its_window_and_falls_to_nothing() -> None:
    rate = Rate(1.0)
    assert rate.update(0.0, 0) == 0.0
    for tick in range(1, 9):
        got = rate.update(tick / 4, tick * 10)
    assert got == pytest.approx(40.0)
    for tick in range(9, 14):
        got = rate.update(tick / 4, 80)
    assert got == 0.0


def test_growth_goes_on_over_restarts() -> None:
    growth = Growth()
    assert growth.update(1, 100) == 100
    assert growth.update(1, 150) == 150
    assert growth.update(2, 30) == 180
    assert growth.update(2, 30) == 180


def test_quantiles_are_of_the_last_minute() -> None:
    quantiles = Quantiles(60.0, 1000)
    assert quantiles.at(0.0) == (None, None)
    for n in range(100):
        quantiles.add(10.0, float(n))
    assert quantiles.at(11.0) == (50.0, 95.0)
    quantiles.add(50.0, 7.0)
    assert quantiles.at(80.0) == (7.0, 7.0)
    assert quantiles.at(120.0) == (None, None)


def test_the_p95_comes_with_its_own_parts() -> None:
    quantiles = Quantiles(60.0, 1000)
    for n in range(100):
        quantiles.add(10.0, float(n), (n - 3.0, 2.0, 1.0))
    assert quantiles.at(11.0)[1] == 95.0
    assert quantiles.p95_parts == (92.0, 2.0, 1.0)
    quantiles.at(120.0)
    assert not quantiles.p95_parts


def test_a_part_is_of_the_last_minute_and_keeps_little() -> None:
    part = Part(60)
    assert part.at(0.0) is None
    for n in range(10_000):
        part.add(100.0 + n / 100, marked=n % 4 == 0)
    assert part.at(200.0) == pytest.approx(0.25, abs=0.01)
    assert len(part._buckets) <= 60
    part.add(230.0, marked=True)
    assert part.at(280.0) == 1.0
    assert part.at(291.0) is None
