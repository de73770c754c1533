"""The context of embedding workers against llama.cpp computing one input at a time."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

import tiny_bert
from lbhost.llama import Model, inspect
from lbhost.model import resolve
from lbhost.purpose import KindChoice, ModelKind, Pooling, PoolingChoice
from lbhost.wire import pack_tokens
from lbhost.worker.embedding_context import (
    CPU_TOKENS,
    FILLED_FROM,
    MOST_INPUTS,
    TILE,
    EmbeddingContext,
)
from lbhost.worker.llama_context import Decoded
from llama_cpp_vectors import SHARED, Reference, cosine

TEXTS = [
    "the cat sat on the mat",
    "a dog",
    "all rivers run into the sea, yet the sea is not full",
    "x",
    "one more, to fill the batch - or not?",
]
N_CTX = 256


def same_as_alone(
    path: Path | str, pooling: Pooling, number: int, width: int | None, alike: float = 0.9999
) -> None:
    """Vectors of a batch, twice, are those that each text has alone."""
    reference = Reference(path, number)
    model = Model(path)
    context = EmbeddingContext(model, pooling=pooling, n_ctx=N_CTX, threads=1)
    try:
        tokens = [reference.tokens(text) for text in TEXTS]
        alone = [reference.vector(one, width) for one in tokens]
        for _ in range(2):  # nothing of a batch may be left over in the next
            result, vectors = context.compute([pack_tokens(one) for one in tokens])
            assert result is Decoded.OK
            assert len(vectors) == len(TEXTS)
            for mine, theirs in zip(vectors, alone, strict=True):
                if width == 1:
                    assert mine == pytest.approx(theirs, abs=0.02)
                else:
                    assert cosine(mine, theirs) > alike
        if width == 1:
            assert max(alone) - min(alone) > 0.1, "they could be told apart"
        else:
            assert cosine(alone[0], alone[2]) < 0.9999, "they could be told apart"
    finally:
        context.close()
        model.close()
        reference.close()


@pytest.mark.parametrize("pooling", [Pooling.MEAN, Pooling.CLS, Pooling.LAST])
def test_a_batch_gives_each_text_the_vector_that_it_has_alone(
    tmp_path: Path, pooling: Pooling
) -> None:
    kind = gguf.PoolingType[pooling.name]
    path = tiny_bert.write(tmp_path / "m.gguf", kind)
    purpose = inspect(path).purpose
    assert (purpose.kind, purpose.pooling) == (ModelKind.EMBEDDING, pooling)
    assert purpose.width == tiny_bert.WIDTH
    same_as_alone(path, pooling, int(kind), None)


def test_a_reranker_gives_each_pair_the_score_that_it_has_alone(tmp_path: Path) -> None:
    path = tiny_bert.write(tmp_path / "m.gguf", gguf.PoolingType.RANK)
    purpose = inspect(path).purpose
    assert (purpose.kind, purpose.pooling, purpose.width) == (ModelKind.RERANK, Pooling.RANK, 1)
    same_as_alone(path, Pooling.RANK, int(gguf.PoolingType.RANK), 1)


@pytest.mark.parametrize("choice", [PoolingChoice.MEAN, PoolingChoice.LAST])
def test_a_model_that_chats_embeds_where_it_is_told_to(choice: PoolingChoice) -> None:
    path = resolve("starter").path
    assert inspect(path).purpose.generates
    purpose = inspect(path, KindChoice.EMBEDDING, choice).purpose
    pooling = Pooling(choice.value)
    assert purpose.pooling is pooling
    # Thirty layers of four-bit weights make more of how attention is rounded.
    same_as_alone(path, pooling, int(gguf.PoolingType[pooling.name]), None, alike=0.999)


@pytest.mark.skipif(not SHARED.exists(), reason=f"needs {SHARED.name} beside the checkout")
def test_minilm_in_batches_is_minilm_alone() -> None:
    same_as_alone(SHARED, Pooling.MEAN, -1, None, alike=0.999)


def test_batches_below_and_around_a_tile_give_the_same_vectors(tmp_path: Path) -> None:
    """Whichever way a batch is computed: without flash attention, filled up, or in tiles."""
    path = tiny_bert.write(tmp_path / "m.gguf")
    reference = Reference(path)
    model = Model(path)
    context = EmbeddingContext(model, pooling=Pooling.MEAN, n_ctx=N_CTX, threads=1)
    try:
        for total in (2, FILLED_FROM - 1, FILLED_FROM, TILE - 1, TILE, TILE + 1, CPU_TOKENS):
            lengths = [total // 2, total - total // 2]
            texts = [[5 + (3 * i + length) % 60 for i in range(length)] for length in lengths]
            result, vectors = context.compute([pack_tokens(text) for text in texts])
            assert result is Decoded.OK
            assert len(vectors) == 2
            for mine, text in zip(vectors, texts, strict=True):
                assert cosine(mine, reference.vector(text)) > 0.9999
        ones = [pack_tokens([5 + i]) for i in range(MOST_INPUTS - 1)]
        assert len(context.compute(ones)[1]) == MOST_INPUTS - 1, "and one that fills it up"
    finally:
        context.close()
        model.close()
        reference.close()


def test_an_input_as_long_as_the_context_fits_and_a_watch_aborts(tmp_path: Path) -> None:
    path = tiny_bert.write(tmp_path / "m.gguf")
    model = Model(path)
    context = EmbeddingContext(model, pooling=Pooling.MEAN, n_ctx=N_CTX, threads=1)
    try:
        longest = pack_tokens([tiny_bert.CLS] + [7] * (N_CTX - 2) + [tiny_bert.SEP])
        result, (vector,) = context.compute([longest])
        assert result is Decoded.OK
        assert np.isfinite(vector).all()
        context.watch(lambda: True)
        assert context.compute([longest]) == (Decoded.ABORTED, [])
        context.watch(None)
        result, (again,) = context.compute([longest])
        assert again == pytest.approx(vector)
        with pytest.raises(ValueError, match="do not fit"):
            context.compute([longest + pack_tokens([7])])
        short = [longest[:40]]
        context.watch(lambda: True)
        assert context.compute(short) == (Decoded.ABORTED, []), "whichever way it is computed"
    finally:
        context.close()
        model.close()
