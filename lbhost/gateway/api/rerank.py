"""Reranking as Jina and Cohere have it, and llama-server and vLLM after them: bodies and answers.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from lbhost.errors import InvalidRequestError
from lbhost.gateway.api import parameters
from lbhost.gateway.api.embeddings import EmbeddingUsage, floats
from lbhost.gateway.api.parameters import Tier

MOST_DOCUMENTS = 1000


class Document(msgspec.Struct, frozen=True):
    """A text."""

    text: str


class RerankRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/rerank."""

    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=MOST_DOCUMENTS)]
    model: str | None = None
    top_n: Annotated[int, Meta(ge=1)] | None = None
    """Only so many of the best."""
    return_documents: bool | None = None
    """Tell each document's text too."""
    service_tier: Tier | None = None

    def texts(self) -> list[str]:
        """The documents. Raises InvalidRequestError: one is empty."""
        texts = [one if isinstance(one, str) else one.text for one in self.documents]
        for i, text in enumerate(texts):
            if not text:
                raise InvalidRequestError(f"documents[{i}]: must not be empty", param="documents")
        return texts


class Ranked(msgspec.Struct, frozen=True, omit_defaults=True):
    """A document and how well it fits the query."""

    index: int
    """Its place in the request."""
    relevance_score: float
    """0 to 1; it compares documents of one query and is no probability."""
    document: Document | None = None


class RerankAnswer(msgspec.Struct, frozen=True):
    """The documents, the best first."""

    id: str
    model: str
    results: list[Ranked]
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


def parse(body: bytes) -> RerankRequest:
    """Raises InvalidRequestError."""
    return parameters.decode(body, RerankRequest)


def ranked(scores: Sequence[bytes], top_n: int | None, documents: Sequence[str]) -> list[Ranked]:
    """The best first; of equal ones the earlier.

    Args:
        scores: the model's own, a float32 each.
        documents: their texts, if they are to be told; else empty.
    """
    found = [
        Ranked(i, _relevance(floats(score)[0]), Document(documents[i]) if documents else None)
        for i, score in enumerate(scores)
    ]
    found.sort(key=lambda one: -one.relevance_score)
    return found[:top_n]


def _relevance(score: float) -> float:
    """A logit as 0 to 1, which keeps the order."""
    return 1.0 / (1.0 + math.exp(-max(-60.0, min(score, 60.0))))
