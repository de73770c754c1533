"""KV states in a worker: a slot into a sealed memfd, and back (see state_file.py).

Owns what makes a state fit this context, and every check before llama.cpp reads one: it believes
what it is given. Decides nothing; see keeper.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.metadata
import mmap
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy
from numpy.typing import NDArray

from lbhost import state_file, wire
from lbhost.errors import StateError
from lbhost.llama import Model
from lbhost.llamacpp import api
from lbhost.state_file import Header
from lbhost.weights import FilePart, identify
from lbhost.worker.context import Decoded
from lbhost.worker.interfaces import ContextLike

_FOLD = 4096
"""8-byte words that a checksum folds the payload into before a CRC is taken of them: three times as
fast as the CRC of everything."""

_KEPT_BYTES = 32 << 20
"""A buffer of so many bytes at most is kept for the next save: 1,400 tokens of the starter
model."""


def identity_of(model: Model, weights: Sequence[FilePart], slots: int) -> bytes:
    """What a state must have in common with a context to be loaded there.

    The files of the weights, llama.cpp's library, and what shapes the KV: a build of another day or
    a context with another number of streams lays the bytes out differently. Which adapter computed
    it is in a state's scope (adapters.AdapterFile.scope).
    """
    library = Path(api._lib._name)
    parts = (
        importlib.metadata.version("llama-cpp-python"),
        identify([library]),
        tuple(weights) or identify([Path(model.path)]),
        ("gpu", model.gpu),
        ("flash attention", model.flash_attention),
        ("slots", slots),
    )
    return hashlib.blake2b(repr(parts).encode(), digest_size=state_file.IDENTITY_BYTES).digest()


_TEST = [1, 2, 3, 4]
"""Any tokens will do."""


class States:
    """Saves and loads the slots of one context."""

    def __init__(self, context: ContextLike, identity: bytes) -> None:
        self._context = context
        self.identity = identity
        self._buffer = _Buffer()
        self.movable = context.can_copy
        """False: this model's memory cannot be cut at any token, or `test` failed."""

    def test(self, slot: int) -> None:
        """Try it in a slot, which is empty afterwards.

        Raises:
            StateError: the logits after a restored and cut sequence are others; not `movable`.
        """
        context, tokens = self._context, wire.pack_tokens(_TEST)
        context.truncate(slot, 0)
        try:
            self._decode(slot, 0, tokens)
            fd, _ = self.save(slot, tokens, 0)
            try:
                context.truncate(slot, len(_TEST) - 1)
                before = self._decode(slot, len(_TEST) - 1, tokens[-4:])
                context.truncate(slot, 0)
                self.load(slot, fd, self.read(fd, 0))
            finally:
                os.close(fd)
            if not context.truncate(slot, len(_TEST) - 1):
                raise StateError("a restored sequence cannot be cut")
            after = self._decode(slot, len(_TEST) - 1, tokens[-4:])
            if not numpy.array_equal(before, after):
                raise StateError("a restored sequence goes on differently")
        except StateError:
            self.movable = False
            raise
        finally:
            context.truncate(slot, 0)

    def _decode(self, slot: int, position: int, tokens: bytes) -> NDArray[numpy.float32]:
        """The logits after the last of the tokens."""
        self._context.clear()
        index = self._context.add(slot, position, tokens, output=True)
        if self._context.decode() is not Decoded.OK:
            raise StateError("the test of saving and loading could not be computed")
        logits: NDArray[numpy.float32] = self._context.logits(index).copy()
        return logits

    def save(self, slot: int, tokens: bytes, scope: int) -> tuple[int, int]:
        """A sealed state of a slot whose KV holds `tokens`: its descriptor and its bytes.

        Raises:
            StateError: llama.cpp or the kernel refused.
        """
        size = self._context.state_bytes(slot)
        try:
            with self._buffer.of(size) as (address, payload):
                if not self._context.save(slot, address, size):
                    raise StateError("llama.cpp could not save the sequence")
                header = Header(self.identity, scope, tokens, size, _checksum(address, size))
                return _sealed(header, payload), header.size
        except OSError as error:
            raise StateError(f"no room for a state: {error.strerror}") from error

    def read(self, fd: int, scope: int) -> Header:
        """What a state holds, if it fits here.

        Raises:
            StateError: it is damaged, of another model, build or context, or somebody else's.
        """
        header = state_file.read(fd)
        if header.identity != self.identity:
            raise StateError("a state of another model, build or context")
        if header.scope != scope:
            raise StateError("a state of another scope")
        if len(header.tokens) // 4 > self._context.n_ctx:
            raise StateError("a state longer than the context")
        return header

    def load(self, slot: int, fd: int, header: Header) -> None:
        """Replace a slot's KV by a state's. The slot is empty if that fails.

        Args:
            header: what `read` said of it.

        Raises:
            StateError: its checksum is wrong, or llama.cpp refused it.
        """
        try:
            with _mapped(fd, header.size) as address:
                at = address + header.payload_at
                if _checksum(at, header.payload_bytes) != header.checksum:
                    raise StateError("a damaged state")
                if not self._context.load(slot, at, header.payload_bytes):
                    raise StateError("llama.cpp could not load the state")
        except (StateError, OSError) as error:
            self._context.truncate(slot, 0)
            if isinstance(error, OSError):
                raise StateError(f"a state cannot be mapped: {error.strerror}") from error
            raise


class _Buffer:
    """Memory that llama.cpp writes a state into before the kernel copies it to its file.

    It writes into a file's own mapping at half the speed: each page is cleared and mapped first.
    """

    def __init__(self) -> None:
        self._kept: mmap.mmap | None = None

    @contextlib.contextmanager
    def of(self, size: int) -> Iterator[tuple[int, memoryview]]:
        """Address and bytes. Raises OSError if there is no memory."""
        page = self._kept
        if page is None or len(page) < size:
            page = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):  # a kernel without large pages
                page.madvise(mmap.MADV_HUGEPAGE)
        if size <= _KEPT_BYTES:
            self._kept = page
        view = numpy.frombuffer(page, dtype=numpy.uint8)
        payload = memoryview(page)[:size]
        try:
            yield int(view.ctypes.data), payload
        finally:
            payload.release()
            del view


def _sealed(header: Header, payload: memoryview) -> int:
    """A state's file. Raises OSError if there is no room for it."""
    start = state_file.pack(header)
    fd = os.memfd_create("lbhost-state", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.pwrite(fd, start, 0)
        at = 0
        while at < len(payload):  # one call writes 2 GiB at most
            at += os.pwrite(fd, payload[at:], header.payload_at + at)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, state_file.SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def _mapped(fd: int, size: int) -> Iterator[int]:
    """The file's address in memory, to be read."""
    with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as page:
        view = numpy.frombuffer(page, dtype=numpy.uint8)
        try:
            yield int(view.ctypes.data)
        finally:
            del view  # or the page could not be unmapped


def _checksum(address: int, size: int) -> int:
    """Of a payload. The words are summed in columns, the columns' sums and the rest hashed."""
    payload = numpy.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    whole = size // (8 * _FOLD) * 8 * _FOLD
    columns = payload[:whole].view(numpy.uint64).reshape(-1, _FOLD).sum(axis=0)
    return zlib.crc32(payload[whole:].tobytes(), zlib.crc32(columns.tobytes()))
