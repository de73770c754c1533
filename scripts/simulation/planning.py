"""Which prompt tokens a virtual worker's next step computes.

lbhost's own planner, and the one of servers that take prompts as they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lbhost.order import Overtaken, Prompt, after
from lbhost.worker.batch import Chunk, Speeds, plan

BATCH = 512
"""Tokens that one batch holds."""


class Planner(Protocol):
    """Plans the steps of one worker."""

    def chunks(
        self, decoding: int, prompts: Sequence[Prompt], speeds: Speeds
    ) -> Sequence[Chunk]: ...


class Own:
    """lbhost's: worker/batch.plan, in the order of lbhost/order.py."""

    def __init__(self, target_s: float) -> None:
        self._overtaken = Overtaken()
        self._target_s = target_s

    def chunks(self, decoding: int, prompts: Sequence[Prompt], speeds: Speeds) -> Sequence[Chunk]:
        overtaken = self._overtaken
        chunks = plan(decoding, prompts, overtaken, speeds, self._target_s, BATCH, tiled=True)
        counts = {chunk.number: chunk.count for chunk in chunks}
        self._overtaken = after(prompts, overtaken, counts)
        return chunks


class AsTheyCome:
    """What llama-server does: all slots' prompts in turn, as much as a batch holds."""

    def chunks(self, decoding: int, prompts: Sequence[Prompt], speeds: Speeds) -> Sequence[Chunk]:
        left = BATCH - decoding
        chunks: list[Chunk] = []
        for prompt in prompts:
            count = min(prompt.remaining, left)
            if count <= 0:
                break
            chunks.append(Chunk(prompt.number, count))
            left -= count
        return chunks
