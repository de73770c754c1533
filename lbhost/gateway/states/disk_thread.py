"""Disk work beside the event loop: one thread, a bounded number of states on their way.

Tells what goes wrong once: a disk that is full stays so for a while, and costs the cache alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lbhost import log
from lbhost.gateway.states.disk import Disk, Kept
from lbhost.state_file import Header

MOST_WAITING = 4
"""States that wait to be written; each still takes its memory. More are dropped."""


class DiskThread:
    """See the module. Needs a running loop, but for its making."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="states")
        self._waiting = 0
        self._identity: bytes | None = None
        self._told = False
        self._closed = False

    def load(self, identity: bytes, most_bytes: float, take: Callable[[Kept], None]) -> None:
        """Read what is kept for an identity, once, and hand each state over in the loop."""
        if identity == self._identity or self._closed:
            return
        self._identity = identity
        loop = asyncio.get_running_loop()
        self._thread.submit(self._load, identity, most_bytes, loop, take)

    def _load(
        self,
        identity: bytes,
        most_bytes: float,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[Kept], None],
    ) -> None:
        count = 0
        for kept in self._disk.read(identity, most_bytes):
            try:
                if self._closed:
                    raise RuntimeError("the gateway ends")
                loop.call_soon_threadsafe(take, kept)
            except RuntimeError:  # the loop is closed
                os.close(kept.fd)
                return
            count += 1
        log.get().info("KV states read from disk", states=count, folder=str(self._disk.folder))

    def evict(self, fd: int, header: Header, used_s: float, file: Path | None = None) -> None:
        """Write a state that memory has no room for, and close it; or only close it.

        Args:
            file: see `write`.
        """
        if self._closed or self._waiting >= MOST_WAITING:
            os.close(fd)
            return
        self._waiting += 1
        loop = asyncio.get_running_loop()
        done = self._thread.submit(self._write, fd, header, used_s, file)
        done.add_done_callback(lambda _: self._closed or loop.call_soon_threadsafe(self._written))

    def _written(self) -> None:
        self._waiting -= 1

    def _write(self, fd: int, header: Header, used_s: float, file: Path | None) -> bool:
        """Whether the disk takes states."""
        try:
            if file is None or not self._disk.touch(file, used_s):
                self._disk.write(fd, header, used_s)
            return True
        except OSError as error:
            self._tell(error)
            return False
        finally:
            os.close(fd)

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            reason = error.strerror or str(error)
            log.get().warning("KV states cannot be kept on disk", reason=reason)

    async def write(self, fd: int, header: Header, used_s: float, file: Path | None = None) -> bool:
        """Write a state, which stays the caller's. False if the disk takes none.

        Args:
            file: that it was read from. While that is there, only its time is written.
        """
        loop = asyncio.get_running_loop()
        try:
            own = os.dup(fd)  # before the first wait: fd may be closed in that
        except OSError as error:  # no descriptor is left
            self._tell(error)
            return False
        return await loop.run_in_executor(self._thread, self._write, own, header, used_s, file)

    def remove(self, path: Path) -> None:
        """It is of no use any more."""
        if not self._closed:
            self._thread.submit(self._disk.remove, path)

    def close(self) -> None:
        """Begin nothing more; what is being written is finished."""
        self._closed = True
        self._thread.shutdown(wait=True, cancel_futures=False)
