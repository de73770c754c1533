"""Cuts the inputs of one request into jobs, so that all workers have a part of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from lbhost import wire
from lbhost.gateway.scheduling.job import Work

LEAST_TOKENS = 128
"""Of a part: what a worker computes in one go anyway."""

MOST_PARTS = 16
"""Of a request, where there are not more than half as many workers. More of them would only fill
the queue."""


def cut(inputs: Sequence[bytes], *, rank: int, scope: int, workers: int, most: int) -> list[Work]:
    """Parts of about the same size, in the order of the inputs.

    Args:
        inputs: packed tokens of each, at least one.
        workers: that there are.
        most: parts that there may be.
    """
    total = sum(map(len, inputs)) // 4
    parts = max(1, min(most, max(MOST_PARTS, 2 * workers), total // LEAST_TOKENS))
    if 1 < workers <= len(inputs) and total >= workers * LEAST_TOKENS // 2:
        parts = max(parts, min(workers, most))  # smaller ones rather than an idle worker
    works: list[Work] = []
    begun, tokens = 0, 0
    for at, packed in enumerate(inputs):
        tokens += len(packed) // 4
        if tokens * parts >= total * (len(works) + 1) or at + 1 == len(inputs):
            works.append(_work(inputs[begun : at + 1], rank, scope))
            begun = at + 1
    return works


def _work(inputs: Sequence[bytes], rank: int, scope: int) -> Work:
    prompt = b"".join(inputs)
    return Work(
        prompt=prompt,
        prompt_tokens=len(prompt) // 4,
        max_tokens=0,
        sampling=wire.Sampling(),
        rank=rank,
        scope=scope,
        inputs=tuple(len(one) // 4 for one in inputs),
    )
