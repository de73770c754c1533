"""Vectors that were computed before, in a file that survives restarts and is bounded in bytes.

Owns one sqlite file, in the user's cache folder, and the one thread that touches it. Whatever is
wrong with the file costs the cache and never an answer: what cannot be read is computed, what
cannot be written is not kept, and a damaged file is made anew.

A vector is found by the 32-byte BLAKE2b of all that it depends on: model, build, pooling, and the
input's tokens. No two inputs share one unless somebody breaks BLAKE2b.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.metadata
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lbhost import control, log

FILE = "vectors-1.sqlite"
"""With the version of what it holds."""

MOST_WRITES = 64
"""Requests' vectors that may wait to be written; those of more are not kept."""

EVICTED = 0.1
"""Of the limit, so much is given up at once."""

_PAGE = 8192
_LEAST_PAGES = 32
_LOCKED_S = 0.05
"""How long another process's lock is waited for."""

_AGAIN_S = 5.0
"""A file that could not be used is tried again after so long."""

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_MINUTE = 60
_ROW = 128
"""Bytes of a row beside its vector: its key, twice, and what sqlite adds."""

_PACKING = 1.5
"""Pages take so many times what is in them, about."""

_AT_ONCE = 128
"""Rows of one transaction: those of a large request need not all fit at once."""

_LOOKUP = 500
"""Keys in one SELECT."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (
    key BLOB NOT NULL UNIQUE, vector BLOB NOT NULL, used INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS by_use ON vectors (used);
"""


class CacheCounts(msgspec.Struct):
    """Of inputs, since the gateway started."""

    hits: int = 0
    misses: int = 0
    failures: int = 0
    """Times that the file could not be read or written."""


def identity(configure: control.Configure) -> bytes:
    """Of all that a vector depends on beside its tokens: the model's files, llama.cpp's build and
    how vectors are pooled. Who replaces a file replaces what the kernel says of it."""
    files = [(one.path, one.inode, one.size, one.mtime_ns) for one in configure.weights]
    parts = (
        importlib.metadata.version("llama-cpp-python"),
        files or configure.model_path,
        str(configure.settings.flash_attention),
        configure.purpose,
    )
    return hashlib.blake2b(repr(parts).encode(), digest_size=32).digest()


def names(inputs: Sequence[bytes], scope: int, identity: bytes) -> list[bytes]:
    """What names each input, packed tokens, for the requests of one scope.

    Args:
        identity: of all that a vector depends on beside its tokens; see `identity`.
    """
    begun = hashlib.blake2b(identity + scope.to_bytes(8, "little"), digest_size=32)
    found: list[bytes] = []
    for one in inputs:
        digest = begun.copy()
        digest.update(one)
        found.append(digest.digest())
    return found


class VectorCache:
    """See the module. One for all models.

    Args:
        folder: where the file lies, made if it is missing.
        limit: bytes that the file may take; 0: nothing is kept.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._path = folder / FILE
        self._limit = limit
        self.counts = CacheCounts()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vector cache") if limit else None
        self._database: sqlite3.Connection | None = None
        self._not_before = 0.0
        self._writing = 0
        self.bytes = 0
        """That the file took when it was last written to."""

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The vectors that there are."""
        if self._thread is None:
            return [None] * len(keys)
        loop = asyncio.get_running_loop()
        known = await loop.run_in_executor(self._thread, self._read, list(keys))
        found = [known.get(key) for key in keys]
        hits = sum(one is not None for one in found)
        self.counts.hits += hits
        self.counts.misses += len(found) - hits
        return found

    def put(self, vectors: dict[bytes, bytes]) -> None:
        """Keep vectors by their keys, some time soon."""
        if self._thread is None or not vectors or self._writing >= MOST_WRITES:
            return
        self._writing += 1
        loop = asyncio.get_running_loop()
        written = loop.run_in_executor(self._thread, self._write, vectors)
        written.add_done_callback(self._written)

    async def close(self) -> None:
        """Write what waits, and let go of the file."""
        if self._thread is not None:
            thread, self._thread = self._thread, None
            await asyncio.get_running_loop().run_in_executor(thread, self._let_go)
            thread.shutdown()

    def _written(self, done: asyncio.Future[None]) -> None:
        self._writing -= 1
        done.result()

    # --- in the thread ---------------------------------------------------------------

    def _read(self, keys: list[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        now = int(time.time()) // _MINUTE
        stale: list[tuple[int, bytes]] = []
        try:
            database = self._open()
            if database is None:
                return {}
            for at in range(0, len(keys), _LOOKUP):
                some = keys[at : at + _LOOKUP]
                marks = ",".join("?" * len(some))
                query = f"SELECT key, vector, used FROM vectors WHERE key IN ({marks})"
                for key, checked, used in database.execute(query, some):
                    vector = _unchecked(key, checked)
                    if vector is None:
                        self.counts.failures += 1
                        continue
                    found[key] = vector
                    if used != now:
                        stale.append((now, key))
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
            return {}
        if stale:  # what is used keeps its place; written at most once a minute
            with contextlib.suppress(sqlite3.Error), database:
                database.executemany("UPDATE vectors SET used = ? WHERE key = ?", stale)
        return found

    def _write(self, vectors: dict[bytes, bytes]) -> None:
        now = int(time.time()) // _MINUTE
        rows = [(key, _checked(key, vector), now) for key, vector in vectors.items()]
        try:
            database = self._open()
            if database is None:
                return
            for at in range(0, len(rows), _AT_ONCE):
                some = rows[at : at + _AT_ONCE]
                self._make_room(database, sum(len(row[1]) + _ROW for row in some))
                with database:
                    database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", some)
            self.bytes = self._used(database)
        except (sqlite3.Error, OSError) as error:
            self._failed(error)

    def _make_room(self, database: sqlite3.Connection, more: int) -> None:
        """Give up what was used longest ago, until there is room for so many bytes."""
        while (used := self._used(database)) + _PACKING * more > self._limit:
            (count,) = database.execute("SELECT COUNT(*) FROM vectors").fetchone()
            if not count:
                return
            part = max(1, int(count * max(EVICTED, _PACKING * more / max(1, used))))
            with database:
                database.execute(
                    "DELETE FROM vectors WHERE rowid IN "
                    "(SELECT rowid FROM vectors ORDER BY used, rowid LIMIT ?)",
                    (part,),
                )
            # gives the freed pages back to the disk, should the limit be less than it was
            database.executescript("PRAGMA incremental_vacuum")

    def _used(self, database: sqlite3.Connection) -> int:
        """Bytes of the file's pages that hold something."""
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        (free,) = database.execute("PRAGMA freelist_count").fetchone()
        return int(pages - free) * _PAGE

    def _open(self) -> sqlite3.Connection | None:
        """The file, made if need be; None while it is not worth trying again.

        Raises sqlite3.Error, OSError.
        """
        if time.monotonic() < self._not_before:
            return None
        if self._database is not None:
            return self._database
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made here, as this user's alone: a confined process changes no modes.
        os.close(os.open(self._path, os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))
        database = sqlite3.connect(self._path, timeout=_LOCKED_S, isolation_level="IMMEDIATE")
        try:
            database.text_factory = bytes  # one bit makes text of a vector, seldom any UTF-8
            database.execute(f"PRAGMA page_size = {_PAGE}")
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            pages = max(_LEAST_PAGES, self._limit // _PAGE)
            database.execute(f"PRAGMA max_page_count = {pages}")
            database.execute(f"PRAGMA journal_size_limit = {self._limit // 4}")
            database.executescript(_SCHEMA)
        except (sqlite3.Error, OSError):
            database.close()
            raise
        self._database = database
        return database

    def _failed(self, error: Exception) -> None:
        """Count it, and begin again: with a new file, if this one is damaged."""
        self.counts.failures += 1
        self._let_go()
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without what extends it
        damaged = code in _DAMAGED
        if damaged:
            for ending in ("", "-wal", "-shm"):
                with contextlib.suppress(OSError):
                    self._path.with_name(self._path.name + ending).unlink(missing_ok=True)
        else:
            self._not_before = time.monotonic() + _AGAIN_S
        log.get().warning(
            "vector cache cannot be used",
            file=str(self._path),
            reason=str(error),
            then="it is made anew" if damaged else f"tried again after {_AGAIN_S:g} s",
        )

    def _let_go(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()


def _checked(key: bytes, vector: bytes) -> bytes:
    """With a checksum behind it: sqlite has none, and disks lie."""
    return vector + zlib.crc32(vector, zlib.crc32(key)).to_bytes(4, "little")


def _unchecked(key: bytes, checked: object) -> bytes | None:
    """None: it is not what was written. A damaged row may hold whatever sqlite knows."""
    if not isinstance(checked, bytes):
        return None
    vector = checked[:-4]
    return vector if _checked(key, vector) == checked else None


class CacheCollector(Collector):
    """The cache's metrics."""

    def __init__(self, cache: VectorCache) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        counts = self._cache.counts
        for name, text, value in (
            ("hits", "Inputs whose vectors were kept from earlier requests", counts.hits),
            ("misses", "Inputs whose vectors were not there", counts.misses),
            ("failures", "Times that the file could not be read or written", counts.failures),
        ):
            counter = CounterMetricFamily(f"lbhost_embedding_cache_{name}", text)
            counter.add_metric([], value)
            yield counter
        gauge = GaugeMetricFamily("lbhost_embedding_cache_bytes", "Of the file, by the last write")
        gauge.add_metric([], self._cache.bytes)
        yield gauge
