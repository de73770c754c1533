"""What a KV state is: a sealed memfd that says what it holds. The layout, and how it is read.

A state is the KV cache of one sequence: its exact tokens, and the bytes that llama.cpp needs to go
on after the last of them. A worker makes it (worker/states.py), the gateway keeps it
(gateway/states/), any worker that computes in the same way may take it over. Nothing can change it
once it is sealed, so that whoever has looked at it can rely on what it saw.

Layout: a header, the tokens (wire.pack_tokens), padding, the payload.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct

import msgspec

from lbhost.errors import StateError

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL

MAX_TOKENS = 1 << 20
"""As many as a slot can be asked to hold."""

IDENTITY_BYTES = 32

_MAGIC = b"LBSTATE1"
_HEADER = struct.Struct(f"<8sIIQQQ{IDENTITY_BYTES}s")
_ALIGN = 4096


class Header(msgspec.Struct, frozen=True):
    """What a state says of itself."""

    identity: bytes
    """IDENTITY_BYTES: of the model, the build and the context; see worker/states.py."""
    scope: int
    """Who may use it; see wire.Submit."""
    tokens: bytes
    """wire.pack_tokens; the payload is the KV of all of them."""
    payload_bytes: int
    checksum: int
    """Of the payload; see worker/states.py."""

    @property
    def payload_at(self) -> int:
        """Offset in the file, a multiple of the page size."""
        return -(-(_HEADER.size + len(self.tokens)) // _ALIGN) * _ALIGN

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.payload_at + self.payload_bytes


def pack(header: Header) -> bytes:
    """The file's beginning: all but padding and payload."""
    return (
        _HEADER.pack(
            _MAGIC,
            len(header.tokens) // 4,
            0,
            header.scope,
            header.payload_bytes,
            header.checksum,
            header.identity,
        )
        + header.tokens
    )


def read(fd: int) -> Header:
    """The header of a sealed state.

    Raises:
        StateError: it is none, is not sealed, or is not as long as it says.
    """
    try:
        status = os.fstat(fd)
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
        start = os.pread(fd, _HEADER.size, 0) if sealed else b""
    except OSError as error:
        raise StateError(f"not a state: {error.strerror}") from error
    if not (sealed and stat.S_ISREG(status.st_mode)):
        raise StateError("not a sealed state")
    if len(start) < _HEADER.size:
        raise StateError("a state without a header")
    magic, count, _, scope, payload_bytes, checksum, identity = _HEADER.unpack(start)
    if magic != _MAGIC or not 0 < count <= MAX_TOKENS:
        raise StateError("a state of another version")
    tokens = os.pread(fd, 4 * count, _HEADER.size)
    header = Header(identity, scope, tokens, payload_bytes, checksum)
    if len(tokens) != 4 * count or header.size != status.st_size:
        raise StateError("a state of another length than it says")
    return header
