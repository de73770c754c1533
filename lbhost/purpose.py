"""What a model is for: it chats, embeds, or ranks; and how its tokens become one vector.

Pure: the facts of a GGUF go in (llama.py reads them), what it is served as comes out.
"""

from __future__ import annotations

import enum

import msgspec

from lbhost.errors import ModelFileError

USUAL_INPUT = 2048
"""Tokens of the longest input, unless told otherwise: compute buffers grow with its square."""


class ModelKind(enum.StrEnum):
    """What a model is served for. It decides the routes that answer, and the workers' engine."""

    CHAT = "chat"
    """Text, token by token."""
    EMBEDDING = "embedding"
    """A vector for a text."""
    RERANK = "rerank"
    """A number for a query and a document."""


class Pooling(enum.StrEnum):
    """How the vectors of an input's tokens become the input's."""

    MEAN = "mean"
    CLS = "cls"
    """The first token's."""
    LAST = "last"
    RANK = "rank"
    """The model's classification head."""


class KindChoice(enum.StrEnum):
    """`--kind`. auto: as the file says."""

    AUTO = "auto"
    CHAT = "chat"
    EMBEDDING = "embedding"
    RERANK = "rerank"


class PoolingChoice(enum.StrEnum):
    """`--pooling`. auto: as the file says, mean if it says nothing."""

    AUTO = "auto"
    MEAN = "mean"
    CLS = "cls"
    LAST = "last"


class Facts(msgspec.Struct, frozen=True):
    """What a GGUF file says that bears on it."""

    architecture: str
    pooling: int | None
    """The file's `pooling_type`; None: it has none."""
    causal: bool
    """Whether a token sees only those before it."""
    has_classifier: bool
    """Whether there are the tensors of a classification head."""
    has_encoder: bool
    has_decoder: bool
    is_diffusion: bool
    width: int = 0
    """Numbers in a token's last vector."""


class Purpose(msgspec.Struct, frozen=True):
    """What a model is served as."""

    kind: ModelKind = ModelKind.CHAT
    pooling: Pooling | None = None
    """None: it generates."""
    width: int = 0
    """Numbers in a vector; of rerankers 1."""

    @property
    def generates(self) -> bool:
        return self.kind is ModelKind.CHAT

    def sequences(self, slots: int) -> int:
        """For how many sequences a worker holds the whole context. What only embeds keeps nothing,
        and computes as many tokens at once as the longest input has."""
        return slots if self.generates else 1

    def context(self, requested: int | None, n_ctx_train: int) -> int | None:
        """Tokens of a sequence that are asked for; None: what the memory allows."""
        if requested is None and not self.generates:
            return min(n_ctx_train or USUAL_INPUT, USUAL_INPUT)
        return requested


GENERATES = Purpose()

_BY_NUMBER = {1: Pooling.MEAN, 2: Pooling.CLS, 3: Pooling.LAST, 4: Pooling.RANK}
"""llama.cpp's `llama_pooling_type`; 0 is none."""


def judge(
    path: object,
    facts: Facts,
    kind: KindChoice = KindChoice.AUTO,
    pooling: PoolingChoice = PoolingChoice.AUTO,
) -> Purpose:
    """What the file is to be served as.

    Raises:
        ModelFileError: it cannot be that, or not be served at all; one line.
    """
    arch = facts.architecture
    if not facts.has_decoder or facts.has_encoder:
        raise ModelFileError(f"{path}: {arch} models need an encoder, which lbhost does not run")
    if facts.is_diffusion:
        raise ModelFileError(f"{path}: this {arch} model does not generate text left to right")
    own = _BY_NUMBER.get(facts.pooling or 0)
    settled = _own_kind(facts, own) if kind is KindChoice.AUTO else ModelKind(kind.value)
    if settled is ModelKind.CHAT:
        if not facts.causal:
            raise ModelFileError(f"{path}: this {arch} model does not generate text left to right")
        return Purpose()
    if settled is ModelKind.RERANK:
        if not facts.has_classifier:
            raise ModelFileError(
                f"{path}: this {arch} model has no classification head to rank with; "
                "leave --kind out"
            )
        return Purpose(settled, Pooling.RANK, 1)
    if pooling is not PoolingChoice.AUTO:
        return Purpose(settled, Pooling(pooling.value), facts.width)
    if own is None or own is Pooling.RANK:
        own = Pooling.MEAN
    return Purpose(settled, own, facts.width)


def _own_kind(facts: Facts, own: Pooling | None) -> ModelKind:
    if own is Pooling.RANK or (own is None and not facts.causal and facts.has_classifier):
        return ModelKind.RERANK
    return ModelKind.CHAT if own is None and facts.causal else ModelKind.EMBEDDING
