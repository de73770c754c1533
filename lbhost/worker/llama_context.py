"""What every llama.cpp context of a worker has: threads, a watch on what runs, an end.

The two kinds are context.py's, which generates, and embedding_context.py's. Decides nothing.
"""

from __future__ import annotations

import ctypes
import enum
import sys
from collections.abc import Callable
from typing import Any

from lbhost.llamacpp import api, collect_errors, tell

_POINTER = ctypes.sizeof(ctypes.c_void_p)
_ABORTED = 2
_NEVER = api.ggml_abort_callback(0)


class Decoded(enum.Enum):
    """How a decode went."""

    OK = enum.auto()
    NO_ROOM = enum.auto()
    """No free KV cells. Nothing was changed."""
    ABORTED = enum.auto()
    """The watch said so. Micro-batches that were through remain in the KV."""
    FAILED = enum.auto()
    """What the KV of the batch's slots holds is unknown."""


class LlamaContext:
    """Owns a llama_context, `_ctx`."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self._watch: Any = None

    def set_threads(self, count: int) -> None:
        """Threads of the decodes from now on; costs some microseconds."""
        api.llama_set_n_threads(self._ctx, count, count)

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

    def _compute(self, run: Callable[[Any, Any], int], batch: Any) -> Decoded:
        """llama_decode or llama_encode. Blocks for as long as that takes."""
        with collect_errors() as errors:
            code = run(self._ctx, batch)
        if code != _ABORTED:  # clients leave all the time: to llama.cpp that is three errors
            for line in errors:
                tell(line)
        if code == 0:
            return Decoded.OK
        if code == 1:
            return Decoded.NO_ROOM
        return Decoded.ABORTED if code == _ABORTED else Decoded.FAILED


class TokenBatch:
    """The one llama_batch of a context, refilled for every decode.

    Args:
        size: tokens that it holds.
        sequences: numbers that they may have.
        positions: of a sequence, at most.
    """

    def __init__(self, size: int, sequences: int, positions: int) -> None:
        self.size = size
        self.used = 0
        self._positions_end = positions
        self._tokens = (ctypes.c_int32 * size)()
        self._positions = (ctypes.c_int32 * size)()
        self._counts = (ctypes.c_int32 * size)(*([1] * size))
        self._seqs = (ctypes.POINTER(ctypes.c_int32) * size)()
        self._outputs = (ctypes.c_int8 * size)()
        # constant arrays to copy runs of positions and sequences from
        self._ramp = (ctypes.c_int32 * (positions + 1))(*range(positions + 1))
        self._ids = (ctypes.c_int32 * sequences)(*range(sequences))
        first = ctypes.addressof(self._ids)
        self._runs = [
            (first + 4 * number).to_bytes(_POINTER, sys.byteorder) * size
            for number in range(sequences)
        ]
        self._tokens_at = ctypes.addressof(self._tokens)
        self._positions_at = ctypes.addressof(self._positions)
        self._seqs_at = ctypes.addressof(self._seqs)
        self._outputs_at = ctypes.addressof(self._outputs)
        self._ramp_at = ctypes.addressof(self._ramp)
        self._struct = api.llama_batch(
            n_tokens=0,
            token=self._tokens,
            pos=self._positions,
            n_seq_id=self._counts,
            seq_id=self._seqs,
            logits=self._outputs,
        )

    def clear(self) -> None:
        """Empty it."""
        self.used = 0

    def add(
        self,
        sequence: int,
        position: int,
        packed: bytes,
        *,
        output: bool,
        every: bool = False,
        padding: int = 0,
    ) -> int:
        """Put a run of tokens (int32, native order) of one sequence into it.

        Args:
            output: whether something is wanted after its last token; `every`: after all.
            padding: so many more tokens follow it, with nothing wanted.

        Returns:
            The last token's index, without the padding.

        Raises:
            ValueError: more tokens than it holds, or positions beyond the end.
        """
        last = self.used + len(packed) // 4 - 1
        packed += packed[-4:] * padding
        at, count = self.used, len(packed) // 4
        if at + count > self.size or position + count > self._positions_end:
            raise ValueError(f"{count} tokens at {position} do not fit after {at} in the batch")
        ctypes.memmove(self._tokens_at + 4 * at, packed, 4 * count)
        ctypes.memmove(self._positions_at + 4 * at, self._ramp_at + 4 * position, 4 * count)
        ctypes.memmove(self._seqs_at + _POINTER * at, self._runs[sequence], _POINTER * count)
        ctypes.memset(self._outputs_at + at, every, count)
        self._outputs[last] = output or every
        self.used = at + count
        return last

    def filled(self) -> Any:
        """As llama.cpp takes it."""
        self._struct.n_tokens = self.used
        return self._struct
