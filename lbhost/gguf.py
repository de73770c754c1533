"""Whether a GGUF file is whole: its counts, sizes and offsets, before llama.cpp believes them.

Pure: looks at bytes, allocates nothing by what they say. Runs in the inspecting process only
(inspection.py); what the values mean is llama.cpp's matter.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from typing import NamedTuple

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = 65_536
MAX_TENSORS = 1_048_576
MAX_KEY_BYTES = 65_535
MAX_TENSOR_NAME = 63
"""ggml keeps 64 bytes, the last one a zero."""
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20
_MOST_NUMBERS = (1 << 63) - 1

_U32, _STRING, _ARRAY = 4, 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each scalar type."""

_FORMATS = (
    *((1, 1, (24,)), (1, 2, (1, 25, 30)), (1, 4, (0, 26)), (1, 8, (27, 28))),  # numbers
    *((32, 18, (2, 20)), (32, 20, (3,)), (32, 22, (6,)), (32, 24, (7,)), (32, 34, (8,))),  # Q*_0
    *((256, 84, (10,)), (256, 110, (11, 21)), (256, 144, (12,)), (256, 176, (13,))),  # Q*_K
    *((256, 210, (14,)), (256, 292, (15,))),
    *((256, 66, (16, 35)), (256, 74, (17,)), (256, 98, (18,)), (256, 50, (19,))),  # IQ*
    *((256, 82, (22,)), (256, 136, (23,)), (256, 56, (29,))),
    *((256, 54, (34,)), (32, 17, (39,))),  # TQ1_0, MXFP4
)
BLOCKS = {kind: (numbers, size) for numbers, size, kinds in _FORMATS for kind in kinds}
"""Of each tensor type (`enum ggml_type`): numbers in a block, and its bytes. Newer types are
llama.cpp's to know or refuse; where such a tensor ends is not checked here."""

Buffer = bytes | mmap.mmap


class GgufError(ValueError):
    """What is wrong with a file; one line without its name."""


class Tensor(NamedTuple):
    """What the header says of one."""

    name: bytes
    dimensions: tuple[int, ...]
    kind: int
    offset: int


def verify(data: Buffer) -> list[Tensor]:
    """Check a whole file; its tensors.

    Raises:
        GgufError: the first thing found wrong.
    """
    if data[:4] != MAGIC:
        raise GgufError("not a GGUF file")
    reader = _Reader(data)
    version = reader.u32("version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        why = "it is for big-endian machines" if swapped else f"GGUF version {version} is not known"
        raise GgufError(why)
    tensors = reader.count("tensors", MAX_TENSORS)
    keys = reader.count("keys", MAX_KEYS)
    alignment = _keys(reader, keys)
    return _tensors(reader, tensors, alignment)


class _Reader:
    """A place in the file; never goes beyond its end."""

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.size = len(data)
        self.at = 4

    def skip(self, size: int, what: str) -> int:
        """Where the next `size` bytes begin."""
        begin = self.at
        if size > self.size - begin:
            raise GgufError(
                f"truncated or damaged: {what} at byte {begin} has {size} bytes, and the file ends "
                f"at {self.size}"
            )
        self.at = begin + size
        return begin

    def u32(self, what: str) -> int:
        return int(struct.unpack_from("<I", self.data, self.skip(4, what))[0])

    def u64(self, what: str) -> int:
        return int(struct.unpack_from("<Q", self.data, self.skip(8, what))[0])

    def count(self, what: str, most: int) -> int:
        found = self.u64(f"the number of {what}")
        if found > most:
            raise GgufError(f"damaged: it claims {found} {what}; {most} is the most")
        return found

    def text(self, what: str, most: int) -> bytes:
        size = self.u64(f"the length of {what}")
        if size > most:
            raise GgufError(f"damaged: {what} claims {size} bytes; {most} is the most")
        begin = self.skip(size, what)
        return bytes(self.data[begin : begin + size])

    def value(self, kind: int, what: str) -> None:
        """Pass a value that is no array."""
        if kind == _STRING:
            self.skip(self.u64(f"the length of {what}"), what)
        elif kind in _SIZES:
            self.skip(_SIZES[kind], what)
        else:
            raise GgufError(f"damaged: {what} is of the unknown type {kind}")

    def array(self, what: str) -> None:
        kind, count = self.u32(f"the type of {what}"), self.u64(f"the length of {what}")
        if kind in _SIZES:
            self.skip(_SIZES[kind] * count, what)
        elif kind == _STRING:
            if 8 * count > self.size - self.at:
                raise GgufError(
                    f"truncated or damaged: {what} claims {count} texts, more than the file holds"
                )
            self._texts(count, what)
        else:
            raise GgufError(f"damaged: {what} is an array of the unknown type {kind}")

    def _texts(self, count: int, what: str) -> None:
        """A vocabulary has a hundred thousand: a tight loop."""
        length = struct.Struct("<Q").unpack_from
        data, at, last = self.data, self.at, self.size - 8
        for _ in range(count):
            if at > last:
                break
            at += 8 + length(data, at)[0]
        else:
            self.skip(at - self.at, what)
            return
        raise GgufError(f"truncated or damaged: {what} goes on beyond the end of the file")


def _keys(reader: _Reader, count: int) -> int:
    """Pass all keys; the alignment that they ask for."""
    alignment = 32
    seen: set[bytes] = set()
    for number in range(count):
        key = reader.text(f"key {number}", MAX_KEY_BYTES)
        name = _shown(key)
        if key in seen:
            raise GgufError(f"damaged: the key {name} is there twice")
        seen.add(key)
        kind = reader.u32(f"the type of {name}")
        begin = reader.at
        if kind == _ARRAY:
            reader.array(name)
        else:
            reader.value(kind, name)
        if key == b"general.alignment":
            alignment = _alignment(reader.data, begin, kind)
    return alignment


def _alignment(data: Buffer, at: int, kind: int) -> int:
    value = int(struct.unpack_from("<I", data, at)[0]) if kind == _U32 else 0
    if not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
        raise GgufError(f"damaged: general.alignment is {value}, which is no power of two")
    return value


def _tensors(reader: _Reader, count: int, alignment: int) -> list[Tensor]:
    found: list[Tensor] = []
    seen: set[bytes] = set()
    for number in range(count):
        tensor = _tensor(reader, number)
        if tensor.name in seen:
            raise GgufError(f"damaged: the tensor {_shown(tensor.name)} is there twice")
        if tensor.offset % alignment:
            raise GgufError(
                f"damaged: the tensor {_shown(tensor.name)} begins at {tensor.offset}, which is no "
                f"multiple of {alignment}"
            )
        seen.add(tensor.name)
        found.append(tensor)
    begin = -(-reader.at // alignment) * alignment
    ends = [begin + tensor.offset + size_of(tensor) for tensor in found]
    if max(ends, default=0) > reader.size:
        raise GgufError(
            f"truncated: {reader.size} bytes of at least {max(ends)}; download it again"
        )
    return found


def _tensor(reader: _Reader, number: int) -> Tensor:
    what = f"tensor {number}"
    name = reader.text(f"the name of {what}", MAX_TENSOR_NAME)
    what = f"the tensor {_shown(name)}"
    dimensions = reader.u32(f"the dimensions of {what}")
    if dimensions > MAX_DIMENSIONS:
        raise GgufError(
            f"damaged: {what} has {dimensions} dimensions; {MAX_DIMENSIONS} is the most"
        )
    shape = tuple(reader.u64(f"the shape of {what}") for _ in range(dimensions))
    kind = reader.u32(f"the type of {what}")
    offset = reader.u64(f"the offset of {what}")
    numbers = 1
    for length in shape:
        numbers *= length
        if not 0 < numbers <= _MOST_NUMBERS:
            raise GgufError(f"damaged: {what} has the impossible shape {list(shape)}")
    block = BLOCKS.get(kind, (1, 0))[0]
    if (shape[0] if shape else 1) % block:
        raise GgufError(
            f"damaged: {what} has rows of {shape[0] if shape else 1} numbers, which are no whole "
            f"blocks of {block}"
        )
    return Tensor(name, shape, kind, offset)


def size_of(tensor: Tensor) -> int:
    """Bytes of its data; 0 if its type is not known here."""
    numbers = 1
    for length in tensor.dimensions:
        numbers *= length
    block, size = BLOCKS.get(tensor.kind, (1, 0))
    return numbers // block * size


def _shown(name: bytes) -> str:
    """A name from the file, as it may be printed on a terminal."""
    text = name[:80].decode(errors="replace")
    return "".join(char if char.isprintable() else "?" for char in text)
