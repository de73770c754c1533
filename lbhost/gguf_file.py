"""A GGUF file's header: what it says of itself, read without its weights.

Owns what ggml has read of one file, until `close`. Knows nothing of models; llama.py does.
"""

from __future__ import annotations

import ctypes
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

from lbhost import regular_file
from lbhost.errors import ModelFileError, UsageError
from lbhost.llamacpp import ggml, reason_of


class _GgufInitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


_SCALARS: dict[int, tuple[str, Any]] = {
    0: ("u8", ctypes.c_uint8),
    1: ("i8", ctypes.c_int8),
    2: ("u16", ctypes.c_uint16),
    3: ("i16", ctypes.c_int16),
    4: ("u32", ctypes.c_uint32),
    5: ("i32", ctypes.c_int32),
    7: ("bool", ctypes.c_bool),
    10: ("u64", ctypes.c_uint64),
    11: ("i64", ctypes.c_int64),
}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9


class GgufFile:
    """One GGUF file's header. Raises ModelFileError unless all tensors lie within the file."""

    def __init__(self, path: Path, errors: list[str]) -> None:
        try:
            with regular_file.opened(path) as file:
                magic = file.read(4)
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError as error:
            raise ModelFileError(f"{path}: no such model file") from error
        except OSError as error:
            raise ModelFileError(f"{path}: cannot read it: {error.strerror}") from error
        except UsageError as error:
            raise ModelFileError(f"{path}: {error}") from error
        if magic != b"GGUF":
            raise ModelFileError(f"{path}: not a GGUF file")
        init = ggml("gguf_init_from_file", ctypes.c_void_p, ctypes.c_char_p, _GgufInitParams)
        self._ctx = init(os.fsencode(path), _GgufInitParams(True, None))
        if not self._ctx:
            reason = reason_of(errors)
            raise ModelFileError(f"{path}: truncated or damaged GGUF header{reason}")
        data = ggml("gguf_get_data_offset", ctypes.c_size_t, ctypes.c_void_p)(self._ctx)
        count = ggml("gguf_get_n_tensors", ctypes.c_int64, ctypes.c_void_p)(self._ctx)
        of = (ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64)
        offset, length = ggml("gguf_get_tensor_offset", *of), ggml("gguf_get_tensor_size", *of)
        sizes = [length(self._ctx, i) for i in range(count)]
        end = max((data + offset(self._ctx, i) + sizes[i] for i in range(count)), default=0)
        self.tensor_bytes = sum(sizes)
        self.parameters = int(sum(n * self._per_byte(i) for i, n in enumerate(sizes)))
        if end > size:
            self.close()
            raise ModelFileError(
                f"{path}: truncated: {size} bytes of at least {end}; download it again"
            )

    def _per_byte(self, tensor: int) -> Fraction:
        """Numbers in a byte of this tensor."""
        of = (ctypes.c_void_p, ctypes.c_int64)
        kind = ggml("gguf_get_tensor_type", ctypes.c_int, *of)(self._ctx, tensor)
        block = ggml("ggml_blck_size", ctypes.c_int64, ctypes.c_int)(kind)
        return Fraction(block, ggml("ggml_type_size", ctypes.c_size_t, ctypes.c_int)(kind))

    def close(self) -> None:
        ggml("gguf_free", None, ctypes.c_void_p)(self._ctx)
        self._ctx = None

    def has_tensor(self, name: str) -> bool:
        find = ggml("gguf_find_tensor", ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p)
        return bool(find(self._ctx, name.encode()) >= 0)

    def _find(self, key: str) -> tuple[int, int]:
        find = ggml("gguf_find_key", ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p)
        at = find(self._ctx, key.encode())
        if at < 0:
            return -1, -1
        kind = ggml("gguf_get_kv_type", ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
        return at, kind(self._ctx, at)

    def text(self, key: str) -> str | None:
        at, kind = self._find(key)
        if kind != _STRING:
            return None
        get = ggml("gguf_get_val_str", ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64)
        return str(get(self._ctx, at).decode(errors="replace"))

    def number(self, key: str) -> int | None:
        at, kind = self._find(key)
        if kind not in _SCALARS:
            return None
        name, ctype = _SCALARS[kind]
        get = ggml(f"gguf_get_val_{name}", ctype, ctypes.c_void_p, ctypes.c_int64)
        return int(get(self._ctx, at))

    def real(self, key: str) -> float | None:
        """None too where the number is of another type than float32."""
        at, kind = self._find(key)
        if kind != _FLOAT32:
            return None
        get = ggml("gguf_get_val_f32", ctypes.c_float, ctypes.c_void_p, ctypes.c_int64)
        return float(get(self._ctx, at))

    def has(self, key: str) -> bool:
        return self._find(key)[0] >= 0

    def numbers(self, key: str, count: int) -> list[int] | None:
        """A per-layer array; a single number stands for all `count` layers."""
        at, kind = self._find(key)
        if kind != _ARRAY:
            one = self.number(key)
            return None if one is None else [one] * count
        of = (ctypes.c_void_p, ctypes.c_int64)
        element = ggml("gguf_get_arr_type", ctypes.c_int, *of)(self._ctx, at)
        if element not in _SCALARS:
            return None
        n = ggml("gguf_get_arr_n", ctypes.c_size_t, *of)(self._ctx, at)
        data = ggml("gguf_get_arr_data", ctypes.c_void_p, *of)(self._ctx, at)
        array = (_SCALARS[element][1] * n).from_address(data)
        return [int(x) for x in array]
