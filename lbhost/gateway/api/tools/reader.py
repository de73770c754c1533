"""Calls out of an answer's text as it comes. Pure.

A call is told once it is complete and right: what turns out not to be one is text again. Only where
a grammar has made the answer (ForcedReader) are arguments told while they come.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Mapping

from lbhost.gateway.api.tools import calls
from lbhost.gateway.api.tools.calls import Arguments, CallBegun, Event, Said
from lbhost.gateway.api.tools.families import Syntax
from lbhost.gateway.api.tools.json_span import JsonSpan
from lbhost.gateway.api.tools.tagged_span import TaggedSpan


class _State(enum.Enum):
    START = enum.auto()
    """Nothing but white space has come."""
    TEXT = enum.auto()
    CALL = enum.auto()
    """Behind a marker, or at a bracket: what comes should be a call."""
    AFTER = enum.auto()
    """Behind a call."""


class ToolReader:
    """One answer that may hold calls."""

    def __init__(
        self,
        syntax: Syntax,
        names: Collection[str],
        texts: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        """`names` are the functions that exist; `texts`: see TaggedSpan."""
        self._syntax = syntax
        self._names = names
        self._texts = texts or {}
        self._state = _State.START
        self._held = ""
        """What is not yet clear."""
        self._marker = ""
        self._bodies = 0
        """Characters of `_held` that are the name before a call's arguments."""
        self._span: JsonSpan | TaggedSpan | None = None
        self._seen = 0
        """Characters of `_held` that the span has looked at."""

    def feed(self, text: str) -> list[Event]:
        """What has become clear."""
        self._held += text
        return self._run(final=False)

    def finish(self) -> list[Event]:
        """The rest, which nothing follows."""
        events = self._run(final=True)
        if self._state is _State.CALL:
            events += self._say(self._marker + self._held)
        elif self._state is not _State.START:
            events += self._say(self._held.rstrip() if self._state is _State.AFTER else self._held)
        self._held = ""
        return events

    def _run(self, *, final: bool) -> list[Event]:
        events: list[Event] = []
        step = {
            _State.START: self._start,
            _State.TEXT: self._text,
            _State.CALL: self._call,
            _State.AFTER: self._after,
        }
        while (more := step[self._state](final)) is not None:
            events += more
        return events

    # --- one step each: events, or None when more must come -----------------------------

    def _start(self, final: bool) -> list[Event] | None:
        self._held = self._held.lstrip()
        if not self._held:
            return None
        bare = self._syntax.bare and self._held[0] in "{["
        self._state = _State.CALL if bare else _State.TEXT
        self._marker = ""
        return []

    def _text(self, final: bool) -> list[Event] | None:
        found = min(
            ((at, m) for m in self._syntax.markers if (at := self._held.find(m)) >= 0),
            default=None,
        )
        if found is not None:
            at, self._marker = found
            before, self._held = self._held[:at], self._held[at + len(self._marker) :]
            self._state = _State.CALL
            self._keep_what_is_a_tag()
            return self._say(before)
        keep = 0 if final else self._possible_marker()
        said, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return self._say(said) or None

    def _call(self, final: bool) -> list[Event] | None:
        if self._span is None:
            stripped = self._held.lstrip()
            if not stripped:
                return None
            blank = len(self._held) - len(stripped)
            tags = self._syntax.tags
            named = self._syntax.head.match(stripped)
            self._span = JsonSpan()
            if stripped[0] in "{[":
                self._bodies = blank
            elif tags is not None:
                self._bodies = 0
                self._span = TaggedSpan(tags, self._texts)
            elif named is not None and named[1] in self._names:
                self._bodies = blank + named.end()
            else:
                self._span = None
                waits = not final and self._syntax.maybe.fullmatch(stripped)
                return None if waits else self._no_call()
            self._seen = self._bodies
        length = self._span.feed(self._held[self._seen :])
        if length is None:
            self._seen = len(self._held)
            return None
        end = self._seen + length
        found = None if self._span.broken else self._read(self._held[self._bodies : end])
        if found is None:
            return self._no_call(self._span)
        self._held = self._held[end:]
        self._span = None
        self._state = _State.AFTER
        return found

    def _read(self, body: str) -> list[Event] | None:
        if isinstance(self._span, TaggedSpan):
            return self._span.events(self._names)
        name = self._syntax.head.match(self._held.lstrip()) if self._bodies else None
        if name is None:
            return calls.from_json(body, self._names)
        return calls.from_json(f'{{"name": "{name[1]}", "arguments": {body}}}', self._names)

    def _no_call(self, span: JsonSpan | TaggedSpan | None = None) -> list[Event]:
        """The marker meant nothing: it is text, and so is what came up to the next one."""
        self._span = None
        self._state = _State.TEXT
        # Tags that are in order may hold any text: nobody looks at that for calls once more.
        over = span.understood if isinstance(span, TaggedSpan) else 0
        if not self._marker:  # a bracket at the beginning: step over it
            over = max(1, over)
        said, self._held = self._marker + self._held[:over], self._held[over:]
        return self._say(said)

    def _keep_what_is_a_tag(self) -> None:
        """A marker with which the call itself begins is not before it."""
        if self._marker == "<function=":
            self._held, self._marker = self._marker + self._held, ""

    def _after(self, final: bool) -> list[Event] | None:
        rest = self._held.lstrip()
        closings = self._syntax.closing
        for closing in closings:
            if rest.startswith(closing):
                self._held = rest[len(closing) :]
                return []
        if not rest or (not final and any(closing.startswith(rest) for closing in closings)):
            return None
        for marker in self._syntax.markers:
            if marker.startswith(rest) and not final:
                return None
            if rest.startswith(marker):
                self._held, self._marker = rest[len(marker) :], marker
                self._state = _State.CALL
                self._keep_what_is_a_tag()
                return []
        if rest[0] in "{[" and (self._syntax.bare or "," in closings):
            self._held, self._marker = rest, ""
            self._state = _State.CALL
            return []
        self._state = _State.TEXT
        return []

    # --- text -----------------------------------------------------------------------------

    def _say(self, text: str) -> list[Event]:
        return [Said(text)] if text else []

    def _possible_marker(self) -> int:
        """Length of the longest end of what is held that begins a marker."""
        most = max(len(marker) for marker in self._syntax.markers) - 1
        for length in range(min(most, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(marker.startswith(tail) for marker in self._syntax.markers):
                return length
        return 0


class ForcedReader:
    """One answer that a grammar has made of calls and nothing else (forced.py), in JSON."""

    _BEGIN = re.compile(
        r'\{"name": "([^"]+)", "(?:arguments|parameters)": (?=\{)'
        r"|\A([A-Za-z0-9_.-]{1,128})\n```json\n(?=\{)"  # DeepSeek's
    )

    def __init__(self) -> None:
        self._held = ""
        self._span: JsonSpan | None = None

    def feed(self, text: str) -> list[Event]:
        """Arguments as far as they have come."""
        self._held += text
        events: list[Event] = []
        while True:
            if self._span is None:
                found = self._BEGIN.search(self._held)
                if found is None:
                    return events
                events.append(CallBegun(found[1] or found[2]))
                self._held = self._held[found.end() :]
                self._span = JsonSpan()
            length = self._span.feed(self._held)
            piece = self._held if length is None else self._held[:length]
            if piece:
                events.append(Arguments(piece))
            self._held = self._held[len(piece) :]
            if length is None:
                return events
            self._span = None

    def finish(self) -> list[Event]:
        """Nothing: what is left is brackets, or was cut off before a name was known."""
        return []
