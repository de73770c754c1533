"""How long a virtual worker's steps take. Pure.

    step(k, chunks) = step_base + k * step_seq + the chunks' prefill

A chunk costs prefill_tok_s in whole tiles and SMALL_TOK_S of that in what is left over. Measured
with the starter model on one core (tokens a step: tok/s): 8: 206, 16: 252, 32: 260, 64: 397,
128: 408, 512: 423.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

TILE = 64
"""Tokens that flash attention computes in one go; see lbhost/worker/batch.py."""

SMALL_TOK_S = 0.62
"""Prefill speed of what fills no tile, over that of whole tiles: 252 over 408."""


class Costs(msgspec.Struct, frozen=True):
    """One worker on an undisturbed core. Defaults: SmolLM2-135M Q4_0 on a core of a 2-core EPYC."""

    prefill_tok_s: float = 320.0
    """In whole tiles."""
    step_base_s: float = 0.004
    step_seq_s: float = 0.008
    """A decode step of n sequences takes step_base_s + n * step_seq_s."""
    noise: float = 0.05
    """Standard deviation of the logarithm of a step's time."""
    slots: int = 4
    """Sequences that a worker computes at once."""

    def step_s(self, decoding: int, chunks: Sequence[int] = ()) -> float:
        """Seconds of a step that decodes so many sequences and computes such chunks of prompts."""
        seconds = self.step_base_s + decoding * self.step_seq_s
        return seconds + sum(self.prefill_s(chunk) for chunk in chunks)

    def prefill_s(self, tokens: int) -> float:
        """Seconds of prompt tokens in one piece."""
        tiles, rest = divmod(tokens, TILE)
        rest_s = min(rest / SMALL_TOK_S, TILE) / self.prefill_tok_s
        return tiles * TILE / self.prefill_tok_s + rest_s

    def full_s(self, prompt_tokens: int, output_tokens: int) -> float:
        """Seconds of a worker that a request costs while all slots are taken."""
        each = self.step_base_s / self.slots + self.step_seq_s
        return self.prefill_s(prompt_tokens) + output_tokens * each

    def alone_s(self, prompt_tokens: int) -> float:
        """Seconds to the first token on a worker that does nothing else."""
        return self.step_base_s + self.prefill_s(prompt_tokens)
