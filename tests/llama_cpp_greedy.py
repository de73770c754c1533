"""llama.cpp's own greedy continuation, with a context of its own and no lbhost around it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy

from lbhost.llama import Model
from lbhost.llamacpp import api


def text(model: Model, prompt: str, count: int, adapter: int | None = None) -> str:
    """The text of the most probable tokens after a prompt; none of them ends it.

    Args:
        adapter: which of the model's LoRA adapters; None: none.
    """
    tokens = model.vocab.tokenize(prompt, add_bos=True, parse_special=True)
    made = _tokens(model, tokens, count, adapter)
    return b"".join(model.vocab.piece(token) for token in made).decode(errors="replace")


def _tokens(model: Model, tokens: Sequence[int], count: int, adapter: int | None) -> list[int]:
    params = api.llama_context_default_params()
    params.n_ctx = len(tokens) + count
    params.n_threads = params.n_threads_batch = 1
    context = api.llama_init_from_model(model.handle, params)
    if adapter is not None:
        pointer, scale = model.adapters[adapter]
        pointers = (api.llama_adapter_lora_p_ctypes * 1)(pointer)
        api.llama_set_adapters_lora(context, pointers, 1, (ctypes.c_float * 1)(scale))
    made: list[int] = []
    given = list(tokens)
    while len(made) < count:
        array = (ctypes.c_int32 * len(given))(*given)
        assert api.llama_decode(context, api.llama_batch_get_one(array, len(given))) == 0
        row = api.llama_get_logits_ith(context, -1)
        logits = numpy.ctypeslib.as_array(row, (model.vocab.n_tokens,)).copy()
        logits[list(model.vocab.eog_tokens)] = -numpy.inf
        made.append(int(logits.argmax()))
        given = made[-1:]
    api.llama_free(context)
    return made
