"""The file of API keys: what each key may do, found by a hash of it. Holds no key itself.

Reads, checks and appends to that file; keeps nothing. A key has 256 random bits, so that a plain
SHA-256 of it tells nobody what it is: there is no dictionary of such keys to try.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from lbhost import order, regular_file
from lbhost.errors import UsageError

MAX_KEYS = 1000
"""In one file: each has its label in /metrics."""

MAX_FILE_BYTES = 1 << 20

MOST_DOTS = 32
"""In a line: a dotted key of n parts takes tomllib n x n steps, and the gateway waits for it."""

PREFIX = "sk-lbhost-"
"""What a key begins with, so that scanners for leaked secrets know it."""

RANDOM_BYTES = 32

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

Tier: TypeAlias = Literal["flex", "default", "priority"]
Limit: TypeAlias = Annotated[int, Meta(ge=1, le=1_000_000_000)]

RANKS: dict[str, int] = {
    "flex": order.FLEX,
    "default": order.DEFAULT,
    "priority": order.PRIORITY,
}


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One key, as its table in the file says."""

    name: str
    """For logs and metrics: 1 to 64 of `A-Z a-z 0-9 . _ -`."""
    hash: Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    """Prompt and output together."""
    max_concurrent: Limit | None = None
    """Answers that are generated at once, streamed or not; a request with `n` counts n times."""
    service_tier: Tier = "default"
    """Of requests that name none."""
    highest_service_tier: Tier | None = None
    """That requests may name; None: `service_tier`."""
    models: tuple[str, ...] | None = None
    """Names of models that it may use; None: all."""
    weight: Annotated[float, Meta(ge=0.01, le=100)] = 1.0
    """Its part of a full box, beside the other keys'."""
    metrics: Literal["own", "all"] = "own"
    """Of /metrics: the series of the models that it may use, and what it has used itself; or all,
    with the names of all models and keys."""

    @property
    def highest_rank(self) -> int:
        """See lbhost/order.py: the lower goes first."""
        return RANKS[self.highest_service_tier or self.service_tier]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: Annotated[tuple[Key, ...], Meta(max_length=MAX_KEYS)] = ()


def digest(key: bytes) -> bytes:
    """What the file holds of a key, 32 bytes."""
    return hashlib.sha256(key).digest()


def hash_of(key: str) -> str:
    """The `hash` of a key's table."""
    return "sha256:" + digest(key.encode()).hex()


def read(path: Path) -> tuple[Key, ...]:
    """All keys of a file.

    Raises:
        UsageError: it cannot be read, or something in it is not right; one line saying what.
    """
    try:
        return parse(_content(path))
    except OSError as error:
        raise UsageError(f"keys file {path}: {error.strerror or error}") from error
    except (UsageError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"keys file {path}: {error}") from error


def parse(content: bytes) -> tuple[Key, ...]:
    """The keys of a file's content. Raises UsageError, ValueError, RecursionError."""
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.count(b".") > MOST_DOTS and not line.lstrip().startswith(b"#"):
            raise UsageError(f"line {number}: over {MOST_DOTS} dots; make several lines of it")
    found = msgspec.convert(tomllib.loads(content.decode()), _File).keys
    for place, key in enumerate(found, 1):
        if not NAME.fullmatch(key.name):
            raise UsageError(f"the name of key {place} is not 1 to 64 of A-Z a-z 0-9 . _ -")
        if RANKS[key.service_tier] < key.highest_rank:
            raise UsageError(f"key {key.name!r}: service_tier is above highest_service_tier")
    _once("name", [key.name for key in found])
    _once("hash", [key.hash for key in found])
    return found


def _once(what: str, values: Sequence[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise UsageError(f"two keys have the {what} {value!r}")
        seen.add(value)


def _content(path: Path) -> bytes:
    return regular_file.content(path, MAX_FILE_BYTES)


def is_open_to_others(path: Path) -> bool:
    """Whether somebody but its owner may read or write the file. Raises OSError."""
    return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


def add(path: Path, name: str, key: str) -> None:
    """Append a key's table to the file, which is made (mode 0600) if there is none.

    Raises:
        UsageError: the name is none or taken, or the file is not right as it is, or would not be.
        OSError: it cannot be written. In both cases it stays as it was.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a key: use 1 to 64 of A-Z a-z 0-9 . _ -")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "ab", buffering=0) as file:
        fcntl.flock(fd, fcntl.LOCK_EX)  # two at once must not both find the name free
        taken = {one.name for one in read(path)}
        if name in taken:
            raise UsageError(f"keys file {path}: there is a key {name!r} already")
        if len(taken) == MAX_KEYS:
            raise UsageError(f"keys file {path}: {MAX_KEYS} keys are the most")
        table = _table(name, hash_of(key)).encode()
        _check_appended(path, table)
        size = os.fstat(fd).st_size
        try:
            while table:
                table = table[file.write(table) :]
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, size)  # a full disk: half a table would spoil the whole file
            raise


def _check_appended(path: Path, table: bytes) -> None:
    """Raises UsageError: a table at its end would spoil the file. Raises OSError."""
    content = _content(path) + table
    try:
        if len(content) > MAX_FILE_BYTES:
            raise UsageError(f"it would be over {MAX_FILE_BYTES} bytes")
        parse(content)
    except (UsageError, ValueError, RecursionError) as error:
        what = "a [[keys]] table cannot be added at its end"
        raise UsageError(f"keys file {path}: {what}: {error}") from error


def _table(name: str, hashed: str) -> str:
    return f"""
[[keys]]
name = "{name}"
hash = "{hashed}"
# requests_per_minute = 60
# tokens_per_minute = 100000
# max_concurrent = 4
# service_tier = "default"
# highest_service_tier = "priority"
# models = ["name"]
# weight = 1.0
# metrics = "all"
"""
