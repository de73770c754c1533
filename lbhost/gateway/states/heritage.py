"""KV states on their way from a gateway to the one that takes over from it: the same memory, by
descriptor, so that no conversation is computed anew.

Owns both ends of that line. The old gateway gives what its stores hold, what was of use last first,
and then what its last requests leave; the new one takes what its own workers can go on from. Nobody
waits for it but a gateway that is about to end, and not for long.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
from collections import deque
from collections.abc import Sequence

from lbhost import log, state_file, state_link
from lbhost.errors import StateError
from lbhost.gateway.states.plane import Plane
from lbhost.gateway.states.store import Entry
from lbhost.packet_link import PacketLink
from lbhost.state_link import Left

_AGAIN_S = 0.005
"""A line that is full, or has too many descriptors on it, is tried again after so long."""

_KNOWN_LIMIT_S = 5.0
"""How long the new gateway waits to hear what its workers can go on from, before it reads."""


class Bequest:
    """The old gateway's end. Needs a running loop."""

    def __init__(self, fd: int, planes: Sequence[Plane]) -> None:
        """Raises OSError if the descriptor is no socket."""
        self._socket = socket.socket(fileno=fd)
        self._waiting: deque[tuple[Plane, Entry]] = deque()
        self._given = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None
        self._open = True
        for plane in planes:
            self._waiting.extend((plane, entry) for entry in plane.last_used_first())
            plane.heir = functools.partial(self._put, plane)
        self._give()

    async def given(self) -> None:
        """Return once nothing waits to be given."""
        await self._given.wait()

    def close(self) -> None:
        """Nothing is given any more."""
        self._open = False
        if self._later is not None:
            self._later.cancel()
        self._waiting.clear()
        self._given.set()
        self._socket.close()

    def _put(self, plane: Plane, entry: Entry) -> None:
        if self._open:
            self._given.clear()
            self._waiting.append((plane, entry))
            if self._later is None:
                self._give()

    def _give(self) -> None:
        self._later = None
        while self._waiting:
            plane, entry = self._waiting[0]
            if plane.holds(entry) and not entry.deaths:  # else it gave way meanwhile, or may kill
                left = Left(plane.unused_s(entry), entry.uses)
                try:
                    sent = state_link.send(self._socket, left, entry.fd)
                except ConnectionError:  # the new gateway has ended
                    self.close()
                    return
                if not sent:
                    loop = asyncio.get_running_loop()
                    self._later = loop.call_later(_AGAIN_S, self._give)
                    return
            self._waiting.popleft()
        self._given.set()


class Legacy:
    """The new gateway's end. Needs a running loop."""

    def __init__(self, fd: int, planes: Sequence[Plane]) -> None:
        """Raises OSError if the descriptor is no socket."""
        self._socket = socket.socket(fileno=fd)
        self._planes = planes
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + _KNOWN_LIMIT_S
        self._later: asyncio.TimerHandle | None = None
        self._link: PacketLink[tuple[Left, int]] | None = None
        """None: nothing is read yet."""
        self.open = True
        self.taken = self.refused = 0
        self._begin()

    def close(self) -> None:
        """Take no more."""
        if not self.open:
            return
        self.open = False
        if self._later is not None:
            self._later.cancel()
        (self._link or self._socket).close()
        log.get().info("KV states taken over", states=self.taken, refused=self.refused)

    def _begin(self) -> None:
        """Read as soon as it is known what is of use."""
        unknown = any(plane.identity is None and plane.unable is None for plane in self._planes)
        if unknown and self._loop.time() < self._until:
            self._later = self._loop.call_later(_AGAIN_S, self._begin)
            return
        self._later = None
        self._link = PacketLink(
            self._socket,
            state_link.receive_from_before,
            lambda packet: self._take(*packet),
            self.close,
            lambda error: log.get().error("line of KV states broken", reason=str(error)),
        )

    def _take(self, left: Left, fd: int) -> None:
        try:
            header = state_file.read(fd)
        except StateError as error:
            log.get().error("a KV state that was left is damaged", reason=error.message)
            plane = None
        else:
            fits = (plane for plane in self._planes if plane.identity == header.identity)
            plane = next(fits, None)
        if plane is None:
            self.refused += 1
            os.close(fd)
            return
        self.taken += 1
        plane.inherit(left, header, fd)
