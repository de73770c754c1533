"""Whether flash attention pays on a CPU with this build of llama.cpp.

It does, and prefill of 128 tokens takes a quarter less time, unless ggml computes in AVX-512 FP16:
that takes half-precision numbers 128 at a time and the rest one by one through a table, and a
head of 64 is all rest. Four sequences of 500 tokens then decode in 89 ms a step with and in 36 ms
without flash attention (Xeon, GCC 12). scripts/lib/compiler_fixes.h keeps our own builds from it.
"""

from __future__ import annotations

import ctypes
import functools
import math

from lbhost.llamacpp import ggml

_STEP = 128
"""Numbers that ggml's AVX-512 FP16 loops take at a time (GGML_F16_STEP)."""

_HALF_256 = 0x5C00


def pays(head_size: int) -> bool:
    """Whether to ask for flash attention on CPUs, for heads of so many numbers."""
    return head_size % _STEP == 0 or not uses_fp16_vectors()


@functools.cache
def uses_fp16_vectors() -> bool:
    """Whether ggml was built to compute in AVX-512 FP16. llama.cpp does not tell, its sums do:
    128 times 256 times 256 is infinity in half precision.
    """
    return math.isinf(_sum_of_squares(_HALF_256))


def _sum_of_squares(half: int) -> float:
    """Of _STEP times the same half-precision number, given by its bits, as ggml computes it."""
    try:
        dot = ggml(
            "ggml_vec_dot_f16",
            None,
            *(ctypes.c_int, ctypes.POINTER(ctypes.c_float), ctypes.c_size_t),
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
        )
    except AttributeError:  # a build that loads its kernels at run time does not show them
        return 0.0
    numbers = (ctypes.c_uint16 * _STEP)(*[half] * _STEP)
    total = ctypes.c_float(0.0)
    dot(_STEP, ctypes.byref(total), 0, numbers, 0, numbers, 0, 1)
    return total.value
