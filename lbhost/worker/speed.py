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
        self._weight = self._n = self._t = 0.0
        self._slope = _Slope()
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
            self._observe_decode(decoding, cpu_s)
        else:
            self._observe_prefill(decoding, prefill, cpu_s)
        base_s, seq_s = self._fit()
        self._speeds = Speeds(self._prefill_tok_s, base_s, seq_s)

    def _observe_decode(self, n: int, cpu_s: float) -> None:
        self._weight = self._weight * _DECAY + 1
        self._n = self._n * _DECAY + n
        self._t = self._t * _DECAY + cpu_s
        self._slope.observe(n, cpu_s)

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
        if self._weight == 0:
            return None, None
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        seq_s = self._slope.seq_s()
        if seq_s is None:
            seq_s = mean_t / (mean_n + _BASE_SHARE / (1 - _BASE_SHARE))
        seq_s = min(seq_s, mean_t / mean_n)
        return mean_t - mean_n * seq_s, seq_s


class _Slope:
    """What one more sequence adds to a step: least squares over many steps."""

    def __init__(self) -> None:
        self._weight = self._n = self._nn = self._t = self._nt = 0.0

    def observe(self, n: int, cpu_s: float) -> None:
        self._weight = self._weight * _SLOPE_DECAY + 1
        self._n = self._n * _SLOPE_DECAY + n
        self._nn = self._nn * _SLOPE_DECAY + n * n
        self._t = self._t * _SLOPE_DECAY + cpu_s
        self._nt = self._nt * _SLOPE_DECAY + n * cpu_s

    def seq_s(self) -> float | None:
        """Seconds; None while all steps had about the same number of sequences."""
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        spread = self._nn / self._weight - mean_n * mean_n
        if spread <= _LEAST_SPREAD:
            return None
        return max(0.0, (self._nt / self._weight - mean_n * mean_t) / spread)
