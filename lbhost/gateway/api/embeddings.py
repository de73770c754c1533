"""OpenAI's embeddings: bodies and answers. Pure."""

from __future__ import annotations

import array
import binascii
import math
import sys
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from lbhost.errors import InvalidRequestError
from lbhost.gateway.api import parameters
from lbhost.gateway.api.parameters import Tier

MOST_INPUTS = 2048
"""In one request, as OpenAI has it."""

MOST_TOKENS = 1_000_000
"""In one request, all inputs together."""

Input: TypeAlias = str | list[int]


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/embeddings."""

    input: str | Annotated[list[str | int | list[int]], Meta(max_length=MOST_TOKENS)]
    """A text, some texts, token ids, or some lists of token ids."""
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    """So many of the vector's numbers, from the first on, brought to length 1 again."""
    service_tier: Tier | None = None

    def inputs(self, n_vocab: int) -> list[tuple[str, Input]]:
        """Each input under the name that errors call it by.

        Raises:
            InvalidRequestError: there is none, too many, or one is empty or of no known kind.
        """
        given = self.input
        if isinstance(given, str):
            return [("input", _checked("input", given, n_vocab))]
        if not given:
            raise InvalidRequestError("input: must not be empty", param="input")
        if all(isinstance(one, int) for one in given):
            return [("input", _checked("input", given, n_vocab))]
        if len(given) > MOST_INPUTS:
            raise InvalidRequestError(
                f"input: a request has at most {MOST_INPUTS} inputs, not {len(given)}; "
                "send several requests",
                param="input",
            )
        return [
            (where, _checked(where, one, n_vocab))
            for where, one in ((f"input[{i}]", one) for i, one in enumerate(given))
        ]


def _checked(where: str, one: object, n_vocab: int) -> Input:
    if isinstance(one, str):
        if not one:
            raise InvalidRequestError(f"{where}: must not be empty", param="input")
        return one
    if not isinstance(one, list):
        raise InvalidRequestError(
            f"{where}: a text or a list of token ids beside texts or lists, not a number alone",
            param="input",
        )
    if not one:
        raise InvalidRequestError(f"{where}: must not be empty", param="input")
    tokens = [token for token in one if isinstance(token, int) and 0 <= token < n_vocab]
    if len(tokens) < len(one):
        raise InvalidRequestError(
            f"{where}: token ids are whole numbers from 0 to {n_vocab - 1}, of this model's own "
            "vocabulary; or send texts",
            param="input",
        )
    return tokens


class CachedInputs(msgspec.Struct, frozen=True):
    """Extension: what was computed for earlier requests."""

    cached_tokens: int
    cached_inputs: int


class EmbeddingUsage(msgspec.Struct, frozen=True):
    """What the request cost, in tokens."""

    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedInputs


class Embedding(msgspec.Struct, frozen=True):
    """One input's vector, of length 1."""

    index: int
    embedding: list[float] | str
    """Numbers, or their float32 (little-endian) in base64."""
    object: Literal["embedding"] = "embedding"


class EmbeddingList(msgspec.Struct, frozen=True):
    """The answer: a vector for each input, in their order."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


def parse(body: bytes) -> EmbeddingRequest:
    """Raises InvalidRequestError."""
    return parameters.decode(body, EmbeddingRequest)


def encoded(index: int, vector: bytes, *, base64: bool, dimensions: int | None) -> Embedding:
    """An input's part of the answer.

    Args:
        vector: float32, little-endian.
        dimensions: how many of them are wanted; None: all.
    """
    if dimensions is not None and 4 * dimensions < len(vector):
        vector = _cut(vector, dimensions)
    if base64:
        return Embedding(index, binascii.b2a_base64(vector, newline=False).decode())
    return Embedding(index, floats(vector).tolist())


def _cut(vector: bytes, dimensions: int) -> bytes:
    numbers = floats(vector[: 4 * dimensions])
    length = math.sqrt(sum(number * number for number in numbers)) or 1.0
    return _packed(array.array("f", [number / length for number in numbers]))


def floats(packed: bytes) -> array.array[float]:
    """The numbers of a vector."""
    numbers = array.array("f", packed)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _packed(numbers: array.array[float]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()
