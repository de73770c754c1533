"""LoRA adapters: how settings name them, and what the processes that load one are told of it.

An adapter is asked for by its name, as a model is; it changes what the model computes, its KV
included. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta

from lbhost.errors import UsageError
from lbhost.setting_values import LONGEST_NAME, checked, require_name, shown
from lbhost.weights import FilePart

MOST_ADAPTERS = 16
"""Of one model."""

MOST_SCALE = 1000.0
"""Much more than anybody means; far beyond, numbers are none any more."""

NONE = 0
"""The number of no adapter: the model as it is. A model's adapters count from 1, and several names
of one file with one scale are one adapter."""


class Adapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An adapter as settings have it: a table `[[models.adapters]]`, or NAME=PATH[:SCALE]."""

    name: Annotated[str, Meta(min_length=1, max_length=LONGEST_NAME)]
    """What clients call the model with it."""
    path: Annotated[str, Meta(min_length=1)]
    """A GGUF file, or hf:REPO[:FILE]."""
    scale: float = 1.0
    """So many times what it adds to the weights."""

    def __str__(self) -> str:
        return f"{self.name}={self.path}:{self.scale:g}"


class AdapterFile(msgspec.Struct, frozen=True):
    """An adapter that was found and checked."""

    name: str
    scale: float
    file: FilePart
    """As the supervisor found it; who finds another one refuses."""

    def scope(self, scope: int) -> int:
        """Whose KV its requests share, of those that are in this scope (see wire.Submit) without
        it: nobody's else, and no other adapter's, file's or scale's. Not 0.

        It is the same in every process and in the next server, so that KV states go along.
        """
        text = repr((scope, self.scale, self.file)).encode()
        digest = hashlib.blake2b(text, digest_size=8, person=b"lbhost adapter").digest()
        return int.from_bytes(digest) or 1


def numbers(named: Sequence[AdapterFile]) -> list[int]:
    """The number of each, by which workers know it."""
    found: dict[tuple[FilePart, float], int] = {}
    return [found.setdefault((one.file, one.scale), NONE + 1 + len(found)) for one in named]


def distinct(named: Sequence[AdapterFile]) -> list[AdapterFile]:
    """One of each number, in their order: what a worker computes with."""
    found: dict[int, AdapterFile] = {}
    for number, one in zip(numbers(named), named, strict=True):
        found.setdefault(number, one)
    return list(found.values())


def file_bytes(named: Sequence[AdapterFile]) -> int:
    """Memory that they take: each file is loaded once, whatever its names and scales."""
    return sum(file.size for file in {one.file for one in named})


_HINTS = get_type_hints(Adapter, include_extras=True)


def parse(given: object, where: str, outer: Container[str] = ()) -> tuple[Adapter, ...]:
    """The adapters as they are meant.

    Args:
        given: tables, or texts NAME=PATH[:SCALE]; or one text with commas between them.
        where: what refusals name.
        outer: keys of the table that these are in, which end up in an adapter's when they are
            written below it.

    Raises:
        UsageError: one line naming table, key and reason.
    """
    listed = [one for one in given.split(",") if one.strip()] if isinstance(given, str) else given
    if not isinstance(listed, list | tuple):
        raise UsageError(f"{where}: expected NAME=PATH[:SCALE], or tables; got {shown(given)}")
    if len(listed) > MOST_ADAPTERS:
        raise UsageError(f"{where}: expected at most {MOST_ADAPTERS}, got {len(listed)}")
    found: dict[str, Adapter] = {}
    for i, one in enumerate(listed):
        place = f"{where}[{i}]"
        adapter = _adapter(_table(one, place), place, outer)
        if adapter.name in found:
            first = list(found).index(adapter.name)
            raise UsageError(f"{place}.name: {adapter.name!r} is the name of {where}[{first}] too")
        found[adapter.name] = adapter
    return tuple(found.values())


def _table(one: object, where: str) -> dict[str, Any]:
    """The table that a text stands for."""
    if isinstance(one, dict):
        return one
    name, found, path = one.partition("=") if isinstance(one, str) else ("", "", "")
    if not found:
        raise UsageError(f"{where}: expected NAME=PATH[:SCALE], got {shown(one)}")
    table: dict[str, Any] = {"name": name.strip(), "path": path.strip()}
    begin, _, end = table["path"].rpartition(":")
    try:
        scale = float(end)
    except ValueError:
        return table
    return {**table, "path": begin, "scale": scale}


def _adapter(table: dict[str, Any], where: str, outer: Container[str]) -> Adapter:
    for key in ("name", "path"):
        if key not in table:
            raise UsageError(f"{where}.{key}: missing")
    for key in table:
        if key not in _HINTS and key in outer:
            raise UsageError(
                f"{where}.{key}: is the model's: write it above the first table of its adapters"
            )
    made = Adapter(**{key: checked(key, v, _HINTS, f"{where}.{key}") for key, v in table.items()})
    if not -MOST_SCALE <= made.scale <= MOST_SCALE:  # nor is it so with nan
        most = f"{MOST_SCALE:g}"
        raise UsageError(
            f"{where}.scale: expected a number from -{most} to {most}, got {made.scale}"
        )
    try:
        require_name(made.name, f"{where}.name")
    except ValueError as error:
        raise UsageError(str(error)) from None
    return made
