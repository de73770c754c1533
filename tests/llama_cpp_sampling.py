"""llama.cpp's own samplers on logits that a test writes: what ours are compared with."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy
from numpy.typing import NDArray

from lbhost.llamacpp import api


def apply(sampler: Any, logits: NDArray[numpy.float32]) -> list[tuple[int, float]]:
    """(token, logit) of what a llama_sampler leaves of the logits, in its order. Frees it."""
    data = numpy.zeros(len(logits), [("id", "i4"), ("logit", "f4"), ("p", "f4")])
    data["id"], data["logit"] = numpy.arange(len(data)), logits
    pointer = ctypes.cast(data.ctypes.data, ctypes.POINTER(api.llama_token_data))
    candidates = api.llama_token_data_array(pointer, len(data), -1, False)
    api.llama_sampler_apply(sampler, ctypes.byref(candidates))
    left = [(one.id, one.logit) for one in candidates.data[: candidates.size]]
    api.llama_sampler_free(sampler)
    return left
