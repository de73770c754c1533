"""What of a message is framing: chunk sizes, trailers, a wish for another protocol. Pure.

httptools tells a size line and a trailer only when it is complete, and keeps what is unfinished to
itself; so what it has swallowed is counted here.
"""

from __future__ import annotations

from lbhost.errors import InvalidRequestError, LbhostError

LINE_END = 2
"""Bytes that may always follow what was complete."""


class Framing:
    """Of one body, while it comes."""

    def __init__(self) -> None:
        self.events = 0
        """Size lines and pieces of data so far."""
        self._size_line_last = False
        """A chunk's size line was the last thing understood: data comes now, or the end."""
        self._after_size_line = 0
        """Bytes since then that were no data."""

    def on_size_line(self) -> None:
        """A chunk's size line is complete, the last one's of size 0 too."""
        self.events += 1
        self._size_line_last = True
        self._after_size_line = 0

    def on_data(self) -> None:
        """Some of the body has come."""
        self.events += 1
        self._size_line_last = False

    def problem(
        self, size: int, *, quiet: bool, read: int, body: int, most: int
    ) -> LbhostError | None:
        """Bound what is no body: chunk sizes and their extensions, and trailers.

        Args:
            size: bytes that have just been read, all of them after the head.
            quiet: they completed no size line and held no data.
            read: bytes read after the head.
            body: those of them that were data.
            most: bytes of framing beyond the data's size that are let pass.
        """
        if self._size_line_last and quiet:
            self._after_size_line += size
            return trailers() if self._after_size_line > LINE_END else None
        if read > 2 * body + most:
            return InvalidRequestError("the body's chunks are mostly framing")
        return None


def trailers() -> LbhostError:
    """The answer to what comes after a chunked body."""
    return InvalidRequestError("trailers after a chunked body are not supported")


def without_upgrade(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of a request that asks to be answered in the protocol it came in."""
    kept: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        if name == b"connection":
            words = [word.strip() for word in value.split(b",")]
            words = [w for w in words if w.lower() not in (b"upgrade", b"http2-settings")]
            kept.append((name, b", ".join(words)))
        elif name not in (b"upgrade", b"http2-settings"):
            kept.append((name, value))
    return kept
