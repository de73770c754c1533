"""KV states on disk: what is read is what was written, or nothing."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lbhost import state_file
from lbhost.errors import StartupError
from lbhost.folders import private
from lbhost.gateway.states.disk import DIGEST_BYTES, Disk, Kept
from lbhost.gateway.states.disk_thread import MOST_WAITING, DiskThread
from lbhost.gateway.states.plane import Plane
from lbhost.gateway.states.purse import Purse
from lbhost.state_file import Header
from lbhost.state_link import Able
from running_gateway import until
from test_state_plane import Speeds, Worker, descriptors, made

IDENTITY = bytes(32)
"""Of what `made` makes."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return private(tmp_path / "states", "--state-dir")


def write(disk: Disk, tokens: list[int], used_s: float = 1000.0, payload: int = 100) -> Path | None:
    fd = made(tokens, 7, payload)
    try:
        return disk.write(fd, state_file.read(fd), used_s)
    finally:
        os.close(fd)


def written(disk: Disk, tokens: list[int], used_s: float = 1000.0, payload: int = 100) -> Path:
    path = write(disk, tokens, used_s, payload)
    assert path is not None
    return path


def read(disk: Disk, most_bytes: float = 1e9, identity: bytes = IDENTITY) -> list[Kept]:
    found = list(disk.read(identity, most_bytes))
    for kept in found:
        os.close(kept.fd)
    return found


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_is_written_is_read(folder: Path) -> None:
    disk = Disk(folder, 1 << 20)
    path = written(disk, [1, 2, 3])
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    before = descriptors()
    (kept,) = disk.read(IDENTITY, 1e9)
    assert state_file.read(kept.fd) == kept.header
    assert (kept.header.scope, kept.header.tokens) == (
        7,
        bytes([1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]),
    )
    assert (kept.file, kept.used_s) == (path, 1000.0)
    os.close(kept.fd)
    assert descriptors() == before
    assert written(disk, [1, 2, 3], 2000.0) == path, "the same tokens have one file"
    assert len(files(folder)) == 1


def test_a_file_too_large_for_what_memory_is_left_keeps_no_other_from_being_read(
    folder: Path,
) -> None:
    disk = Disk(folder, 1 << 30)
    written(disk, [1] * 10, 1000.0)
    written(disk, [2] * 10, 2000.0, payload=1 << 20)
    assert [kept.used_s for kept in read(disk, most_bytes=1 << 16)] == [1000.0]


def test_every_byte_is_checked(folder: Path) -> None:
    disk = Disk(folder, 1 << 20)
    size = written(disk, [1, 2, 3]).stat().st_size
    for at in (0, 9, 20, 100, 64, 4096, size - DIGEST_BYTES - 1, size - 1):
        path = written(disk, [1, 2, 3])
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)
        assert read(disk) == [], at
        assert files(folder) == [], "it is removed"


@pytest.mark.parametrize("length", [0, 10, DIGEST_BYTES, 4096, -1, -DIGEST_BYTES])
def test_a_file_that_was_cut_short_is_no_state(folder: Path, length: int) -> None:
    disk = Disk(folder, 1 << 20)
    path = written(disk, [1, 2, 3])
    data = path.read_bytes()
    path.write_bytes(data[:length])
    before = descriptors()
    assert read(disk) == []
    path.write_bytes(data + b"more")
    assert read(disk) == []
    assert descriptors() == before


def test_another_models_files_stay_and_are_not_read(folder: Path) -> None:
    disk = Disk(folder, 1 << 20)
    path = written(disk, [1, 2, 3])
    other = bytes([1]) * 32
    assert read(disk, identity=other) == []
    moved = folder / other.hex() / path.name
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    assert read(disk, identity=other) == [], "a file in the wrong folder"
    assert not moved.exists()
    assert len(read(disk)) == 1


def test_links_and_strange_files_are_left_alone(folder: Path, tmp_path: Path) -> None:
    disk = Disk(folder, 1 << 20)
    path = written(disk, [1, 2, 3])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(elsewhere)
    (path.parent / "README").write_text("hello")
    os.mkfifo(path.parent / "pipe.state")
    assert read(disk) == []
    assert elsewhere.exists()


def test_the_oldest_make_room_and_never_for_older_ones(folder: Path) -> None:
    disk = Disk(folder, 3 * 5000)
    paths = [written(disk, [i, 1, 2], 1000.0 + i) for i in range(3)]
    assert write(disk, [9, 9, 9], 500.0) is None
    assert files(folder) == sorted(paths)
    written(disk, [8, 8, 8], 5000.0)
    assert [path.exists() for path in paths] == [False, True, True]
    assert write(disk, [7], 9000.0, payload=1 << 20) is None, "larger than everything"
    newest = [kept.used_s for kept in read(disk)]
    assert newest == sorted(newest, reverse=True)
    assert len(read(disk, most_bytes=5000)) == 1, "the newest one fits"


def test_nothing_makes_room_that_would_not_be_enough(folder: Path) -> None:
    disk = Disk(folder, 2 * 5000)
    paths = [written(disk, [i], 1000.0 * i) for i in (1, 3)]
    assert write(disk, [9], 2000.0, payload=4000) is None, "the newer one stays"
    assert files(folder) == sorted(paths)
    written(disk, [9], 4000.0, payload=4000)
    assert not any(path.exists() for path in paths)


def test_files_of_a_clock_that_was_ahead_make_room(folder: Path) -> None:
    disk = Disk(folder, 2 * (written(Disk(folder, 1 << 20), [1]).stat().st_size + 200))
    ahead = [written(disk, [n], time.time() + 86_400) for n in (1, 2)]
    assert written(disk, [3], time.time() - 10).exists()
    assert sum(path.exists() for path in ahead) == 1


def test_what_a_killed_server_left_unfinished_goes(folder: Path) -> None:
    disk = Disk(folder, 1 << 20)
    path = written(disk, [1, 2, 3])
    old, new = path.with_suffix(".state.1.new"), path.with_suffix(".state.2.new")
    for unfinished in (old, new):
        unfinished.write_bytes(b"half")
    os.utime(old, (1, 1))
    read(disk)
    assert (old.exists(), new.exists()) == (False, True)


def test_a_folder_that_others_may_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(private(tmp_path / "ours", "--state-dir"))
    said = {"open": "chmod 700", "file": "is not a folder", "link": "is a link"}
    for name, words in said.items():
        with pytest.raises(StartupError, match=words):
            private(tmp_path / name, "--state-dir")


@contextmanager
def full_disk() -> Iterator[None]:
    """No file grows over 1,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.anyio
async def test_a_full_disk_costs_the_cache_alone(folder: Path) -> None:
    thread = DiskThread(Disk(folder, 1 << 20))
    before = descriptors()
    fd = made([1, 2, 3])
    header = state_file.read(fd)
    with full_disk():
        assert not await thread.write(fd, header, 1.0)
        assert files(folder) == []
        thread.evict(os.dup(fd), header, 1.0)
        assert not await thread.write(fd, header, 1.0)
    assert await thread.write(fd, header, 1.0)
    os.close(fd)
    assert descriptors() <= before
    thread.close()


@pytest.mark.anyio
async def test_a_plane_has_after_a_restart_what_it_had_before(folder: Path) -> None:
    def plane() -> Plane:
        return Plane(Purse(1 << 20), Speeds(), disk=DiskThread(Disk(folder, 1 << 20)))

    first = plane()
    worker = Worker(first)
    worker.save([1, 2, 3])
    worker.save([5, 6, 7], scope=9)
    await until(lambda: first.entries == 2, "both are in memory")
    await first.keep(60)
    first.close()
    second = plane()
    again = Worker(second, 2)
    again.send(Able(bytes([1]) * 32))
    again.send(Able(IDENTITY))
    await until(lambda: second.entries == 2, "both are there again")
    assert second.counts.restored == 2
    # What grows takes the place of its beginning, on disk too.
    again.save([1, 2, 3, 4])
    await until(lambda: len(files(folder)) == 1, "the beginning's file is removed")
    await second.keep(60)
    second.close()
    assert len(files(folder)) == 2
    worker.socket.close()
    again.socket.close()


@pytest.mark.anyio
async def test_what_memory_has_no_room_for_goes_to_disk(folder: Path) -> None:
    plane = Plane(Purse(20_000), Speeds(), disk=DiskThread(Disk(folder, 1 << 20)))
    worker = Worker(plane)
    for i in range(6):
        worker.save([i, 1, 2])
        await until(lambda n=i: plane.counts.saved == n + 1, "saved")  # type: ignore[misc]
    await until(lambda: len(files(folder)) == 6 - plane.entries, "what was evicted is on disk")
    assert 0 < plane.entries < 6
    plane.close()
    worker.socket.close()


@pytest.mark.anyio
async def test_the_file_of_a_state_that_memory_has_already_stays(folder: Path) -> None:
    disk = Disk(folder, 1 << 20)
    path = written(disk, [1, 2, 3], 1000.0)
    plane = Plane(Purse(1 << 20), Speeds(), disk=DiskThread(disk))
    worker = Worker(plane)
    worker.save([1, 2, 3], scope=7)
    await until(lambda: plane.entries == 1, "it is in memory")
    worker.send(Able(IDENTITY))
    await until(lambda: plane.counts.restored == 1, "it is read")
    before = path.stat().st_ino
    await plane.keep(60)  # behind whatever else the disk was to do
    assert path.stat().st_ino == before, "it is not even written again"
    worker.save([1, 2, 3, 4], scope=7)
    await until(lambda: plane.counts.saved == 2, "what grows takes its place")
    plane.close()
    assert not path.exists()
    worker.socket.close()


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["kept at the end", "evicted"])
async def test_a_state_whose_file_has_made_room_for_others_is_written_again(
    folder: Path, how: str
) -> None:
    disk = Disk(folder, 1 << 20)
    path = written(disk, [1, 2, 3], 1000.0)
    plane = Plane(Purse(1 << 20), Speeds(), disk=DiskThread(disk))
    worker = Worker(plane)
    worker.send(Able(IDENTITY))
    await until(lambda: plane.entries == 1, "it is read")
    disk.remove(path)
    if how == "evicted":
        plane.purse.want(1)
    else:
        await plane.keep(60)
    plane.close()
    worker.socket.close()
    assert [kept.file for kept in read(disk)] == [path]


@pytest.mark.anyio
async def test_states_that_give_way_while_others_are_kept_do_not_end_that(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, write = threading.Event(), threading.Event(), Disk.write

    def slow(disk: Disk, fd: int, header: Header, used_s: float) -> Path | None:
        begun.set()
        assert go_on.wait(60)
        return write(disk, fd, header, used_s)

    monkeypatch.setattr(Disk, "write", slow)
    plane = Plane(Purse(1 << 20), Speeds(), disk=DiskThread(Disk(folder, 1 << 20)))
    worker = Worker(plane)
    for i in range(2 * MOST_WAITING):
        worker.save([i, 1, 2])
    await until(lambda: plane.entries == 2 * MOST_WAITING, "all are in memory")
    keeping = asyncio.create_task(plane.keep(60))
    await until(begun.is_set, "the first is being written")
    plane.purse.want(1)
    assert plane.entries == 0
    go_on.set()
    await keeping
    plane.close()
    assert len(files(folder)) >= MOST_WAITING, "the first, and what gave way"
    worker.socket.close()


@pytest.mark.anyio
async def test_without_descriptors_nothing_is_kept_and_nothing_lost(folder: Path) -> None:
    disk = Disk(folder, 1 << 20)
    written(disk, [1, 2, 3])
    fd = made([4])
    thread = DiskThread(disk)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open("/dev/null", os.O_RDONLY)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        assert not await thread.write(fd, state_file.read(fd), 1.0)
        assert read(disk) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(read(disk)) == 1, "a file that could not be read then is still there"
    thread.close()
    os.close(fd)


@pytest.mark.anyio
async def test_a_slow_disk_holds_back_few_states(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(folder, 1 << 20)
    monkeypatch.setattr(Disk, "write", lambda *_: time.sleep(0.2))
    thread = DiskThread(disk)
    fd = made([1])
    header = state_file.read(fd)
    before = descriptors()
    for _ in range(3 * MOST_WAITING):
        thread.evict(os.dup(fd), header, 1.0)
    assert descriptors() - before <= MOST_WAITING
    await until(lambda: descriptors() == before, "all are closed")
    await asyncio.sleep(0)
    thread.close()
    os.close(fd)
