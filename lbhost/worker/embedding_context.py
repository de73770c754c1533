"""A llama.cpp context that turns each of some inputs into one vector, all of them in one batch.

Owns the context's memory and the batch. Decides nothing: which inputs go together is the engine's
business (embedding_engine.py, packing.py). Nothing is kept from one batch to the next.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy
from numpy.typing import NDArray

from lbhost.errors import StartupError
from lbhost.llama import Model
from lbhost.llamacpp import api
from lbhost.purpose import Pooling
from lbhost.worker.llama_context import Decoded, LlamaContext, TokenBatch

CPU_TOKENS = 128
"""Of a batch, unless one input is longer. llama.cpp computes the attention of all inputs of a batch
as one matrix, so that larger batches cost more than they spare."""

GPU_TOKENS = 4096

MOST_INPUTS = 64
"""In a batch."""

TILE = 64
"""Tokens from which on ggml computes flash attention in tiles; below, it is slower than none."""

FILLED_FROM = 50
"""A batch of so many tokens is sooner done with some for nothing that fill a tile."""

_FLASH_AUTO, _FLASH_OFF = -1, 0
_NUMBERS = {
    Pooling.MEAN: api.LLAMA_POOLING_TYPE_MEAN,
    Pooling.CLS: api.LLAMA_POOLING_TYPE_CLS,
    Pooling.LAST: api.LLAMA_POOLING_TYPE_LAST,
    Pooling.RANK: 4,  # the binding has no name for it
}


class _Pooled(LlamaContext):
    """A context that pools; the batch is somebody else's."""

    def __init__(self, ctx: Any) -> None:
        super().__init__(ctx)
        self._memory = api.llama_get_memory(ctx)
        """None: the model has none, and is computed by llama_encode."""

    def pool(self, batch: TokenBatch) -> Decoded:
        """Compute a batch of whole sequences."""
        if not self._memory:
            return self._compute(api.llama_encode, batch.filled())
        result = self._compute(api.llama_decode, batch.filled())
        api.llama_memory_clear(self._memory, False)
        return result

    def vector(self, number: int, width: int) -> NDArray[numpy.float32]:
        """A copy of a sequence's, which is gone with the next batch."""
        pointer = api.llama_get_embeddings_seq(self._ctx, number)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        assert address is not None, "no vector was computed for this sequence"
        return numpy.ctypeslib.as_array((ctypes.c_float * width).from_address(address)).copy()


def _made(model: Model, pooling: Pooling, tokens: int, threads: int, *, flash: bool) -> Any:
    """A llama_context for batches of so many tokens. Raises StartupError."""
    params = api.llama_context_default_params()
    # An input must be computed in one piece, or what is pooled would be a part of it.
    params.n_ctx = params.n_batch = params.n_ubatch = tokens
    params.n_seq_max = MOST_INPUTS
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn_type = _FLASH_AUTO if flash else _FLASH_OFF
    params.kv_unified = True  # room for one batch, not for as many tokens of every input
    params.embeddings = True
    params.pooling_type = _NUMBERS[pooling]
    params.no_perf = True
    ctx = api.llama_init_from_model(model.handle, params)
    if not ctx:
        raise StartupError(
            f"llama.cpp cannot make a context for inputs of {tokens} tokens; "
            "try a smaller --ctx-size"
        )
    return ctx


class EmbeddingContext(_Pooled):
    """One llama_context for inputs of up to `n_ctx` tokens.

    Raises:
        StartupError: llama.cpp cannot make it, most likely for want of memory.
    """

    def __init__(self, model: Model, *, pooling: Pooling, n_ctx: int, threads: int) -> None:
        self.model = model
        self.n_ctx = n_ctx
        self.n_vocab = model.vocab.n_tokens
        self.usual_tokens = GPU_TOKENS if model.gpu else CPU_TOKENS
        """Of a batch of several inputs."""
        self.most_inputs = MOST_INPUTS
        self.scores = pooling is Pooling.RANK
        """Whether what comes out is a score, and no vector."""
        size = max(n_ctx, self.usual_tokens)
        flash = model.flash_attention
        super().__init__(_made(model, pooling, size, threads, flash=flash))
        self._short: _Pooled | None = None
        """Computes batches that fill no tile, without flash attention; None: all are alike."""
        if flash and not model.gpu:
            self._short = _Pooled(_made(model, pooling, TILE, threads, flash=False))
        self._width = 1 if self.scores else model.n_embd_out
        self._batch = TokenBatch(size, MOST_INPUTS, max(n_ctx, TILE - FILLED_FROM))

    def compute(self, inputs: Sequence[bytes]) -> tuple[Decoded, list[NDArray[numpy.float32]]]:
        """The vector of each input, or its score, as the model has it; not normalised.

        Args:
            inputs: token ids, packed as int32; at most `most_inputs`, and several have at most
                `usual_tokens` together.
        """
        batch = self._batch
        batch.clear()
        for number, packed in enumerate(inputs):
            batch.add(number, 0, packed, output=True, every=True)
        computing: _Pooled = self
        if self._short is not None:
            if FILLED_FROM <= batch.used < TILE:
                # A sequence of its own: no other sees it.
                rest = inputs[-1][-4:] * (TILE - batch.used)
                batch.add(len(inputs), 0, rest, output=True, every=True)
            elif batch.used < TILE:
                computing = self._short
        result = computing.pool(batch)
        if result is not Decoded.OK:
            return result, []
        return result, [computing.vector(number, self._width) for number in range(len(inputs))]

    def set_threads(self, count: int) -> None:
        super().set_threads(count)
        if self._short is not None:
            self._short.set_threads(count)

    def watch(self, callback: Callable[[], bool] | None) -> None:
        super().watch(callback)
        if self._short is not None:
            self._short.watch(callback)

    def close(self) -> None:
        if self._short is not None:
            self._short.close()
        super().close()
