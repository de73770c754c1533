"""A llama.cpp context that turns each of some inputs into one vector, all of them in one batch.

Owns the context's memory and the batch. Decides nothing: which inputs go together is the engine's
business (embedding_engine.py, packing.py). Nothing is kept from one batch to the next.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
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

_FLASH_AUTO, _FLASH_OFF = -1, 0
_NUMBERS = {
    Pooling.MEAN: api.LLAMA_POOLING_TYPE_MEAN,
    Pooling.CLS: api.LLAMA_POOLING_TYPE_CLS,
    Pooling.LAST: api.LLAMA_POOLING_TYPE_LAST,
    Pooling.RANK: 4,  # the binding has no name for it
}


class EmbeddingContext(LlamaContext):
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
        params = api.llama_context_default_params()
        # An input must be computed in one piece, or what is pooled would be a part of it.
        params.n_ctx = params.n_batch = params.n_ubatch = size
        params.n_seq_max = MOST_INPUTS
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = _FLASH_AUTO if model.flash_attention else _FLASH_OFF
        params.kv_unified = True  # room for one batch, not for n_ctx tokens of every input
        params.embeddings = True
        params.pooling_type = _NUMBERS[pooling]
        params.no_perf = True
        ctx: Any = api.llama_init_from_model(model.handle, params)
        if not ctx:
            raise StartupError(
                f"llama.cpp cannot make a context for inputs of {n_ctx} tokens; "
                "try a smaller --ctx-size"
            )
        super().__init__(ctx)
        self._memory = api.llama_get_memory(ctx)
        """None: the model has none, and is computed by llama_encode."""
        self._width = 1 if self.scores else model.n_embd_out
        self._batch = TokenBatch(size, MOST_INPUTS, n_ctx)

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
        if self._memory:
            result = self._compute(api.llama_decode, batch.filled())
            api.llama_memory_clear(self._memory, False)
        else:
            result = self._compute(api.llama_encode, batch.filled())
        if result is not Decoded.OK:
            return result, []
        return result, [self._vector(number) for number in range(len(inputs))]

    def _vector(self, number: int) -> NDArray[numpy.float32]:
        """A copy of llama.cpp's own, which is gone with the next batch."""
        pointer = api.llama_get_embeddings_seq(self._ctx, number)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        assert address is not None, "no vector was computed for this sequence"
        return numpy.ctypeslib.as_array((ctypes.c_float * self._width).from_address(address)).copy()
