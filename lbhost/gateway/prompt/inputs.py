"""From an embedding or reranking request's body to token ids: one input for each vector or score.

Computes and never waits, within the prompter's limits.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import msgspec

from lbhost import wire
from lbhost.errors import ContextLengthError, InvalidRequestError
from lbhost.gateway.api import embeddings, model_name, rerank
from lbhost.gateway.api.embeddings import MOST_TOKENS
from lbhost.gateway.api.parameters import Tier
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.prompt.prompter import Prompter, Vocabulary
from lbhost.purpose import ModelKind, Purpose

PATHS = {
    Kind.EMBEDDINGS: ("/v1/embeddings", "/embeddings"),
    Kind.RERANK: ("/v1/rerank", "/rerank", "/v1/reranking", "/reranking"),
}

KINDS = {Kind.EMBEDDINGS: ModelKind.EMBEDDING, Kind.RERANK: ModelKind.RERANK}
"""What a model must be for, to answer requests of a kind; ModelKind.CHAT for all others."""

USES = {
    ModelKind.CHAT: "it generates text: use /v1/chat/completions or /v1/completions",
    ModelKind.EMBEDDING: "it embeds texts: use /v1/embeddings",
    ModelKind.RERANK: "it ranks documents: use /v1/rerank",
}


class Inputs(msgspec.Struct, frozen=True, tag="inputs"):
    """A request for vectors or scores, as far as its body goes."""

    tokens: bytes
    """Those of all inputs, one after the other; see wire.pack_tokens."""
    lengths: tuple[int, ...]
    """Tokens of each."""
    tier: Tier | None = None
    base64: bool = False
    dimensions: int | None = None
    top_n: int | None = None
    documents: tuple[str, ...] = ()
    """Those that the answer repeats."""

    def each(self) -> list[bytes]:
        """The tokens of each input."""
        ends = accumulate(4 * length for length in self.lengths)
        return [
            self.tokens[end - 4 * length : end]
            for end, length in zip(ends, self.lengths, strict=True)
        ]


def check_kind(
    kind: Kind, purpose: Purpose, body: bytes, named: Callable[[str | None], None]
) -> None:
    """Refuse what the model is not served for.

    Args:
        named: raises ModelNotFoundError for the name of another model.

    Raises InvalidRequestError.
    """
    if KINDS.get(kind, ModelKind.CHAT) is purpose.kind:
        return
    named(model_name.of_body(body))
    raise InvalidRequestError(
        f"the model that is served here is of the kind {purpose.kind.value!r}: "
        f"{USES[purpose.kind].removeprefix('it ')}",
        param="model",
    )


class InputReader:
    """Reads bodies for one model."""

    def __init__(
        self,
        vocab: Vocabulary,
        prompter: Prompter,
        purpose: Purpose,
        n_ctx: int,
        named: Callable[[str | None], None],
    ) -> None:
        """`named` raises ModelNotFoundError for the name of another model."""
        self._vocab = vocab
        self._prompter = prompter
        self._purpose = purpose
        self._n_ctx = n_ctx
        self._named = named

    def read(self, body: bytes, kind: Kind) -> Inputs:
        """Raises InvalidRequestError and its kin, ModelNotFoundError, TooLongInlineError."""
        return self._texts(body) if kind is Kind.EMBEDDINGS else self._pairs(body)

    def _texts(self, body: bytes) -> Inputs:
        request = embeddings.parse(body)
        self._named(request.model)
        width = self._purpose.width
        if request.dimensions is not None and request.dimensions > width:
            raise InvalidRequestError(
                f"dimensions: this model's vectors have {width}, not {request.dimensions}",
                param="dimensions",
            )
        found: list[list[int]] = []
        for where, one in request.inputs(self._vocab.n_tokens):
            if isinstance(one, str):
                self._check(where, one)
                one = self._prompter.input(one)
            found.append(self._fitting(where, one))
        return msgspec.structs.replace(
            _packed(found, request.service_tier, "input"),
            base64=request.encoding_format == "base64",
            dimensions=request.dimensions,
        )

    def _pairs(self, body: bytes) -> Inputs:
        request = rerank.parse(body)
        self._named(request.model)
        texts = request.texts()
        self._check("query", request.query)
        self._fitting("query", self._prompter.input(request.query))
        for i, text in enumerate(texts):
            self._check(f"documents[{i}]", text)
        pairs = self._prompter.pairs(request.query, texts)
        found = [self._fitting(f"documents[{i}]", pair) for i, pair in enumerate(pairs)]
        return msgspec.structs.replace(
            _packed(found, request.service_tier, "documents"),
            top_n=request.top_n,
            documents=tuple(texts) if request.return_documents else (),
        )

    def _check(self, where: str, text: str) -> None:
        """Refuse at once what cannot fit."""
        try:
            self._prompter.check_length(len(text), where)
        except ContextLengthError as error:
            raise self._too_long(where, None) from error

    def _fitting(self, where: str, tokens: list[int]) -> list[int]:
        if len(tokens) > self._n_ctx:
            raise self._too_long(where, len(tokens))
        if not tokens:
            raise InvalidRequestError(f"{where}: has no tokens", param=_param(where))
        return tokens

    def _too_long(self, where: str, count: int | None) -> ContextLengthError:
        has = "" if count is None else f"; it has {count}"
        return ContextLengthError(
            f"{where}: an input has at most {self._n_ctx} tokens here{has}", param=_param(where)
        )


def _param(where: str) -> str:
    return where.partition("[")[0]


def _packed(inputs: list[list[int]], tier: Tier | None, param: str) -> Inputs:
    total = sum(map(len, inputs))
    if total > MOST_TOKENS:
        raise InvalidRequestError(
            f"a request has at most {MOST_TOKENS} tokens, not {total}; send several requests",
            param=param,
        )
    tokens = b"".join(map(wire.pack_tokens, inputs))
    return Inputs(tokens, tuple(map(len, inputs)), tier)
