"""Which prompt tokens a virtual worker's next step computes.

lbhost's own planner, and the one of servers that take prompts as they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lbhost.worker.batch import Chunk, Prefill, Speeds, plan

BATCH = 512
"""Tokens that one batch holds."""


class Planner(Protocol):
    """Plans the steps of one worker."""

    def chunks(
        self, decoding: int, prefills: Sequence[Prefill], speeds: Speeds
    ) -> Sequence[Chunk]: ...


class Own:
    """lbhost's: worker/batch.plan."""

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s

    def chunks(self, decoding: int, prefills: Sequence[Prefill], speeds: Speeds) -> Sequence[Chunk]:
        return plan(decoding, prefills, speeds, self._target_s, BATCH, tiled=True)


class AsTheyCome:
    """What llama-server does: all slots' prompts in turn, as much as a batch holds."""

    def chunks(self, decoding: int, prefills: Sequence[Prefill], speeds: Speeds) -> Sequence[Chunk]:
        left = BATCH - decoding
        chunks: list[Chunk] = []
        for prefill in prefills:
            count = min(prefill.remaining, left)
            if count <= 0:
                break
            chunks.append(Chunk(prefill.slot, count))
            left -= count
        return chunks
