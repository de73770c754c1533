"""A table of rows of one type on the board's page: a seqlock and a CRC per row.

A row on the page is `seq:u64 | payload | crc32:u32`, padded to 64 bytes. The writer makes
`seq` odd, writes, makes it even. The CRC makes torn reads visible on machines with weak
memory ordering too, where Python offers no fence, and covers `seq` so that two halves of
different writes cannot match.

Columns follow the row type's annotations: numbers, enums, `float | None` (NaN on the page),
`Annotated[str, BYTES]` for text, `Annotated[tuple[int, ...], BYTES]` for a set of small numbers,
`Annotated[tuple[float, ...], BYTES]` for a list of numbers, single precision, cut to what fits.
"""

from __future__ import annotations

import math
import os
import struct
import types
import typing
import zlib
from array import array
from typing import Annotated, Generic, TypeVar

import msgspec

R = TypeVar("R", bound=msgspec.Struct)

ALIGN = 64
"""Bytes; a cache line."""

_CRC = struct.Struct("<I")
_SIZED = {str: "text", tuple[int, ...]: "cpus", tuple[float, ...]: "floats"}
_SPINS = 64
"""Looks at a row that is being written, some 20 µs: on another core that is done by then."""
_YIELDS = 8
"""More looks where nothing is known of a row yet, before each of which others may run, and the
writer with them. With another busy process on the core each takes 0.7 ms, with two 2 ms: 2000 of
them held up the gateway for 1.5 s."""
_NO_NUMBER = b"\xff"
"""Four of them are a NaN."""


def _codec(row: type[msgspec.Struct]) -> tuple[struct.Struct, list[typing.Any]]:
    """struct format and per-column kind, from the row type's annotations."""
    formats: list[str] = []
    kinds: list[typing.Any] = []
    for name, hint in typing.get_type_hints(row, include_extras=True).items():
        if typing.get_origin(hint) is Annotated:
            size = hint.__metadata__[0]
            formats.append(f"{size}s")
            kinds.append((_SIZED[hint.__origin__], size))
        elif hint is float or isinstance(hint, types.UnionType):
            formats.append("d")
            kinds.append("float" if hint is float else "unknowable")
        elif hint is bool or issubclass(hint, int):
            formats.append("q")
            kinds.append(hint if hint is not int else "int")
        else:
            raise TypeError(f"{row.__name__}.{name}: no board format for {hint!r}")
    return struct.Struct("<" + "".join(formats)), kinds


class Table(Generic[R]):
    """Rows of one type on the page. `write` is for the one process that owns the table."""

    def __init__(self, page: memoryview, offset: int, row: type[R], rows: int) -> None:
        self._row = row
        self._format, kinds = _codec(row)
        sized = [(i, *k) for i, k in enumerate(kinds) if isinstance(k, tuple)]
        self._texts = [(i, size) for i, kind, size in sized if kind == "text"]
        self._cpusets = [(i, size) for i, kind, size in sized if kind == "cpus"]
        self._floats = [(i, size) for i, kind, size in sized if kind == "floats"]
        self._unknowables = [i for i, k in enumerate(kinds) if k == "unknowable"]
        self._casts = [(i, k) for i, k in enumerate(kinds) if isinstance(k, type)]
        self._size = self._format.size
        self._stride = _stride(self._size)
        self._page = page
        # One native 8-byte load or store each. struct would write byte by byte, zeroes first,
        # and a reader would take a row that is being written for one that never was.
        self._seqs = page.cast("Q")
        self._offset = offset
        self._rows = rows
        self._empty = row()
        self._newest: dict[int, tuple[int, R]] = {}
        """Of each row: `seq`, and what it was then. Reading it again is then one look."""
        self._unfinished: dict[int, int] = {}
        """Of rows in the middle of a write: `seq` when that was waited for in vain."""

    def __len__(self) -> int:
        return self._rows

    @staticmethod
    def bytes_needed(row: type[msgspec.Struct], rows: int) -> int:
        return _stride(_codec(row)[0].size) * rows

    def write(self, index: int, value: R) -> None:
        """Publish a row. Only the table's one writer may call this."""
        at = self._at(index)
        columns = list(msgspec.structs.astuple(value))
        for i in self._unknowables:
            if columns[i] is None:
                columns[i] = math.nan
        for i, size in self._texts:
            columns[i] = columns[i].encode()[:size]
        for i, size in self._cpusets:
            columns[i] = sum(1 << cpu for cpu in columns[i]).to_bytes(size, "little")
        for i, size in self._floats:
            columns[i] = array("f", columns[i][: size // 4]).tobytes().ljust(size, _NO_NUMBER)
        payload = self._format.pack(*columns)
        page, seqs, word = self._page, self._seqs, at // 8
        # A writer that was killed half-way left an odd number: round up to the next odd one.
        seq = seqs[word] | 1
        seqs[word] = seq
        end = at + 8 + self._size
        page[at + 8 : end] = payload
        _CRC.pack_into(page, end, zlib.crc32(payload, (seq + 1) & 0xFFFFFFFF))
        seqs[word] = seq + 1

    def read(self, index: int) -> R | None:
        """A consistent copy of a row, the row type's defaults if it was never written.

        Where its writer died, or is held up, in the middle of a write, or where somebody has
        written what no writer of ours does: what was read last; None if nothing was.
        """
        at = self._at(index)
        end = at + 8 + self._size
        page, seqs, word = self._page, self._seqs, at // 8
        known = self._newest.get(index)
        for look in range(_SPINS + _YIELDS):
            seq = seqs[word]
            if seq == 0:
                return self._empty
            if seq & 1:
                if self._unfinished.get(index) == seq:
                    break
                if look >= _SPINS:
                    if known is not None:
                        break
                    os.sched_yield()
                continue
            if known is not None and known[0] == seq:
                return known[1]
            copy = bytes(page[at + 8 : end + 4])
            if seqs[word] != seq:
                continue
            payload = copy[:-4]
            if zlib.crc32(payload, seq & 0xFFFFFFFF) == _CRC.unpack(copy[-4:])[0]:
                try:
                    row = self._decode(payload)
                except ValueError:  # no such state: a process that was taken over has written that
                    break
                self._newest[index] = seq, row
                return row
        if seq & 1:
            self._unfinished[index] = seq
        return None if known is None else known[1]

    def _decode(self, payload: bytes) -> R:
        columns = list(self._format.unpack(payload))
        for i in self._unknowables:
            if columns[i] != columns[i]:
                columns[i] = None
        for i, _ in self._texts:
            columns[i] = columns[i].rstrip(b"\0").decode(errors="replace")
        for i, _ in self._cpusets:
            columns[i] = _bits(columns[i])
        for i, _ in self._floats:
            columns[i] = tuple(x for x in array("f", columns[i]) if x == x)
        for i, cast in self._casts:
            columns[i] = cast(columns[i])
        return self._row(*columns)

    def _at(self, index: int) -> int:
        if not 0 <= index < self._rows:
            raise IndexError(f"{self._row.__name__} row {index} of {self._rows}")
        return self._offset + index * self._stride


def _bits(mask: bytes) -> tuple[int, ...]:
    return tuple(
        8 * at + bit
        for at, byte in enumerate(mask.rstrip(b"\0"))
        if byte
        for bit in range(8)
        if byte >> bit & 1
    )


def _stride(payload: int) -> int:
    return -(-(8 + payload + 4) // ALIGN) * ALIGN
