"""What a file is served as, by what it says of itself and what the settings say."""

from __future__ import annotations

from typing import Any

import pytest

from lbhost.errors import ModelFileError
from lbhost.purpose import (
    USUAL_INPUT,
    Facts,
    KindChoice,
    ModelKind,
    Pooling,
    PoolingChoice,
    Purpose,
    judge,
)

WIDTH = 384


def facts(**changed: Any) -> Facts:
    """Of a model that chats, unless changed."""
    given = {
        "architecture": "llama",
        "pooling": None,
        "causal": True,
        "has_classifier": False,
        "has_encoder": False,
        "has_decoder": True,
        "is_diffusion": False,
        "width": WIDTH,
    }
    return Facts(**{**given, **changed})


BERT = facts(architecture="bert", causal=False)


@pytest.mark.parametrize(
    ("found", "purpose"),
    [
        (facts(), Purpose()),
        (facts(pooling=0), Purpose()),
        (facts(pooling=3), Purpose(ModelKind.EMBEDDING, Pooling.LAST, WIDTH)),
        (BERT, Purpose(ModelKind.EMBEDDING, Pooling.MEAN, WIDTH)),
        (
            facts(architecture="bert", causal=False, pooling=2),
            Purpose(ModelKind.EMBEDDING, Pooling.CLS, WIDTH),
        ),
        (
            facts(architecture="bert", causal=False, pooling=4, has_classifier=True),
            Purpose(ModelKind.RERANK, Pooling.RANK, 1),
        ),
        (
            facts(architecture="bert", causal=False, has_classifier=True),
            Purpose(ModelKind.RERANK, Pooling.RANK, 1),
        ),
        (
            facts(architecture="qwen3", pooling=4, has_classifier=True),
            Purpose(ModelKind.RERANK, Pooling.RANK, 1),
        ),
    ],
)
def test_the_file_says_what_a_model_is_for(found: Facts, purpose: Purpose) -> None:
    assert judge("m.gguf", found) == purpose


def test_the_settings_overrule_the_file() -> None:
    chat_that_embeds = judge("m.gguf", facts(), KindChoice.EMBEDDING)
    assert chat_that_embeds == Purpose(ModelKind.EMBEDDING, Pooling.MEAN, WIDTH)
    last = judge("m.gguf", facts(), KindChoice.EMBEDDING, PoolingChoice.LAST)
    assert last.pooling is Pooling.LAST
    assert judge("m.gguf", facts(pooling=3), KindChoice.CHAT) == Purpose()
    ranks = facts(architecture="bert", causal=False, pooling=4, has_classifier=True)
    assert judge("m.gguf", ranks, KindChoice.EMBEDDING).pooling is Pooling.MEAN


@pytest.mark.parametrize(
    ("found", "kind", "why"),
    [
        (BERT, KindChoice.CHAT, "does not generate text"),
        (facts(), KindChoice.RERANK, "no classification head"),
        (facts(has_encoder=True), KindChoice.AUTO, "encoder"),
        (facts(has_decoder=False), KindChoice.EMBEDDING, "encoder"),
        (facts(is_diffusion=True), KindChoice.AUTO, "left to right"),
    ],
)
def test_what_a_model_cannot_be_is_one_line(found: Facts, kind: KindChoice, why: str) -> None:
    with pytest.raises(ModelFileError, match=why) as refused:
        judge("m.gguf", found, kind)
    assert "\n" not in refused.value.message
    assert refused.value.message.startswith("m.gguf: ")


def test_an_embedding_model_keeps_one_context_and_has_inputs_of_a_bounded_length() -> None:
    embeds = judge("m.gguf", BERT)
    assert (embeds.sequences(16), Purpose().sequences(16)) == (1, 16)
    assert embeds.context(None, 512) == 512
    assert embeds.context(None, 8192) == USUAL_INPUT
    assert embeds.context(None, 0) == USUAL_INPUT
    assert embeds.context(4096, 8192) == 4096
    assert Purpose().context(None, 8192) is None
