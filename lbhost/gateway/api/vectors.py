"""The answers to requests for vectors and scores, written part by part.

A vector of 384 numbers takes 0.03 ms to write and 2,048 of them 60: other requests come between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from lbhost.gateway.api import embeddings, rerank
from lbhost.gateway.api.embeddings import EmbeddingUsage
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.api.rerank import RerankAnswer
from lbhost.gateway.prompt.inputs import Inputs
from lbhost.gateway.scheduling.job import Job

AT_ONCE = 16 * 1024
"""Numbers that are written before others have a turn: some 2 ms."""

_encode = msgspec.json.Encoder().encode


def of_jobs(jobs: Sequence[Job]) -> list[bytes]:
    """The vectors of all their inputs, in order."""
    vectors: list[bytes] = []
    for job in jobs:
        width = len(job.vectors) // len(job.work.inputs)
        vectors += [job.vectors[at : at + width] for at in range(0, len(job.vectors), width)]
    return vectors


async def body(
    kind: Kind,
    inputs: Inputs,
    vectors: Sequence[bytes],
    usage: EmbeddingUsage,
    *,
    model: str,
    request_id: str,
) -> bytes:
    """The whole answer.

    Args:
        vectors: of each input; see wire.Vectors.
    """
    if kind is Kind.RERANK:
        results = rerank.ranked(vectors, inputs.top_n, inputs.documents)
        return _encode(RerankAnswer(request_id, model, results, usage))
    parts: list[bytes] = []
    numbers = 0
    for index, vector in enumerate(vectors):
        one = embeddings.encoded(index, vector, base64=inputs.base64, dimensions=inputs.dimensions)
        parts.append(_encode(one))
        numbers += len(vector) // (32 if inputs.base64 else 4)
        if numbers >= AT_ONCE:
            numbers = 0
            await asyncio.sleep(0)
    around = embeddings.EmbeddingList([], model, usage)
    head, empty, tail = _encode(around).partition(b'"data":[]')
    assert empty
    return head + b'"data":[' + b",".join(parts) + b"]" + tail
