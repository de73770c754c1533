"""The cache of vectors: what it finds, what it forgets, and what a broken file costs."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from faults import disk
from lbhost.gateway import vector_cache
from lbhost.gateway.vector_cache import FILE, VectorCache, names
from lbhost.wire import pack_tokens

pytestmark = pytest.mark.anyio

LIMIT = 8 << 20
MODEL = b"model"
VECTOR = bytes(range(256)) * 6
"""As long as one of 384 numbers."""


@asynccontextmanager
async def cache(folder: Path, limit: int = LIMIT) -> AsyncIterator[VectorCache]:
    made = VectorCache(folder, limit)
    try:
        yield made
    finally:
        await made.close()


def inputs(count: int, first: int = 0) -> list[bytes]:
    return [pack_tokens([first + i, 7]) for i in range(count)]


async def keep(made: VectorCache, some: list[bytes], scope: int = 0) -> None:
    made.put(dict.fromkeys(names(some, scope, MODEL), VECTOR))


async def found(
    made: VectorCache, some: list[bytes], scope: int = 0, identity: bytes = MODEL
) -> int:
    """How many of them are there, which must be what was kept."""
    vectors = await made.get(names(some, scope, identity))
    assert set(vectors) <= {None, VECTOR}
    return sum(vector is not None for vector in vectors)


async def test_what_was_kept_is_found_by_the_same_input_only(tmp_path: Path) -> None:
    async with cache(tmp_path) as made:
        assert await found(made, inputs(3)) == 0
        await keep(made, inputs(3))
        assert await found(made, inputs(3)) == 3
        assert await found(made, [pack_tokens([0, 7, 7]), pack_tokens([0]), pack_tokens([3])]) == 0
        assert await found(made, inputs(1), scope=1 << 63) == 0, "another API key"
        assert (made.counts.hits, made.counts.misses, made.counts.failures) == (3, 7, 0)
    async with cache(tmp_path) as made:
        assert await found(made, inputs(3)) == 3, "it survives a restart"
        assert await found(made, inputs(3), identity=b"another model") == 0


async def test_many_keys_at_once_are_found(tmp_path: Path) -> None:
    async with cache(tmp_path) as made:
        await keep(made, inputs(1200))
        assert await found(made, inputs(1300)) == 1200


async def test_a_limit_of_nothing_keeps_nothing_and_makes_no_file(tmp_path: Path) -> None:
    async with cache(tmp_path / "none", limit=0) as made:
        await keep(made, inputs(3))
        assert await found(made, inputs(3)) == 0
    assert not (tmp_path / "none").exists()


async def test_the_file_stays_within_its_limit_and_the_newest_stay_in_it(tmp_path: Path) -> None:
    limit = 1 << 20
    async with cache(tmp_path, limit) as made:
        for at in range(0, 3000, 100):
            await keep(made, inputs(100, at))
            await made.get([])
        assert await found(made, inputs(100, 2900)) == 100
        assert await found(made, inputs(100)) == 0
        assert made.bytes <= limit
        assert made.counts.failures == 0
    assert (tmp_path / FILE).stat().st_size <= limit


async def test_what_is_used_is_kept_longer(tmp_path: Path) -> None:
    async with cache(tmp_path, 1 << 20) as made:
        await keep(made, inputs(300))
        await made.get([])
        with sqlite3.connect(tmp_path / FILE) as other:  # all of them an hour ago
            other.execute("UPDATE vectors SET used = used - 60")
        other.close()
        assert await found(made, inputs(50)) == 50
        for at in range(1000, 1400, 50):
            await keep(made, inputs(50, at))
            await made.get([])
        assert await found(made, inputs(50)) == 50
        assert await found(made, inputs(250, 50)) < 250


async def test_a_smaller_limit_shrinks_the_file(tmp_path: Path) -> None:
    async with cache(tmp_path, 8 << 20) as made:
        await keep(made, inputs(2000))
    before = (tmp_path / FILE).stat().st_size
    async with cache(tmp_path, 1 << 20) as made:
        await keep(made, inputs(10, 5000))
        assert await found(made, inputs(10, 5000)) == 10
    assert (tmp_path / FILE).stat().st_size <= 1 << 20 < before


@pytest.mark.parametrize("damage", ["garbage", "cut short", "middle"])
async def test_a_damaged_file_costs_the_cache_and_is_made_anew(tmp_path: Path, damage: str) -> None:
    async with cache(tmp_path) as made:
        await keep(made, inputs(500))
    file = tmp_path / FILE
    content = bytearray(file.read_bytes())
    if damage == "garbage":
        content[:4096] = b"no database " * 341 + b"...."
    elif damage == "cut short":
        del content[len(content) // 2 :]
    else:
        content[4096:] = bytes(len(content) - 4096)
    file.write_bytes(content)
    async with cache(tmp_path) as made:
        await found(made, inputs(500))
        await keep(made, inputs(10, 900))
        await found(made, inputs(10, 900))
        assert made.counts.failures > 0
        await keep(made, inputs(10, 900))
        assert await found(made, inputs(10, 900)) == 10


async def test_a_flipped_bit_is_no_hit(tmp_path: Path) -> None:
    async with cache(tmp_path) as made:
        await keep(made, inputs(1))
    with sqlite3.connect(tmp_path / FILE) as database:
        ((stored,),) = database.execute("SELECT vector FROM vectors").fetchall()
        flipped = bytes([stored[0] ^ 1]) + stored[1:]
        database.execute("UPDATE vectors SET vector = ?", (flipped,))
    database.close()
    async with cache(tmp_path) as made:
        assert await found(made, inputs(1)) == 0
        assert made.counts.failures == 1


@pytest.mark.parametrize("kind", ["CAST(vector AS TEXT)", "NULL", "5", "2.5", "x''"])
async def test_a_row_that_holds_something_else_is_no_hit(tmp_path: Path, kind: str) -> None:
    async with cache(tmp_path) as made:
        await keep(made, inputs(1))
    with sqlite3.connect(tmp_path / FILE) as database:
        # What a flipped bit of a row's header does: the table's own rules do not see it.
        database.execute("ALTER TABLE vectors RENAME TO old")
        database.execute("CREATE TABLE vectors (key BLOB UNIQUE, vector, used INTEGER)")
        database.execute(f"INSERT INTO vectors SELECT key, {kind}, used FROM old")
    database.close()
    async with cache(tmp_path) as made:
        hits = await found(made, inputs(1))
        assert hits == (1 if "TEXT" in kind else 0), "the bytes of a text are its vector's"
        await keep(made, inputs(1))
        assert await found(made, inputs(1)) == 1


_LOCKER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA locking_mode = EXCLUSIVE")
database.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


async def test_a_file_that_another_process_has_locked_costs_the_cache(tmp_path: Path) -> None:
    async with cache(tmp_path) as made:
        await keep(made, inputs(3))
    command = [sys.executable, "-c", _LOCKER, str(tmp_path / FILE)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as other:  # type: ignore[call-overload]
        assert other.stdout.readline() == "locked\n"
        async with cache(tmp_path) as made:
            assert await found(made, inputs(3)) == 0
            await keep(made, inputs(3, 50))
            await made.get([])
            assert made.counts.failures == 1, "it is not asked again at once"
        other.stdin.close()
    async with cache(tmp_path) as made:
        assert await found(made, inputs(3)) == 3


async def test_a_place_that_cannot_be_written_costs_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    async with cache(tmp_path / "file") as made:
        await keep(made, inputs(3))
        assert await found(made, inputs(3)) == 0
        assert made.counts.failures > 0


async def test_a_full_file_keeps_what_it_has(tmp_path: Path) -> None:
    async with cache(tmp_path, 1 << 18) as made:
        await keep(made, inputs(20))
        await keep(made, inputs(1000, 100))  # more than the whole file may hold
        await made.get([])
        await asyncio.sleep(0)
    async with cache(tmp_path, 1 << 18) as made:
        assert (tmp_path / FILE).stat().st_size <= 1 << 18
        await keep(made, inputs(5, 9000))
        assert await found(made, inputs(5, 9000)) == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
async def test_a_full_disk_costs_the_cache_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_cache, "_AGAIN_S", 0.0)
    with disk.mounted(tmp_path / "small") as small:
        async with cache(small, 1 << 30) as made:
            await keep(made, inputs(20))
            assert await found(made, inputs(20)) == 20
            disk.fill(small, 0)
            await keep(made, inputs(2000, 100))
            assert await found(made, inputs(2000, 100)) == 0
            assert made.counts.failures > 0
            disk.empty(small)
            await keep(made, inputs(20, 5000))
            assert await found(made, inputs(20, 5000)) == 20
        async with cache(small, 1 << 30) as made:
            assert await found(made, inputs(20)) == 20
