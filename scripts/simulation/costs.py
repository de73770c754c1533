"""How long a virtual worker's steps take. Pure.

    step(k, chunks, w) = (step_base + k * step_seq) / decode gain(w) + the chunks' prefill / gain(w)
    gain(w)            = w / (1 + (w - 1) * serial)

A chunk costs prefill_tok_s in whole tiles and SMALL_TOK_S of that in what is left over. Measured
with the starter model on one core (tokens a step: tok/s): 8: 206, 16: 252, 32: 260, 64: 397,
128: 408, 512: 423. Two threads computed prefill 1.5 to 1.8 times as fast as one, decode 1.35 to 1.5
times; more of them were not measured: that is what the law of the serial part (Amdahl) makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lbhost.worker.batch import TILE
from lbhost.worker.step_times import BLOCK

SMALL_TOK_S = 0.62
"""Prefill speed of what fills no tile, over that of whole tiles: 252 over 408."""


class Costs(msgspec.Struct, frozen=True):
    """One worker on an undisturbed core. Defaults: SmolLM2-135M Q4_0 on a core of a 2-core EPYC."""

    prefill_tok_s: float = 320.0
    """In whole tiles."""
    step_base_s: float = 0.004
    step_seq_s: float = 0.008
    """A decode step of n sequences takes step_base_s + n * step_seq_s…"""
    steps_s: tuple[float, ...] = ()
    """…but for the first numbers of them, of which each has its own time: see
    lbhost/worker/step_times.py. A step is filled up to a whole block where that is faster."""
    noise: float = 0.05
    """Standard deviation of the logarithm of a step's time."""
    prefill_serial: float = 0.176
    """Part of a prompt's work that more threads do not speed up: 1.7 times with two."""
    decode_serial: float = 0.43
    """The same of a decode step: 1.4 times with two."""
    slots: int = 4
    """Sequences that a worker computes at once."""

    def step_s(self, decoding: int, chunks: Sequence[int] = (), width: int = 1) -> float:
        """Seconds of a step that decodes so many sequences and computes such chunks of prompts.

        Args:
            width: threads, on a core each.
        """
        seconds = self._decode_s(decoding) / _gain(width, self.decode_serial)
        prefill_s = sum(self.prefill_s(chunk) for chunk in chunks)
        return seconds + prefill_s / _gain(width, self.prefill_serial)

    def _decode_s(self, decoding: int) -> float:
        if not 0 < decoding <= len(self.steps_s):
            return self.step_base_s + decoding * self.step_seq_s
        own_s = self.steps_s[decoding - 1]
        filled = -(-decoding // BLOCK) * BLOCK
        if filled >= 2 * decoding or filled > len(self.steps_s):
            return own_s
        return min(own_s, self.steps_s[filled - 1])

    def prefill_s(self, tokens: int) -> float:
        """Seconds of prompt tokens in one piece."""
        tiles, rest = divmod(tokens, TILE)
        rest_s = min(rest / SMALL_TOK_S, TILE) / self.prefill_tok_s
        return tiles * TILE / self.prefill_tok_s + rest_s

    def full_s(self, prompt_tokens: int, output_tokens: int) -> float:
        """Seconds of a worker that a request costs while all slots are taken."""
        each = self._decode_s(self.slots) / self.slots
        return self.prefill_s(prompt_tokens) + output_tokens * each

    def alone_s(self, prompt_tokens: int) -> float:
        """Seconds to the first token on a worker that does nothing else, with its own core."""
        return self.step_base_s + self.prefill_s(prompt_tokens)


def _gain(width: int, serial: float) -> float:
    return width / (1 + (width - 1) * serial)
