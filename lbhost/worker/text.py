"""From token bytes to text: UTF-8 across token boundaries, and stop strings. Pure.

Text lags behind tokens: an incomplete character waits for its last byte, and whatever could
be the beginning of a stop string waits until it is clear that it is not.
"""

from __future__ import annotations

import codecs
import operator


class TextStream:
    """The text of one sequence. `stop` is the stop string that was found."""

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stop: str | None = None

    @property
    def stopped(self) -> bool:
        return self.stop is not None

    def feed(self, piece: bytes) -> str:
        """The text that is certain after one more token. Invalid bytes become U+FFFD."""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """What was held back; an incomplete character becomes U+FFFD."""
        text = self._release(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.stop = min(found, key=operator.itemgetter(0))
            self._held = ""
            return text[:at]
        keep = self._possible_start(text)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
