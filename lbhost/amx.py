"""Whether ggml may use its AMX matrix kernels, found out by trying them in a child process.

GCC 12 drops the stores to the tile configuration before `_tile_loadconfig`: in a build by it
every decode of a quantised model ends in SIGSEGV. Where the kernels work they prefill Q4_1
3.5 times as fast as AVX-512, so that forbidding them everywhere is no answer.

ggml decides for them once a process, when its buffer types are first listed, by asking Linux
for the tile registers. Linux refuses (ENOSPC) while an alternate signal stack is too small to
hold them, and ggml takes its other kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lbhost import log
from lbhost.llamacpp import ggml

_F32, _Q8_0 = 0, 8
_ROWS = 64
_COLUMNS = 256
_MEMORY = 1 << 20
_CPU = 0
_pointer, _size, _int, _long = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int64


@functools.cache
def settle() -> None:
    """Forbid the AMX kernels if they crash here. Call before any weights are loaded."""
    if not _has_amx() or _survives_trial():
        return
    log.get().warning(
        "the AMX kernels of this llama.cpp build crash (GCC 12), going on without them: "
        "reinstall llama-cpp-python with a newer compiler for faster prefill"
    )
    with _no_tile_registers(), _stderr_silenced():  # ggml prints "AMX is not ready to be used!"
        _extra_buffer_types()


def _has_amx() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    with cpuinfo.open() as lines:
        return any("amx_int8" in line for line in lines if line.startswith("flags"))


def _survives_trial() -> bool:
    """Multiply a little matrix with the AMX kernels in a child; whether it lived."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    code = 1
    try:
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _multiply()
        code = 0
    finally:
        os._exit(code)


def _multiply() -> None:
    """One ggml_mul_mat with its weights in the AMX buffer type, if there is one."""
    name = ggml("ggml_backend_buft_name", ctypes.c_char_p, _pointer)
    found = [buft for buft in _extra_buffer_types() if name(buft) == b"AMX"]
    if not found:
        return
    context = ggml("ggml_init", _pointer, _InitParams)(_InitParams(_MEMORY, None, True))
    make = ggml("ggml_new_tensor_2d", _pointer, _pointer, _int, _long, _long)
    weights = make(context, _Q8_0, _COLUMNS, _ROWS)
    inputs = make(context, _F32, _COLUMNS, _ROWS)
    product = ggml("ggml_mul_mat", _pointer, _pointer, _pointer, _pointer)(context, weights, inputs)
    buffer = ggml("ggml_backend_buft_alloc_buffer", _pointer, _pointer, _size)(found[0], _MEMORY)
    base = ggml("ggml_backend_buffer_get_base", _pointer, _pointer)(buffer)
    ggml("ggml_backend_tensor_alloc", _int, _pointer, _pointer, _pointer)(buffer, weights, base)
    length = ggml("ggml_nbytes", _size, _pointer)(weights)
    put = ggml("ggml_backend_tensor_set", None, _pointer, _pointer, _size, _size)
    put(weights, ctypes.create_string_buffer(length), 0, length)
    backend = ggml("ggml_backend_dev_init", _pointer, _pointer, ctypes.c_char_p)(_cpu(), None)
    ggml("ggml_backend_alloc_ctx_tensors", _pointer, _pointer, _pointer)(context, backend)
    length = ggml("ggml_nbytes", _size, _pointer)(inputs)
    put(inputs, ctypes.create_string_buffer(length), 0, length)
    graph = ggml("ggml_new_graph", _pointer, _pointer)(context)
    ggml("ggml_build_forward_expand", None, _pointer, _pointer)(graph, product)
    ggml("ggml_backend_graph_compute", _int, _pointer, _pointer)(backend, graph)


class _InitParams(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("size", _size), ("buffer", _pointer), ("no_alloc", ctypes.c_bool))


class _SignalStack(ctypes.Structure):
    """stack_t of sigaltstack(2)."""

    _fields_ = (("pointer", _pointer), ("flags", _int), ("size", _size))


def _cpu() -> Any:
    return ggml("ggml_backend_dev_by_type", _pointer, _int)(_CPU)


def _extra_buffer_types() -> list[Any]:
    """What ggml may repack weights into. The first call in a process settles it."""
    device = _cpu()
    registry = ggml("ggml_backend_dev_backend_reg", _pointer, _pointer)(device)
    look_up = ggml("ggml_backend_reg_get_proc_address", _pointer, _pointer, ctypes.c_char_p)
    address = look_up(registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return []
    array = ctypes.CFUNCTYPE(ctypes.POINTER(_pointer), _pointer)(address)(device)
    found: list[Any] = []
    while array and array[len(found)]:
        found.append(array[len(found)])
    return found


@contextlib.contextmanager
def _no_tile_registers() -> Iterator[None]:
    memory = ctypes.create_string_buffer(4096)
    small, before = _SignalStack(ctypes.addressof(memory), 0, len(memory)), _SignalStack()
    libc = ctypes.CDLL(None)
    libc.sigaltstack(ctypes.byref(small), ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


@contextlib.contextmanager
def _stderr_silenced() -> Iterator[None]:
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
