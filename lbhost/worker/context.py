"""A llama.cpp context with its KV cache, and the one batch that is refilled every step.

Owns the context's memory and the batch arrays. Decides nothing: which tokens go where is the
engine's business (engine.py, batch.py). A slot is a sequence with a KV stream of its own.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy
from numpy.typing import NDArray

from lbhost.errors import StartupError
from lbhost.llama import Model
from lbhost.llamacpp import api, collect_errors, tell
from lbhost.worker.batch import TILE
from lbhost.worker.llama_context import Decoded as Decoded
from lbhost.worker.llama_context import LlamaContext, TokenBatch

CPU_CHUNK = 2 * TILE
"""Prompt tokens in one decode at most. 64 go as fast as 512 on a CPU core, and the compute buffer
grows with it."""

GPU_BATCH = 512

_LINE = 16
"""4-byte numbers in a cache line. ggml aligns tensors to 32 bytes and lays the graph's inputs,
some numbers per token and per output, before its activations: after half a line of them every
vector of AVX-512 straddles two lines, and prefill takes 15% longer."""

_FLASH_AUTO, _FLASH_OFF = -1, 0


def _batch_size(slots: int) -> int:
    """Tokens of a CPU's batch: the largest chunk beside decodes, in whole cache lines.

    llama.cpp lays its graph out for so many, rounded up to a multiple of the slots.
    """
    unit = math.lcm(_LINE, slots)
    return _multiple(CPU_CHUNK + 1 + slots, unit if unit <= CPU_CHUNK else _LINE)


def _multiple(count: int, unit: int) -> int:
    return -(-count // unit) * unit


class Context(LlamaContext):
    """One llama_context over `slots` sequences of `n_ctx` tokens each.

    Use: `clear`, then `add` in rising slot order, `decode`, then `logits` with the indices that
    the adding returned.

    Raises:
        StartupError: llama.cpp cannot make it, most likely for want of memory.
    """

    def __init__(self, model: Model, *, slots: int, n_ctx: int, threads: int) -> None:
        self.slots = slots
        self.n_ctx = n_ctx
        self.n_swa = model.n_swa
        self.recurrent = model.recurrent
        self.n_vocab = model.vocab.n_tokens
        self.model = model
        self._adapters: list[tuple[Any, Any]] = [
            ((api.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(scale))
            for adapter, scale in model.adapters
        ]
        self.adapters = len(self._adapters)
        """How many LoRA adapters there are to compute with."""
        size = max(GPU_BATCH, slots) if model.gpu else _batch_size(slots)
        params = api.llama_context_default_params()
        params.n_ctx = slots * n_ctx
        params.n_batch = params.n_ubatch = size
        params.n_seq_max = slots
        # The default reserves logits for every token.
        self.max_outputs = params.n_outputs_max = _multiple(slots, _LINE)
        """Tokens of a batch that may have logits; at least one a slot."""
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = _FLASH_AUTO if model.flash_attention else _FLASH_OFF
        params.kv_unified = False  # in a unified cache every sequence pays for the cells of all
        params.no_perf = True
        ctx: Any = api.llama_init_from_model(model.handle, params)
        if not ctx:
            raise StartupError(
                f"llama.cpp cannot make a context of {slots} x {n_ctx} tokens; "
                "try a smaller --ctx-size or fewer --slots"
            )
        super().__init__(ctx)
        self.tiled = model.flash_attention and not model.gpu
        """Whether attention is computed in tiles; see batch.TILE."""
        self._memory = api.llama_get_memory(self._ctx)
        self.batch_size = int(api.llama_n_batch(self._ctx))
        self.stream_bytes = int(api.llama_n_ctx_seq(self._ctx)) * model.kv_bytes_per_token
        self._batch = TokenBatch(self.batch_size, slots, n_ctx)
        self._rows: dict[int, NDArray[numpy.float32]] = {}
        """Rows of llama.cpp's output buffer by address; it has one a slot, and grows once up to
        `max_outputs`."""

    def adapt(self, adapter: int) -> None:
        """Compute with this LoRA adapter, from 1 on, from the next decode on; 0: with none.

        That decode takes longer: llama.cpp lays its graph out anew.
        """
        pointers, scales = self._adapters[adapter - 1] if adapter else (None, None)
        api.llama_set_adapters_lora(self._ctx, pointers, int(adapter > 0), scales)

    def clear(self) -> None:
        """Empty the batch; the KV stays."""
        self._batch.clear()

    def add(
        self,
        slot: int,
        position: int,
        packed: bytes,
        *,
        output: bool,
        every: bool = False,
        padding: int = 0,
    ) -> int:
        """Put a run of tokens (int32, native order) of one slot into the batch.

        `output` asks for the logits after its last token, `every` for those after all of them; a
        batch has `max_outputs` at most. Returns the last token's index in the batch, for `logits`.
        `padding` tokens follow it, which the caller truncates after the decode.

        Raises:
            ValueError: more than `batch_size` tokens, or positions beyond `n_ctx`.
        """
        return self._batch.add(slot, position, packed, output=output, every=every, padding=padding)

    def decode(self) -> Decoded:
        """Compute the batch. Blocks for as long as that takes."""
        return self._compute(api.llama_decode, self._batch.filled())

    def logits(self, index: int) -> NDArray[numpy.float32]:
        """The logits at a batch index, in llama.cpp's own buffer: gone with the next decode."""
        address = ctypes.cast(api.llama_get_logits_ith(self._ctx, index), ctypes.c_void_p).value
        assert address is not None, "no logits were asked for at this index"
        row = self._rows.get(address)
        if row is None:
            row = numpy.ctypeslib.as_array((ctypes.c_float * self.n_vocab).from_address(address))
            self._rows[address] = row
        return row

    def truncate(self, slot: int, length: int) -> bool:
        """Keep only a slot's first `length` positions.

        False when the memory cannot be cut there (recurrent states; a sliding window that has
        already dropped what the next token would need): the slot is empty then.
        """
        memory = self._memory
        kept = length > 0 and bool(api.llama_memory_seq_rm(memory, slot, length, -1))
        if kept and self.n_swa:
            oldest = api.llama_memory_seq_pos_min(memory, slot)
            kept = oldest <= max(0, length - self.n_swa)
        if kept:
            kept = api.llama_memory_seq_pos_max(memory, slot) == length - 1
        if not kept:
            api.llama_memory_seq_rm(memory, slot, -1, -1)
        return kept or length == 0

    @property
    def can_copy(self) -> bool:
        """Whether `copy` works for this kind of memory."""
        return not (self.recurrent or self.n_swa)

    def copy(self, source: int, target: int) -> None:
        """Replace a slot's KV by another's. Costs a memcpy of the whole stream, used or not."""
        api.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def state_bytes(self, slot: int) -> int:
        """Bytes that `save` needs for a slot."""
        return int(api.llama_state_seq_get_size(self._ctx, slot))

    def save(self, slot: int, address: int, size: int) -> bool:
        """Write a slot's KV to memory. False: it does not fit."""
        to = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
        return bool(api.llama_state_seq_get_data(self._ctx, to, size, slot) == size)

    def load(self, slot: int, address: int, size: int) -> bool:
        """Replace a slot's KV by what `save` wrote. False: it cannot be, and the slot is empty.

        llama.cpp believes what it reads: only what a context like this one wrote may be given.
        """
        source = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
        with collect_errors() as errors:
            read = api.llama_state_seq_set_data(self._ctx, source, size, slot)
        for line in errors:
            tell(line)
        if read != size:
            api.llama_memory_seq_rm(self._memory, slot, -1, -1)
        return bool(read == size)
