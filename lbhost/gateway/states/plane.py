"""KV states in the gateway: what comes from workers, what goes with a request, what is dropped.

Owns the store's descriptors, the states links and the counts. A worker is only ever advised: a
state that does not arrive, or does not fit, costs the computing that it would have spared.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from typing import Protocol

import msgspec

from lbhost import log, state_file
from lbhost.errors import StateError
from lbhost.gateway.scheduling.job import Job
from lbhost.gateway.scheduling.prefix_index import BLOCK
from lbhost.gateway.scheduling.worker_link import WorkerLink
from lbhost.gateway.states.disk import Kept
from lbhost.gateway.states.disk_thread import DiskThread
from lbhost.gateway.states.link import StatesLink
from lbhost.gateway.states.purse import Purse
from lbhost.gateway.states.store import Entry, Match, Store
from lbhost.state_file import Header
from lbhost.state_link import Able, FromWorker, Left, Saved, Taken, Unable

MAX_ENTRIES = 512
"""States; each holds a descriptor."""

LEAST = BLOCK // 2
"""Tokens that a state must spare a worker: as much as is not known of its slots, on average. A
short prompt is computed in 30 ms and copied in 3."""

KEPT = 64
"""Workers' processes of which it is remembered what they were to load."""

_GUESS_BYTES_S = 1e9
_FIXED_S = 0.002
_WEIGHT = 0.2
"""Of the newest load in the speed."""
_LEAST_BYTES_S, _MOST_BYTES_S = 1e6, 1e12
"""What a load's speed can be: a worker that was taken over says anything, and it is divided by."""


class Counts(msgspec.Struct):
    """What has happened since the gateway started."""

    hits: int = 0
    """States that a worker went on from."""
    misses: int = 0
    """Requests for which there was nothing."""
    tokens: int = 0
    """That were not computed, thanks to them."""
    saved: int = 0
    evicted: int = 0
    restored: int = 0
    """States that were read from disk."""
    failed: int = 0
    """States that were of no use where they arrived, or were damaged."""
    save_s: float = 0.0
    load_s: float = 0.0


class Speeds(Protocol):
    """Who knows how fast workers compute: sessions.Sessions."""

    def speeds(self) -> tuple[float, float, float]: ...


class Plane:
    """See the module. One model's.

    Args:
        purse: who says how many bytes its states may take.
    """

    def __init__(
        self,
        purse: Purse,
        speeds: Speeds,
        clock: Callable[[], float] = time.monotonic,
        most_entries: int = MAX_ENTRIES,
        disk: DiskThread | None = None,
    ) -> None:
        self._disk = disk
        self._closed = False
        self._most_entries = most_entries
        self._speeds = speeds
        self._clock = clock
        self._store = Store()
        self._links: dict[WorkerLink, StatesLink] = {}
        self._sent: dict[WorkerLink, dict[int, Entry]] = {}
        self._blamed: dict[tuple[int, int], list[Entry]] = {}
        """What workers (id, epoch) were to load when they ended, until it is known how they did."""
        self._bytes_s = _GUESS_BYTES_S
        self.purse = purse
        self.limit: float = 0.0
        """Bytes that they may take now."""
        self.counts = Counts()
        self.unable: str | None = None
        """Why this model's states cannot be moved; None while nobody has said so, and once
        somebody has moved one: a worker that was told to end in its test says so, too."""
        self.identity: bytes | None = None
        """What a state must have in common with this model's workers; None while none has said."""
        self.heir: Callable[[Entry], None] | None = None
        """Gets what workers save from now on."""
        purse.add(self)

    @property
    def entries(self) -> int:
        return len(self._store)

    @property
    def bytes(self) -> int:
        return self._store.bytes

    # --- links ------------------------------------------------------------------------

    def join(self, link: WorkerLink, fd: int) -> None:
        """The states link beside a data link. Raises OSError if the descriptor is none.

        Where nothing is to be kept it is closed, which tells the worker so.
        """
        if self.purse.empty:
            os.close(fd)
            return
        self._links[link] = StatesLink(fd, lambda message, fd: self._on_message(link, message, fd))
        self._sent[link] = {}

    def leave(self, link: WorkerLink) -> None:
        """The worker is gone. What it was about to load may be the reason: see `ended`."""
        states = self._links.pop(link, None)
        if states is None:
            return
        states.drain()
        states.close()
        blamed = self._blamed[link.worker, link.epoch] = list(self._sent.pop(link).values())
        for entry in blamed:
            entry.deaths += 1
        if len(self._blamed) > KEPT:
            del self._blamed[next(iter(self._blamed))]

    def ended(self, worker: int, epoch: int, by_its_work: bool) -> None:
        """The supervisor says how a process ended, shortly before or after its links did.

        Who was killed from outside says nothing of the states that it was about to load; where
        that counted, those that are needed most would go first.
        """
        blamed = self._blamed.pop((worker, epoch), [])
        if by_its_work:
            return
        for entry in blamed:
            entry.deaths -= 1
        for link, sent in self._sent.items():
            if (link.worker, link.epoch) == (worker, epoch):
                sent.clear()

    def read(self, link: WorkerLink) -> None:
        """Take in what a worker has sent up to now."""
        states = self._links.get(link)
        if states is not None:
            states.drain()

    def close(self) -> None:
        """Let go of everything in memory."""
        self._closed = True
        for link in list(self._links):
            self.leave(link)
        for entry in list(self._store):
            self._store.remove(entry)
            os.close(entry.fd)
        if self._disk is not None:
            self._disk.close()

    # --- requests ---------------------------------------------------------------------

    def look(self, job: Job) -> None:
        """Find the best state for a job that is about to be placed, and what it is worth."""
        if job.match_version == self._store.version:
            return
        job.match_version = self._store.version
        # what is to be scored is computed, whatever there is
        job.match = None if job.scored else self._store.find(job.work.scope, job.known())
        job.stored = 0 if job.match is None else max(0, int(self._gain(job.match)))

    def attach(self, link: WorkerLink, number: int, job: Job, own: int) -> bool:
        """Send the job's state ahead of it, if that pays.

        Args:
            number: of the attempt.
            own: tokens that the worker probably has already.

        Returns:
            Whether it is on its way.
        """
        match, states = job.match, self._links.get(link)
        if states is None:
            return False
        if match is None:
            self.counts.misses += 1
            return False
        if match.entry.deaths > 1:
            self._remove(match.entry)
            job.match = None
            return False
        spared = match.tokens - own
        if spared < LEAST or self._gain(match) <= own:
            return False
        if not states.send(number, match.entry.fd):
            return False
        self._sent[link][number] = match.entry
        return True

    def released(self, link: WorkerLink, number: int) -> None:
        """An attempt has ended: if its state was not looked at yet, it never will be.

        What became of it was sent before the attempt's end, but on the other link.
        """
        sent = self._sent.get(link)
        if sent is not None and number in sent:
            self.read(link)
            sent.pop(number, None)

    def _gain(self, match: Match) -> float:
        """Tokens that need not be computed, less those that could be in the time of copying."""
        prefill_tok_s = self._speeds.speeds()[0]
        copy_s = _FIXED_S + match.entry.size / self._bytes_s
        return match.tokens - copy_s * prefill_tok_s

    # --- what workers say ---------------------------------------------------------------

    def _on_message(self, link: WorkerLink, message: FromWorker, fd: int | None) -> None:
        match message:
            case Saved():
                assert fd is not None
                self._saved(message, fd)
            case Taken():
                self._taken(link, message)
            case Unable(reason):
                self.unable = reason
            case Able(identity):
                self.identity = identity
                if self._disk is not None:
                    self._disk.load(identity, self.limit - self._store.bytes, self._restored)

    def _saved(self, saved: Saved, fd: int) -> None:
        self.counts.save_s += saved.seconds
        try:
            header = state_file.read(fd)
        except StateError as error:
            log.get().error("a worker's KV state is damaged", reason=error.message)
            self.counts.failed += 1
            os.close(fd)
            return
        self.counts.saved += 1
        self.unable = None
        entry = Entry(header.scope, header.tokens, fd, header.size, self._clock())
        self._add(entry)
        if self.heir is not None:
            self.heir(entry)

    def _restored(self, kept: Kept) -> None:
        """A state has been read from disk."""
        if self._closed:
            os.close(kept.fd)
            return
        self.counts.restored += 1
        header, ago_s = kept.header, max(0.0, time.time() - kept.used_s)
        used = self._clock() - ago_s
        entry = Entry(header.scope, header.tokens, kept.fd, header.size, used, file=kept.file)
        self._add(entry)

    # --- from one gateway to the next -----------------------------------------------------

    def last_used_first(self) -> list[Entry]:
        """All states."""
        return sorted(self._store, key=lambda entry: -entry.used)

    def holds(self, entry: Entry) -> bool:
        """Whether it has not given way."""
        return entry in self._store

    def unused_s(self, entry: Entry) -> float:
        """How long ago it was last of use."""
        return max(0.0, self._clock() - entry.used)

    def inherit(self, left: Left, header: Header, fd: int) -> None:
        """Take a state over from the gateway before this one."""
        if self._closed or self.purse.empty:
            os.close(fd)
            return
        used = self._clock() - max(0.0, left.unused_s)
        uses = max(0, left.uses)
        self._add(Entry(header.scope, header.tokens, fd, header.size, used, uses=uses))

    def _add(self, entry: Entry) -> None:
        for one in self._store.add(entry):
            self._discard(one)
        self.purse.spread()

    def _taken(self, link: WorkerLink, taken: Taken) -> None:
        entry = self._sent[link].pop(taken.number, None)
        if taken.tokens:
            if entry is not None:
                entry.used = self._clock()
                entry.uses += 1
            self.counts.hits += 1
            self.counts.tokens += taken.tokens
            self.counts.load_s += taken.seconds
            speed = taken.bytes / max(1e-6, taken.seconds - _FIXED_S)
            speed = min(_MOST_BYTES_S, max(_LEAST_BYTES_S, speed))
            self._bytes_s += _WEIGHT * (speed - self._bytes_s)
        elif taken.problem:
            self.counts.failed += 1
            if entry is not None:
                self._remove(entry)

    # --- memory -----------------------------------------------------------------------

    def allow(self, limit: float) -> None:
        """So many bytes it may take from now on."""
        self.limit = limit
        self._shrink()

    def _shrink(self) -> None:
        for entry in self._store.shrink(self.limit, self._most_entries, self._clock()):
            self.counts.evicted += 1
            if self._disk is None:
                os.close(entry.fd)
            else:
                header, used_s = state_file.read(entry.fd), self._used_s(entry)
                self._disk.evict(entry.fd, header, used_s, entry.file)

    def _remove(self, entry: Entry) -> None:
        if self._store.remove(entry):
            self._discard(entry)

    def _discard(self, entry: Entry) -> None:
        """It is of no use any more, in memory or on disk."""
        os.close(entry.fd)
        if self._disk is not None and entry.file is not None:
            self._disk.remove(entry.file)

    def _used_s(self, entry: Entry) -> float:
        """Unix time at which it was last of use."""
        return time.time() - (self._clock() - entry.used)

    async def keep(self, limit_s: float) -> None:
        """Write what is in memory to disk, what was of use last first, for so long at most."""
        if self._disk is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                for entry in self.last_used_first():
                    if entry not in self._store:
                        continue  # it gave way while another one was written: its fd is closed
                    header, used_s = state_file.read(entry.fd), self._used_s(entry)
                    if not await self._disk.write(entry.fd, header, used_s, entry.file):
                        return
