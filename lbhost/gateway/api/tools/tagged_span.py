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

_JSON_BEGINS = ('"', "{", "[")
_INK = re.compile(r"\S")

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

    def __init__(self, tags: Tags, texts: Mapping[str, Collection[str]]) -> None:
        """`texts`: which arguments of which functions are texts, whatever they look like."""
        self._tags = tags
        self._texts = texts
        self._text = ""
        self._at = 0
        """All before it is understood."""
        self._looked = 0
        """There is no end of the value before it."""
        self._name: str | None = None
        self._key: str | None = None
        self._json: _JsonValue | None = None
        """Looks for the end of an argument that may be JSON; None: the next tag ends it."""
        self._trusted = True
        """Nothing that began as JSON was none."""
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

    def events(self, names: Collection[str]) -> list[Event] | None:
        """The call; None if it is of something unknown."""
        if self._name is None or self._name not in names:
            return None
        plain = self._texts.get(self._name, ())
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
        end = self._end_of_value()
        if end is None:
            return False
        value = self._text[self._at : end]
        if self._tags.lines:
            value = value.removeprefix("\n").removesuffix("\n")
        self._values.append((self._key, value))
        self._key = self._json = None
        self._at = end + len(self._tags.value)
        return True

    def _end_of_value(self) -> int | None:
        """Where the tag is that ends the argument: the first one that no string of JSON holds."""
        tag = self._tags.value
        if self._json is None and self._looked == self._at and self._may_be_json():
            begins = _INK.search(self._text, self._at)
            if begins is None:
                return None
            if begins[0] in _JSON_BEGINS:
                self._json = _JsonValue(tag, self._at)
        if self._json is not None:
            end = self._json.end(self._text)
            if not self._json.broken:
                return end
            # Once is enough: what begins as JSON again and again would be read again and again.
            self._trusted, self._json = False, None
        end = self._text.find(tag, self._looked)
        if end < 0:
            self._looked = max(self._at, len(self._text) - len(tag))
            return None
        return end

    def _may_be_json(self) -> bool:
        return self._trusted and self._key not in self._texts.get(self._name or "", ())

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


class _JsonValue:
    """Looks for the tag that ends an argument in JSON. A string of it may hold that tag, too."""

    _OUTSIDE, _INSIDE = re.compile(r'["\\]'), re.compile(r'["\\\x00-\x1f]')

    def __init__(self, tag: str, at: int) -> None:
        self._tag = tag
        self._at = at
        """All before it was looked at."""
        self._in_string = False
        self.broken = False
        """It is no JSON: a string with a line break in it, or a backslash outside of strings."""

    def end(self, text: str) -> int | None:
        """Where the tag begins; None: it has not come. `text` only grows."""
        while True:
            found = (self._INSIDE if self._in_string else self._OUTSIDE).search(text, self._at)
            stop = len(text) if found is None else found.start()
            if not self._in_string:
                end = text.find(self._tag, self._at, stop)
                if end >= 0:
                    return end
            if found is None:
                self._at = max(self._at, stop - len(self._tag) + 1)
                return None
            if found[0] == '"':
                self._in_string = not self._in_string
                self._at = found.end()
            elif found[0] != "\\" or not self._in_string:
                self.broken = True
                return None
            elif found.end() == len(text):  # what it escapes is still to come
                self._at = found.start()
                return None
            else:
                self._at = found.end() + 1


_WORD = re.compile(r"[A-Za-z0-9_.-]{1,128}\s*")


def _read(value: str) -> object:
    """JSON's value, or Python's words for it; anything else is a text."""
    if value.strip() in _OTHER_WORDS:
        return _OTHER_WORDS[value.strip()]
    read = calls.parsed(value)
    return value if read is None else read
