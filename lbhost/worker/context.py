"""A llama.cpp context with its KV cache, and the one batch that is refilled every step.

Owns the context's memory and the batch arrays. Decides nothing: which tokens go where is the
engine's business (engine.py, batch.py). A slot is a sequence with a KV stream of its own.
"""

from __future__ import annotations

import ctypes
import enum
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy
from numpy.typing import NDArray

from lbhost.errors import StartupError
from lbhost.llama import Model
from lbhost.llamacpp import api, collect_errors, tell
from lbhost.worker.batch import TILE

CPU_CHUNK = 2 * TILE
"""Prompt tokens in one decode at most. 64 go as fast as 512 on a CPU core, and the compute buffer
grows with it."""

GPU_BATCH = 512

_LINE = 16
"""4-byte numbers in a cache line. ggml aligns tensors to 32 bytes and lays the graph's inputs,
some numbers per token and per output, before its activations: after half a line of them every
vector of AVX-512 straddles two lines, and prefill takes 15% longer."""

_FLASH_AUTO, _FLASH_OFF = -1, 0
_POINTER = ctypes.sizeof(ctypes.c_void_p)
_ABORTED = 2
_NEVER = api.ggml_abort_callback(0)


def _batch_size(slots: int) -> int:
    """Tokens of a CPU's batch: the largest chunk beside decodes, in whole cache lines.

    llama.cpp lays its graph out for so many, rounded up to a multiple of the slots.
    """
    unit = math.lcm(_LINE, slots)
    return _multiple(CPU_CHUNK + 1 + slots, unit if unit <= CPU_CHUNK else _LINE)


def _multiple(count: int, unit: int) -> int:
    return -(-count // unit) * unit


class Decoded(enum.Enum):
    """How a decode went."""

    OK = enum.auto()
    NO_ROOM = enum.auto()
    """No free KV cells. Nothing was changed."""
    ABORTED = enum.auto()
    """The watch said so. Micro-batches that were through remain in the KV."""
    FAILED = enum.auto()
    """What the KV of the batch's slots holds is unknown."""


class Context:
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
        self._ctx: Any = api.llama_init_from_model(model.handle, params)
        if not self._ctx:
            raise StartupError(
                f"llama.cpp cannot make a context of {slots} x {n_ctx} tokens; "
                "try a smaller --ctx-size or fewer --slots"
            )
        self.tiled = model.flash_attention and not model.gpu
        """Whether attention is computed in tiles; see batch.TILE."""
        self._memory = api.llama_get_memory(self._ctx)
        self.batch_size = int(api.llama_n_batch(self._ctx))
        self.stream_bytes = int(api.llama_n_ctx_seq(self._ctx)) * model.kv_bytes_per_token
        self._allocate(self.batch_size)
        self._watch: Any = None
        self._rows: dict[int, NDArray[numpy.float32]] = {}
        """Rows of llama.cpp's output buffer by address; it has one a slot, and grows once up to
        `max_outputs`."""

    def _allocate(self, size: int) -> None:
        """The batch's arrays, and constant ones to copy runs of positions and slots from."""
        self._tokens = (ctypes.c_int32 * size)()
        self._positions = (ctypes.c_int32 * size)()
        self._counts = (ctypes.c_int32 * size)(*([1] * size))
        self._seqs = (ctypes.POINTER(ctypes.c_int32) * size)()
        self._outputs = (ctypes.c_int8 * size)()
        self._ramp = (ctypes.c_int32 * (self.n_ctx + 1))(*range(self.n_ctx + 1))
        self._slot_ids = (ctypes.c_int32 * self.slots)(*range(self.slots))
        first = ctypes.addressof(self._slot_ids)
        self._slot_runs = [
            (first + 4 * slot).to_bytes(_POINTER, sys.byteorder) * size
            for slot in range(self.slots)
        ]
        self._tokens_at = ctypes.addressof(self._tokens)
        self._positions_at = ctypes.addressof(self._positions)
        self._seqs_at = ctypes.addressof(self._seqs)
        self._outputs_at = ctypes.addressof(self._outputs)
        self._ramp_at = ctypes.addressof(self._ramp)
        self._batch = api.llama_batch(
            n_tokens=0,
            token=self._tokens,
            pos=self._positions,
            n_seq_id=self._counts,
            seq_id=self._seqs,
            logits=self._outputs,
        )
        self._used = 0

    def set_threads(self, count: int) -> None:
        """Threads of the decodes from now on; costs some microseconds."""
        api.llama_set_n_threads(self._ctx, count, count)

    def clear(self) -> None:
        """Empty the batch; the KV stays."""
        self._used = 0

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
        last = self._used + len(packed) // 4 - 1
        packed += packed[-4:] * padding
        at, count = self._used, len(packed) // 4
        if at + count > self.batch_size or position + count > self.n_ctx:
            raise ValueError(f"{count} tokens at {position} do not fit after {at} in the batch")
        ctypes.memmove(self._tokens_at + 4 * at, packed, 4 * count)
        ctypes.memmove(self._positions_at + 4 * at, self._ramp_at + 4 * position, 4 * count)
        ctypes.memmove(self._seqs_at + _POINTER * at, self._slot_runs[slot], _POINTER * count)
        ctypes.memset(self._outputs_at + at, every, count)
        self._outputs[last] = output or every
        self._used = at + count
        return last

    def decode(self) -> Decoded:
        """Compute the batch. Blocks for as long as that takes."""
        self._batch.n_tokens = self._used
        with collect_errors() as errors:
            code = api.llama_decode(self._ctx, self._batch)
        if code != _ABORTED:  # clients leave all the time: to llama.cpp that is three errors
            for line in errors:
                tell(line)
        if code == 0:
            return Decoded.OK
        if code == 1:
            return Decoded.NO_ROOM
        return Decoded.ABORTED if code == _ABORTED else Decoded.FAILED

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

    def watch(self, callback: Callable[[], bool] | None) -> None:
        """Have `callback` asked between the operations of a decode; True aborts it.

        It is called for each of the graph's operations, some 1000 times a decode, from within
        llama_decode: it must be quick and must not touch the context.
        """
        if callback is None:
            self._watch = None
            api.llama_set_abort_callback(self._ctx, _NEVER, None)
            return
        ask = callback
        self._watch = api.ggml_abort_callback(lambda _data: ask())
        api.llama_set_abort_callback(self._ctx, self._watch, None)

    def close(self) -> None:
        """Free the context. The object is unusable after."""
        api.llama_free(self._ctx)
        self._ctx = None
