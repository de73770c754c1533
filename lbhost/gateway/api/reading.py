"""Thoughts, text and calls out of what the model wrote, as it comes. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from lbhost.gateway.api.tools.calls import Arguments, CallBegun, Event, Said, Thought
from lbhost.gateway.api.tools.families import SYNTAX, Family
from lbhost.gateway.api.tools.harmony import HarmonyReader
from lbhost.gateway.api.tools.reader import ForcedReader, ToolReader


class Thinking(msgspec.Struct, frozen=True):
    """How a model marks what it writes for itself."""

    opening: str
    closing: str
    begun: bool = False
    """The prompt ends with `opening`."""


class Reading(msgspec.Struct, frozen=True):
    """What there is to find in an answer's text."""

    thinking: Thinking | None = None
    family: Family | None = None
    """None: no calls."""
    names: tuple[str, ...] = ()
    """The functions that exist."""
    texts: dict[str, tuple[str, ...]] = {}
    """Which of their arguments are texts, for families that do not put them into quotes."""
    forced: bool = False
    """A grammar makes the answer of calls alone."""
    parallel: bool = True
    """False: only the first call counts."""


class AnswerReader:
    """One answer, from its first to its last character."""

    def __init__(self, reading: Reading) -> None:
        self._thinking: _ThoughtReader | None = None
        if reading.thinking is not None and reading.family is not Family.HARMONY:
            self._thinking = _ThoughtReader(reading.thinking)
        self._calls = None if reading.family is None else _reader(reading.family, reading)
        self._parallel = reading.parallel
        self.calls = 0
        """Calls so far."""

    def feed(self, text: str) -> list[Event]:
        """What more text has made clear; pieces of one kind are one event."""
        return self._joined(self._read(text))

    def finish(self) -> list[Event]:
        """What was held back, now that nothing follows."""
        rest = [] if self._thinking is None else self._thinking.finish()
        events = self._through_calls(rest)
        if self._calls is not None:
            events += self._calls.finish()
        return self._joined(events)

    def _read(self, text: str) -> list[Event]:
        return self._through_calls(
            [Said(text)] if self._thinking is None else self._thinking.feed(text)
        )

    def _through_calls(self, events: list[Event]) -> list[Event]:
        if self._calls is None:
            return events
        found: list[Event] = []
        for event in events:
            found += self._calls.feed(event.text) if isinstance(event, Said) else [event]
        return found

    def _joined(self, events: Iterable[Event]) -> list[Event]:
        joined: list[Event] = []
        for event in events:
            if isinstance(event, CallBegun):
                self.calls += 1
            elif not event.text:
                continue
            if self.calls > 1 and not self._parallel and isinstance(event, CallBegun | Arguments):
                continue
            last = joined[-1] if joined else None
            if isinstance(event, Said) and isinstance(last, Said):
                joined[-1] = Said(last.text + event.text)
            elif isinstance(event, Thought) and isinstance(last, Thought):
                joined[-1] = Thought(last.text + event.text)
            elif isinstance(event, Arguments) and isinstance(last, Arguments):
                joined[-1] = Arguments(last.text + event.text)
            else:
                joined.append(event)
        return joined


def _reader(family: Family, reading: Reading) -> ToolReader | ForcedReader | HarmonyReader:
    syntax = SYNTAX[family]
    if reading.forced and syntax.tags is None:
        return ForcedReader()
    if family is Family.HARMONY:
        return HarmonyReader(reading.names)
    return ToolReader(syntax, reading.names, reading.texts)


class _ThoughtReader:
    """What stands between the tags at the beginning of an answer."""

    def __init__(self, thinking: Thinking) -> None:
        self._tags = thinking
        self._inside = thinking.begun
        self._over = False
        """No thought may follow."""
        self._blank = True
        """Only white space has come since the last tag: it is nobody's text."""
        self._held = ""

    def feed(self, text: str) -> list[Event]:
        if self._over and not self._blank:
            return [Said(text)]
        self._held += text
        events: list[Event] = []
        while self._held:
            if self._blank:
                self._held = self._held.lstrip()
                if not self._held:
                    break
            if self._over:
                self._blank = False
                return [*events, self._let_go()]
            if not self._inside:
                if self._held.startswith(self._tags.opening):
                    self._held = self._held[len(self._tags.opening) :]
                    self._inside = True
                    continue
                if self._tags.opening.startswith(self._held):
                    break
                self._over, self._blank = True, False
                return [*events, self._let_go()]
            self._blank = False
            thought, closing, rest = self._held.partition(self._tags.closing)
            if closing:
                events.append(Thought(thought.rstrip()))
                self._held = rest
                self._inside, self._over, self._blank = False, True, True
                continue
            keep = self._uncertain()
            events.append(Thought(self._held[: len(self._held) - keep]))
            self._held = self._held[len(self._held) - keep :]
            break
        return events

    def finish(self) -> list[Event]:
        held = self._held
        self._held = ""
        if not held:
            return []
        return [Thought(held.rstrip()) if self._inside else Said(held)]

    def _let_go(self) -> Event:
        held, self._held = self._held, ""
        return Said(held)

    def _uncertain(self) -> int:
        """Length of the end that may begin the closing tag, with the white space before it."""
        tag = self._tags.closing
        cut = len(self._held)
        for length in range(min(len(tag) - 1, cut), 0, -1):
            if self._held.endswith(tag[:length]):
                cut -= length
                break
        return len(self._held) - len(self._held[:cut].rstrip())
