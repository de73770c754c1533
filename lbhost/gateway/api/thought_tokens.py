"""How many of an answer's tokens are its thought: for what clients are told that it cost. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lbhost import wire
from lbhost.gateway.api.reading import Thinking


class ThoughtTokens:
    """Counts one answer's, the tags included. Where a token ends one, it belongs to it."""

    def __init__(self, thinking: Thinking | None, pieces: Callable[[int], bytes]) -> None:
        """`pieces`: what a token stands for, special ones written out."""
        self._pieces = pieces
        self._opening = b"" if thinking is None else thinking.opening.encode()
        self._closing = b"" if thinking is None else thinking.closing.encode()
        self._inside = thinking is not None and thinking.begun
        self._over = thinking is None
        self._seen = b""
        """What the next tag may begin in."""
        self._count = 0

    def feed(self, tokens: Iterable[int]) -> None:
        """The answer's next tokens."""
        for token in tokens:
            if self._over:
                return
            self._count += 1
            self._seen += self._pieces(token)
            if not self._inside:
                self._look_for_opening()
            if self._inside:
                self._over = self._closing in self._seen
                self._seen = self._seen[1 - len(self._closing) :]

    def of(self, finish: wire.Finish) -> int:
        """How many there were in the answer that ended so."""
        if not self._inside:
            return 0
        return self._count if self._over else finish.completion_tokens

    def _look_for_opening(self) -> None:
        text = self._seen.lstrip()
        if text.startswith(self._opening):
            self._inside = True
            self._seen = text[len(self._opening) :]
        elif not self._opening.startswith(text):
            self._over = True
