"""Where a JSON object or array ends, piece by piece, each character looked at once. Pure."""

from __future__ import annotations

import re

_NEXT = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'[\\"]')


class JsonSpan:
    """One object or array, from its opening bracket on."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._in_string = False
        self._escaped = False
        self.broken = False
        """A bracket closes what another kind opened."""

    def feed(self, text: str) -> int | None:
        """How many of these characters belong to it if it ends here, else None: all."""
        at = 0
        if self._escaped and text:
            self._escaped = False
            at = 1
        while True:
            found = (_IN_STRING if self._in_string else _NEXT).search(text, at)
            if found is None:
                return None
            at = found.end()
            match found[0]:
                case '"':
                    self._in_string = not self._in_string
                case "\\":
                    if at == len(text):
                        self._escaped = True
                        return None
                    at += 1
                case "{" | "[":
                    self._open.append(found[0])
                case closing:
                    opening = self._open.pop()
                    self.broken = self.broken or opening + closing not in ("{}", "[]")
                    if self.broken or not self._open:
                        return at
