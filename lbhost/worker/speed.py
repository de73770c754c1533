"""How fast this worker computes: moving averages over its steps. Pure but for its own state.

Fed with CPU time, so that a core shared with another program does not look like a slower
worker.
"""

from __future__ import annotations

from lbhost.worker.batch import Speeds

_DECAY = 0.95
"""Weight of the past, a decode step: a box becomes slower or faster within a second."""

_SLOPE_DECAY = 0.99
"""The same for what one more sequence costs: within few steps their number hardly varies, and
what comes out is noise."""

_PREFILL_HALF = 256
"""Prompt tokens that give the newest measurement a weight of one half."""

_BASE_SHARE = 0.3
"""Of a one-sequence step, what does not grow with more sequences. Used until steps of
different sizes were seen: on a CPU core a batch of 8 decodes 1.2 to 1.5 times faster than 1."""

_LEAST_SPREAD = 0.05
"""Variance of the number of sequences under which nothing can be said of one more."""


class SpeedMeter:
    """Fits `base + n * seq` to decode steps (decayed least squares), and a prefill speed."""

    def __init__(self) -> None:
        self._prefill_tok_s: float | None = None
        self._recent = _Steps(_DECAY)
        self._many = _Steps(_SLOPE_DECAY)
        self._speeds = Speeds()

    @property
    def speeds(self) -> Speeds:
        """What is known by now."""
        return self._speeds

    def observe(self, decoding: int, prefill: int, cpu_s: float) -> None:
        """Take in one step: sequences decoded, prompt tokens computed, seconds it took."""
        if cpu_s <= 0:
            return
        if prefill == 0:
            self._recent.observe(decoding, cpu_s)
            self._many.observe(decoding, cpu_s)
        else:
            self._observe_prefill(decoding, prefill, cpu_s)
        base_s, seq_s = self._fit()
        self._speeds = Speeds(self._prefill_tok_s, base_s, seq_s)

    def _observe_prefill(self, decoding: int, prefill: int, cpu_s: float) -> None:
        decode_s = self._speeds.decode_s(decoding)
        if decode_s is None:
            speed = (prefill + decoding) / cpu_s
        elif cpu_s > decode_s:
            speed = prefill / (cpu_s - decode_s)
        else:
            return
        if self._prefill_tok_s is None:
            self._prefill_tok_s = speed
        else:
            share = prefill / (prefill + _PREFILL_HALF)
            self._prefill_tok_s += share * (speed - self._prefill_tok_s)

    def _fit(self) -> tuple[float | None, float | None]:
        if not self._recent:
            return None, None
        mean_n, mean_s = self._recent.means()
        seq_s = self._many.slope()
        if seq_s is None:
            seq_s = mean_s / (mean_n + _BASE_SHARE / (1 - _BASE_SHARE))
        seq_s = min(seq_s, mean_s / mean_n)
        return max(0.0, mean_s - mean_n * seq_s), seq_s


class _Steps:
    """Decode steps so far, of which old ones count for less and less."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._weight = self._n = self._nn = self._s = self._ns = 0.0

    def __bool__(self) -> bool:
        return self._weight > 0

    def observe(self, n: int, seconds: float) -> None:
        self._weight = self._weight * self._decay + 1
        self._n = self._n * self._decay + n
        self._nn = self._nn * self._decay + n * n
        self._s = self._s * self._decay + seconds
        self._ns = self._ns * self._decay + n * seconds

    def means(self) -> tuple[float, float]:
        """Sequences and seconds of a step."""
        return self._n / self._weight, self._s / self._weight

    def slope(self) -> float | None:
        """Seconds that one more sequence adds, by least squares; None while all steps had about
        the same number of them."""
        mean_n, mean_s = self.means()
        spread = self._nn / self._weight - mean_n * mean_n
        if spread <= _LEAST_SPREAD:
            return None
        return max(0.0, (self._ns / self._weight - mean_n * mean_s) / spread)
