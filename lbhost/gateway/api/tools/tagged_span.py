"""A call whose arguments stand in tags, piece by piece, each character looked at once or twice.
Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping

import msgspec

from lbhost.gateway.api.tools import calls
from lbhost.gateway.api.tools.calls import Event

_LONGEST_TAG = 600
"""Characters of a tag with a name in it, and white space before it."""

_OTHER_WORDS = {"null": None, "None": None, "True": True, "False": False}


class Tags(msgspec.Struct, frozen=True):
    """How a family writes them."""

    name: re.Pattern[str]
    """What a call begins with; its first group is the function."""
    name_begins: str
    """That pattern's beginning; empty: with the name."""
    key: re.Pattern[str]
    """What an argument begins with; its first group is the argument's name."""
    key_begins: str
    value: str
    """What an argument ends with."""
    end: str
    """What the call ends with."""
    lines: bool = False
    """A value is on lines of its own."""


class TaggedSpan:
    """One call, from its function's name on. Fed and asked as a JsonSpan is."""

    def __init__(self, tags: Tags) -> None:
        self._tags = tags
        self._text = ""
        self._at = 0
        """All before it is understood."""
        self._looked = 0
        """There is no end of the value before it."""
        self._name: str | None = None
        self._key: str | None = None
        self._values: list[tuple[str, str]] = []
        self.broken = False
        """It is no call."""

    @property
    def understood(self) -> int:
        """How many characters of it were in order."""
        return self._at

    def feed(self, text: str) -> int | None:
        """How many of these characters belong to it if it ends here, else None: all."""
        before = len(self._text)
        self._text += text
        while True:
            if self._key is not None:
                if not self._value():
                    return None
            elif self._name is not None and self._ends():
                return self._at - before
            elif not self._tag():
                if self._undecided():
                    return None
                self.broken = True
                return max(0, self._at - before)

    def events(
        self, names: Collection[str], texts: Mapping[str, Collection[str]]
    ) -> list[Event] | None:
        """The call; None if it is of something unknown.

        Args:
            texts: which arguments of which functions are texts, whatever they look like.
        """
        if self._name is None or self._name not in names:
            return None
        plain = texts.get(self._name, ())
        made = {key: value if key in plain else _read(value) for key, value in self._values}
        return calls.of(self._name, json.dumps(made, ensure_ascii=False))

    def _tag(self) -> bool:
        """Whether a name, or else an argument, begins here."""
        pattern = self._tags.name if self._name is None else self._tags.key
        found = pattern.match(self._text, self._at)
        if found is None:
            return False
        self._at = self._looked = found.end()
        if self._name is None:
            self._name = found[1]
        else:
            self._key = found[1].strip()
        return True

    def _ends(self) -> bool:
        rest = self._text[self._at : self._at + _LONGEST_TAG].lstrip()
        if not rest.startswith(self._tags.end):
            return False
        self._at = self._text.index(self._tags.end, self._at) + len(self._tags.end)
        return True

    def _value(self) -> bool:
        """Whether the end of the argument is there."""
        assert self._key is not None
        end = self._text.find(self._tags.value, self._looked)
        if end < 0:
            self._looked = max(self._at, len(self._text) - len(self._tags.value))
            return False
        value = self._text[self._at : end]
        if self._tags.lines:
            value = value.removeprefix("\n").removesuffix("\n")
        self._values.append((self._key, value))
        self._key = None
        self._at = end + len(self._tags.value)
        return True

    def _undecided(self) -> bool:
        """Whether more text may make a tag of what is here."""
        if len(self._text) - self._at > _LONGEST_TAG:
            return False
        rest = self._text[self._at :].lstrip()
        if self._name is None and not self._tags.name_begins:
            return not rest or _WORD.fullmatch(rest) is not None
        if self._name is None:
            begins: tuple[str, ...] = (self._tags.name_begins,)
        else:
            begins = (self._tags.key_begins, self._tags.end)
        return any(rest.startswith(one) or one.startswith(rest) for one in begins)


_WORD = re.compile(r"[A-Za-z0-9_.-]{1,128}\s*")


def _read(value: str) -> object:
    """JSON's value, or Python's words for it; anything else is a text."""
    if value.strip() in _OTHER_WORDS:
        return _OTHER_WORDS[value.strip()]
    read = calls.parsed(value)
    return value if read is None else read
