"""How long steps take with how many threads: the meter of the own threads' speed and what more of
them bring, which are measured by each other. Pure but for its state.
"""

from __future__ import annotations

from collections.abc import Sequence

from lbhost.placement.gain import WidthGain
from lbhost.worker.batch import Speeds, predict_s
from lbhost.worker.speed import SpeedMeter
from lbhost.worker.widths import Phase, Widths


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
        self.meter = SpeedMeter(tiled=tiled, slots=slots)
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
        self, width: int, sequences: int, prefill: int, *, cpu_s: float, wall_s: float
    ) -> None:
        """A step is over.

        Args:
            sequences: those of which it decoded a token.
            prefill: tokens of prompts in it.
            cpu_s: CPU time of the engine's own thread.
        """
        if cpu_s <= 0 or wall_s <= 0:
            return
        phase = Phase.of(prefill)
        own_s = self.own_s(sequences, prefill) if self.meter.knows(phase) else None
        measured = self.meter.measured(phase)
        if width == self._own:
            self.meter.observe(sequences, prefill, cpu_s)
            if own_s is not None and not measured and self.meter.measured(phase):
                self.widths.rebase(phase, cpu_s / own_s)
                own_s = cpu_s
        if own_s is not None:
            self.widths.observe(phase, width, own_s, wall_s)
        if width != self._own and not measured:
            supposed_s = wall_s * self.widths.suppose(phase, width)
            self.meter.observe(sequences, prefill, supposed_s, supposed=True)
