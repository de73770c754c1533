"""How good the router's predictions are, with virtual workers under the real dispatcher."""

from __future__ import annotations

import random
import statistics

import pytest

from lbhost.gateway.scheduling.accuracy import Accuracy, Forecast
from simulation import arrivals as load
from simulation.costs import Costs
from simulation.play import play
from simulation.scenario import Scenario


@pytest.mark.parametrize(("part", "lend"), [(0.35, True), (0.6, True), (0.6, False)])
def test_in_steady_load_predictions_are_off_by_under_a_fifth(
    part: float, lend: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ttft: list[float] = []
    completion: list[float] = []
    began, ended = Accuracy.began, Accuracy.ended

    def note_began(self: Accuracy, forecast: Forecast, ttft_s: float, now: float) -> None:
        ttft.append((forecast.ttft_s - ttft_s) / ttft_s)
        began(self, forecast, ttft_s, now)

    def note_ended(
        self: Accuracy, forecast: Forecast, ttft_s: float, total_s: float, tokens: int, now: float
    ) -> None:
        completion.append((forecast.seconds - total_s) / total_s)
        ended(self, forecast, ttft_s, total_s, tokens, now)

    monkeypatch.setattr(Accuracy, "began", note_began)
    monkeypatch.setattr(Accuracy, "ended", note_ended)
    model = Costs()
    rate = part * load.capacity(load.mixed(1.0, 400, random.Random(1)), model, 2)
    made = load.mixed(rate, 400, random.Random(1))
    play("cost", made, Scenario(workers=2, costs=model, lend=lend))
    for errors in (ttft, completion):
        settled = errors[100:]
        assert len(settled) > 250
        assert statistics.median(map(abs, settled)) < 0.2
        assert abs(statistics.median(settled)) < 0.12
