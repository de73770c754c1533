"""Where a JSON object or array ends, piece by piece, each character looked at once. Pure.

What no JSON has outside of strings ends it at once. That keeps readers fast which begin anew at
each marker of a call: no text is within a string for one beginning and outside for the next one.
"""

from __future__ import annotations

import re

_NEXT = re.compile(r"[^\s,:0-9.+\-truefalsnNIityE]")
"""What ends white space, numbers and the names of JSON's and Python's values."""

_IN_STRING = re.compile(r'[\\"]')


class JsonSpan:
    """One object or array, from its opening bracket on."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._in_string = False
        self._escaped = False
        self.broken = False
        """A bracket closes what another kind opened, or something is no JSON."""

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
                case other:
                    opening = self._open.pop()
                    self.broken = self.broken or opening + other not in ("{}", "[]")
                    if self.broken or not self._open:
                        return at
