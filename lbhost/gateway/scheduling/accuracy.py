"""What was predicted of requests, and what came: errors, and the factor that mends them. Pure.

A worker's predictions err in common: a neighbour that the sampler does not see, an order of
prompts that turns out otherwise, requests that come later. So each worker has two factors,
observed over predicted, of the time to the first token and of the time between tokens, which
its next predictions are multiplied with; and two more for times in which it is lent cores, as
its speeds are those of its own. They move slowly, are bounded, and fade to 1 when nothing new
comes, so that a worker that looked bad is tried again. Owns no clock.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable

import msgspec

WEIGHT = 0.1
"""Weight of the newest request in a factor, once some were seen; the first ones count more."""

MOST = 2.0
"""A factor is at most this and at least one over it: what is further off has another cause."""

WIDE_LEAST = 1 / 8
"""The least factor where cores are lent: prompts have been seen to gain that much from them."""

OUTLIER = 0.5
"""A request moves a factor as if it were off by exp(0.5) = 1.65 at most."""

HALF_LIFE_S = 120.0
"""A factor's logarithm halves in so long without anything new."""

KEPT = 64
"""Requests whose errors are remembered."""

LEAST_TOKENS = 4
"""Output tokens from which the time between them is learnt from a request."""


class Forecast(msgspec.Struct, frozen=True):
    """What was predicted when a request was given to its worker; counted from then."""

    ttft_s: float
    output_s: float
    """Between two tokens."""
    tokens: int
    """Output tokens expected."""
    ttft_factor: float = 1.0
    output_factor: float = 1.0
    """Both are in the above already."""
    wide: bool = False
    """Whether cores were there to be lent."""

    @property
    def seconds(self) -> float:
        """Until the end."""
        return self.ttft_s + (self.tokens - 1) * self.output_s


class Factor:
    """Observed over predicted, slowly."""

    def __init__(self, start: float = 1.0, least: float = 1 / MOST) -> None:
        self._log = math.log(start)
        self._least, self._most = math.log(least), math.log(MOST)
        self._seen = 0
        self._newest: float | None = None

    def at(self, now: float) -> float:
        """What predictions are to be multiplied with."""
        return math.exp(self._faded(now))

    def add(self, observed: float, uncorrected: float, now: float) -> None:
        """A request took so long, and would have been predicted to without any factor."""
        if observed <= 0 or uncorrected <= 0:
            return
        old = self._faded(now)
        off = math.log(observed / uncorrected) - old
        weight = max(WEIGHT, 1 / (self._seen + 2))
        new = old + weight * min(OUTLIER, max(-OUTLIER, off))
        self._log = min(self._most, max(self._least, new))
        self._seen += 1
        self._newest = now

    def _faded(self, now: float) -> float:
        if self._newest is None:
            return self._log
        return self._log * math.pow(0.5, max(0.0, now - self._newest) / HALF_LIFE_S)


class Errors:
    """Relative errors of the last predictions: (predicted - observed) / observed."""

    def __init__(self) -> None:
        self._errors: deque[float] = deque(maxlen=KEPT)
        self._medians: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self._errors)

    def add(self, predicted: float, observed: float) -> None:
        if observed > 0:
            self._errors.append((predicted - observed) / observed)
            self._medians = None

    @property
    def absolute(self) -> float | None:
        """Median of the errors' sizes; None before the first."""
        return self._both()[1] if self._errors else None

    @property
    def signed(self) -> float | None:
        """Median of the errors, over 0 where predictions are too long; None before the first."""
        return self._both()[0] if self._errors else None

    def _both(self) -> tuple[float, float]:
        if self._medians is None:
            sizes = [abs(error) for error in self._errors]
            self._medians = statistics.median(self._errors), statistics.median(sizes)
        return self._medians


class Factors:
    """The two of one situation."""

    def __init__(self, ttft: float = 1.0, output: float = 1.0, least: float = 1 / MOST) -> None:
        self.ttft = Factor(ttft, least)
        self.output = Factor(output, least)


class Accuracy:
    """Of the predictions for one worker id, over all its processes."""

    def __init__(self, narrow: Factors | None = None, wide: Factors | None = None) -> None:
        self.narrow = narrow or Factors()
        self.wide = wide or Factors(least=WIDE_LEAST)
        self.ttft = Errors()
        self.completion = Errors()

    def factors(self, wide: bool) -> Factors:
        """Those for a time with or without cores to lend."""
        return self.wide if wide else self.narrow

    def began(self, forecast: Forecast, ttft_s: float, now: float) -> None:
        """A request's first token came so long after it was given to the worker."""
        self.ttft.add(forecast.ttft_s, ttft_s)
        uncorrected = forecast.ttft_s / forecast.ttft_factor
        self.factors(forecast.wide).ttft.add(ttft_s, uncorrected, now)

    def ended(
        self, forecast: Forecast, ttft_s: float, total_s: float, tokens: int, now: float
    ) -> None:
        """A request was answered in full, with so many tokens."""
        self.completion.add(forecast.seconds, total_s)
        if tokens >= LEAST_TOKENS:
            between_s = (total_s - ttft_s) / (tokens - 1)
            uncorrected = forecast.output_s / forecast.output_factor
            self.factors(forecast.wide).output.add(between_s, uncorrected, now)


def like(others: Iterable[Accuracy], now: float) -> Accuracy:
    """For a worker of which nothing is known: it begins with what is usual here."""
    known = list(others)
    if not known:
        return Accuracy()
    narrow, wide = (
        Factors(
            statistics.median(one.factors(wide).ttft.at(now) for one in known),
            statistics.median(one.factors(wide).output.at(now) for one in known),
            least,
        )
        for wide, least in ((False, 1 / MOST), (True, WIDE_LEAST))
    )
    return Accuracy(narrow, wide)
