"""How fast this worker computes: moving averages over its steps. Pure but for its own state.

Fed with CPU time, so that a core shared with another program does not look like a slower
worker.
"""

from __future__ import annotations

import math

import msgspec

from lbhost.board import MOST_STEP_TIMES
from lbhost.worker.batch import MIN_CHUNK, NEARLY_A_TILE, TILE, Speeds
from lbhost.worker.step_times import BASE_SHARE, StepTimes
from lbhost.worker.widths import Phase

_DECAY = 0.95
"""Weight of the past, a decode step: a box becomes slower or faster within a second."""

_SLOPE_DECAY = 0.99
"""The same for what one more sequence costs: within few steps their number hardly varies, and
what comes out is noise."""

_PREFILL_HALF = 256
"""Prompt tokens that give the newest measurement a weight of one half."""

_LEAST_SPREAD = 0.05
"""Variance of the number of sequences under which nothing can be said of one more."""

CHUNK_BASE = 8.0
LOOSE = 1.3
"""Of batch.Speeds, until chunks of different sizes were seen. Where there are tiles, LOOSE stands
for all that small chunks cost more; elsewhere CHUNK_BASE does."""

_MAX_CHUNK_BASE = 512.0
_MAX_LOOSE = 4.0

_SHAPE_GAIN = 0.2
"""Of the step that would explain a chunk's time by its size alone. What small chunks cost more
belongs to the model and the build, not to the moment: it follows slowly, the pace follows fast."""

_MAX_SURPRISE = 0.5
"""Of a chunk's time, as a logarithm: beyond that something else computed, too."""

_SCRAP = MIN_CHUNK
"""Chunks under so many tokens tell of clocks and caches."""


class SpeedMeter:
    """Fits `base + n * seq` to decode steps (decayed least squares), and to chunks of prompts a
    pace and what small ones cost more.

    Args:
        tiled: whether attention is computed in tiles.
        slots: sequences that there can be; up to so many, steps are told one by one.
    """

    def __init__(self, *, tiled: bool = False, slots: int = 0) -> None:
        self._slots = slots
        self._told = min(slots, MOST_STEP_TIMES)
        self._tiled = tiled
        self._measured: set[Phase] = set()
        """What more than suppositions are known of."""
        self._speeds = Speeds()
        self._forget(Phase.DECODE)
        self._forget(Phase.PREFILL)

    def _forget(self, phase: Phase) -> None:
        """As if no step of this kind had been seen."""
        if phase is Phase.DECODE:
            self.times = StepTimes()
            """Of decode steps."""
            self._recent = _Steps(_DECAY)
            self._many = _Steps(_SLOPE_DECAY)
            return
        self._prefill_tok_s: float | None = None
        self._usual: float | None = None
        """Of the chunks of late, how much of their work is what small ones cost more."""
        base, loose = (0.0, LOOSE) if self._tiled else (CHUNK_BASE, None)
        self._speeds = msgspec.structs.replace(
            self._speeds, chunk_tok_s=None, chunk_base=base, loose=loose
        )

    @property
    def speeds(self) -> Speeds:
        """What is known by now."""
        return self._speeds

    def knows(self, phase: Phase) -> bool:
        """Whether a step of this kind can be predicted."""
        speeds = self._speeds
        known = speeds.prefill_tok_s if phase is Phase.PREFILL else speeds.step_base_s
        return known is not None

    def measured(self, phase: Phase) -> bool:
        """Whether the own threads have computed a step of this kind alone."""
        return phase in self._measured

    def observe(self, decoding: int, prefill: int, cpu_s: float, *, supposed: bool = False) -> None:
        """Take in one step: sequences decoded, prompt tokens computed, seconds it took.

        Args:
            supposed: it took other threads, too, and these would have taken about so long. The
                first step of its kind that is measured makes that forgotten.
        """
        phase = Phase.of(prefill)
        decode_s = self._speeds.decode_s(decoding) if prefill else 0.0
        if cpu_s <= (decode_s or 0.0) or (supposed and phase in self._measured):
            return  # a few tokens of a prompt may take no longer than the decodes beside them
        if not supposed and phase not in self._measured:
            self._measured.add(phase)
            self._forget(phase)
        if prefill == 0:
            self._recent.observe(decoding, cpu_s)
            self._many.observe(decoding, cpu_s)
            self.times.observe(decoding, cpu_s)
        else:
            self._observe_prefill(decoding, prefill, cpu_s, decode_s)
        base_s, seq_s = self._fit()
        self._speeds = msgspec.structs.replace(
            self._speeds,
            prefill_tok_s=self._prefill_tok_s,
            step_base_s=base_s,
            step_seq_s=seq_s,
            steps_s=self.times.table(self._told, self._slots),
        )

    def _observe_prefill(
        self, decoding: int, prefill: int, cpu_s: float, decode_s: float | None
    ) -> None:
        """`decode_s`: what the step's decodes take of cpu_s, if that is known."""
        if decode_s is None:
            speed = (prefill + decoding) / cpu_s
        else:
            speed = prefill / (cpu_s - decode_s)
            self._observe_chunk(prefill, cpu_s - decode_s)
        self._prefill_tok_s = _averaged(self._prefill_tok_s, speed, prefill)

    def _observe_chunk(self, tokens: int, seconds: float) -> None:
        if self._speeds.chunk_tok_s is not None and tokens >= _SCRAP:
            self._learn_shape(tokens, seconds * self._speeds.chunk_tok_s)
        speed = self._speeds.chunk_work(tokens) / seconds
        speed = _averaged(self._speeds.chunk_tok_s, speed, tokens)
        self._speeds = msgspec.structs.replace(self._speeds, chunk_tok_s=speed)

    def _learn_shape(self, tokens: int, paid: float) -> None:
        """Small chunks that surprise otherwise than large ones tell what they cost more. Where all
        are alike, or all surprise in the same way (the box has changed), that stays as it is.

        Args:
            paid: the work that would have been done in its time at the pace of late.
        """
        speeds = self._speeds
        work = speeds.chunk_work(tokens)
        rest = tokens % TILE
        extra = (rest if rest < NEARLY_A_TILE else 0) if self._tiled else 1
        part = extra / work
        usual = part if self._usual is None else self._usual
        self._usual = usual + 0.1 * (part - usual)
        surprise = max(-_MAX_SURPRISE, min(math.log(paid / work), _MAX_SURPRISE))
        step = _SHAPE_GAIN * surprise * (part - usual)
        if self._tiled:
            loose = max(1.0, min((speeds.loose or LOOSE) + step, _MAX_LOOSE))
            self._speeds = msgspec.structs.replace(speeds, loose=loose)
        else:
            base = max(0.0, min(speeds.chunk_base + step / usual**2, _MAX_CHUNK_BASE))
            self._speeds = msgspec.structs.replace(speeds, chunk_base=base)

    def _fit(self) -> tuple[float | None, float | None]:
        if not self._recent:
            return None, None
        mean_n, mean_s = self._recent.means()
        seq_s = self._many.slope()
        if seq_s is None:
            seq_s = mean_s / (mean_n + BASE_SHARE / (1 - BASE_SHARE))
        seq_s = min(seq_s, mean_s / mean_n)
        return max(0.0, mean_s - mean_n * seq_s), seq_s


def _averaged(before: float | None, speed: float, tokens: int) -> float:
    """A moving average in which a measurement weighs by its tokens."""
    if before is None:
        return speed
    return before + tokens / (tokens + _PREFILL_HALF) * (speed - before)


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
