"""How long steps take with how many threads: the meter of the own threads' speed and what more of
them bring, which are measured by each other. Pure but for its state.

A gain is the own threads' time over a wider step's, and only steps of about the same context can be
compared: on a core of a Zen 3 EPYC a token of the starter model takes 12 ms after 100 tokens and 28
after 1,200. So the own threads' speed is metered for contexts of each size apart, and once for all:
that is what is planned by and told.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lbhost.placement.gain import WidthGain
from lbhost.worker.batch import Speeds, predict_s
from lbhost.worker.speed import SpeedMeter
from lbhost.worker.widths import Phase, Widths

DEPTH = 256
"""Tokens of context: fewer are one size, up to twice as many the next, and so on."""


class Timing:
    """See the module.

    Args:
        own: threads that the worker has on its own CPUs.
        fallback_token_s: a token's expected seconds while nothing is measured.
        tiled, slots: see SpeedMeter.
        gains: what is known beforehand of more threads.
    """

    def __init__(
        self,
        own: int = 1,
        *,
        fallback_token_s: float,
        tiled: bool = False,
        slots: int = 0,
        gains: Sequence[WidthGain] = (),
    ) -> None:
        self._new_meter = partial(SpeedMeter, tiled=tiled, slots=slots)
        self.meter = self._new_meter()
        self._by_size: dict[int, SpeedMeter] = {}
        """For steps with contexts of that size."""
        self.widths = Widths(own, gains)
        self._own = own
        self._fallback_token_s = fallback_token_s

    def choose(self, phase: Phase, widest: int) -> int:
        """Threads of the next step, of so many that there are."""
        return self.widths.choose(phase, widest, known=self.meter.measured(phase))

    def speeds(self, width: int) -> Speeds:
        """With so many threads, as far as they are known or supposed."""
        if width == self._own:
            return self.meter.speeds
        return self.meter.speeds.times(
            prefill=self.widths.gain(Phase.PREFILL, width),
            decode=self.widths.gain(Phase.DECODE, width),
        )

    def own_s(self, sequences: int, prefill: int) -> float:
        """Seconds that the own threads should take for a step; unmeasured parts by the fallback."""
        return predict_s(sequences, prefill, self.meter.speeds, self._fallback_token_s)

    def observe(
        self,
        width: int,
        sequences: int,
        prefill: int,
        *,
        cpu_s: float,
        wall_s: float,
        depth: int = 0,
    ) -> None:
        """A step is over.

        Args:
            sequences: those of which it decoded a token.
            prefill: tokens of prompts in it.
            cpu_s: CPU time of the engine's own thread.
            depth: tokens of context before each that it computed, on average.
        """
        if cpu_s <= 0 or wall_s <= 0:
            return
        phase = Phase.of(prefill)
        size = (depth // DEPTH).bit_length()
        meter = self._by_size.get(size)
        if meter is None:
            meter = self._by_size[size] = self._new_meter()
        known = meter.knows(phase) and (not sequences or meter.knows(Phase.DECODE))
        own_s = None
        if known:
            own_s = predict_s(sequences, prefill, meter.speeds, self._fallback_token_s)
        measured, any_measured = meter.measured(phase), self.meter.measured(phase)
        if width == self._own:
            self.meter.observe(sequences, prefill, cpu_s)
            meter.observe(sequences, prefill, cpu_s)
            if own_s is not None and not measured and meter.measured(phase):
                if not any_measured:
                    self.widths.rebase(phase, cpu_s / own_s)
                own_s = cpu_s
        if own_s is not None:
            self.widths.observe(phase, width, own_s, wall_s)
        if width != self._own and not measured:
            supposed_s = wall_s * self.widths.suppose(phase, width)
            meter.observe(sequences, prefill, supposed_s, supposed=True)
            self.meter.observe(sequences, prefill, supposed_s, supposed=True)
