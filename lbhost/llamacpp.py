"""llama.cpp's C functions: the only file that imports llama_cpp.

It takes only that package's ctypes module: the package itself would import diskcache
(CVE-2025-69872) and numpy. Owns llama.cpp's log, of which only errors are kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

from lbhost import log


def _import_api() -> Any:
    """llama_cpp.llama_cpp without running the package's __init__."""
    if "llama_cpp" not in sys.modules:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("llama-cpp-python is not installed")
        package = types.ModuleType("llama_cpp")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


api: Any = _import_api()
"""The ctypes functions and structs of llama.h."""

_LEVEL_INFO, _LEVEL_WARN, _LEVEL_ERROR, _LEVEL_CONT = 2, 3, 4, 5

_collected: list[str] | None = None
_last_level = 0
_tells_all = False
_begun = ""
"""Of a line that has not ended yet."""


@api.llama_log_callback  # type: ignore[untyped-decorator]
def _on_log(level: int, text: bytes, _user: int) -> None:
    """llama.cpp's log: errors are kept, everything else is dropped unless all is to be told."""
    global _last_level
    if level != _LEVEL_CONT:
        _last_level = level
    if _last_level != _LEVEL_ERROR:
        if _tells_all and _last_level in (_LEVEL_INFO, _LEVEL_WARN):
            _tell_more(text.decode(errors="replace"))
        return
    line = text.decode(errors="replace").strip()
    if _collected is not None:
        _collected.append(line)
    else:
        tell(line)


def tell_all() -> None:
    """From now on what llama.cpp informs of is in the log, too, as debug lines. Its own debug lines
    are not: they may hold text."""
    global _tells_all
    _tells_all = True


def _tell_more(text: str) -> None:
    global _begun
    *lines, _begun = (_begun + text).split("\n")
    for line in lines:
        if len(line.strip(" .")) > 1:
            log.get().debug("llama.cpp: " + line.rstrip())


def tell(line: str) -> None:
    """Write an error line of llama.cpp's to the log, unless it is one of its progress dots."""
    if len(line) > 1:
        log.get().error("llama.cpp: " + line)


@functools.cache
def ggml(name: str, restype: Any, *argtypes: Any) -> Any:
    """A function of ggml, which libllama depends on, so that dlsym finds it through that."""
    function = getattr(api._lib, name)
    function.restype = restype
    function.argtypes = argtypes
    return function


def address(name: str) -> int:
    """Where a function of llama.h is, for another library that calls it."""
    found = ctypes.cast(getattr(api._lib, name), ctypes.c_void_p).value
    assert found is not None
    return found


api.llama_log_set(_on_log, ctypes.c_void_p(0))
api.llama_backend_init()


@contextlib.contextmanager
def collect_errors() -> Iterator[list[str]]:
    """Error lines go into the list, for an exception's message, instead of the log."""
    global _collected
    lines: list[str] = []
    _collected = lines
    try:
        yield lines
    finally:
        _collected = None


def reason_of(errors: list[str]) -> str:
    """The part of llama.cpp's error lines that says what is wrong, as ": reason"."""
    for line in errors:
        _, found, reason = line.partition("error loading model: ")
        if found:
            return ": " + reason
    return ": " + re.sub(r"^\w+: ", "", errors[0]) if errors else ""
