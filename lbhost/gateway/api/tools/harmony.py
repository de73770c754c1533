"""Answers of gpt-oss, in OpenAI's harmony format: messages, each in a channel. Pure.

`<|channel|>analysis<|message|>` begins a thought, `final` text, `commentary to=functions.NAME` a
call's arguments; `<|end|>` ends a message and `<|start|>assistant` begins the next one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from lbhost.gateway.api.tools import calls
from lbhost.gateway.api.tools.calls import Event, Said, Thought

_MESSAGE = "<|message|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_BEGINS = ("<|start|>", "<|channel|>")
_END = re.compile("|".join(re.escape(mark) for mark in (*_ENDS, *_BEGINS)))
_HEADS = (*_BEGINS, "to=", "<|constrain|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_TO = re.compile(r"\bto=(?:functions\.)?([A-Za-z0-9_.-]{1,128})")

_LONGEST_HEAD = 400


class HarmonyReader:
    """One answer. `names` are the functions that exist."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._in_head = True
        self._thinks = False
        self._called: str | None = None
        """The function whose arguments come."""
        self._arguments = ""

    def feed(self, text: str) -> list[Event]:
        """What has become clear."""
        self._held += text
        events: list[Event] = []
        while (more := self._head() if self._in_head else self._body()) is not None:
            events += more
        return events

    def finish(self) -> list[Event]:
        """The rest, which nothing follows. A head without a message says nothing."""
        held, self._held = self._held, ""
        if self._in_head:
            begun = held.lstrip()
            return [] if not begun or begun.startswith(_BEGINS) else [Said(held)]
        return self._piece(held) + self._over()

    def _head(self) -> list[Event] | None:
        """Read what stands before a message; None when more must come."""
        head, mark, rest = self._held.partition(_MESSAGE)
        if not self._may_be_head(head):  # a model that has forgotten its format
            first, self._held = self._held[:1], self._held[1:]
            self._begin(Said, None)
            return [Said(first)]
        if not mark:
            return None
        self._held = rest
        channel, to = _CHANNEL.search(head), _TO.search(head)
        if to is not None:
            self._begin(Said, to[1])
        else:
            thinks = channel is not None and channel[1] == "analysis"
            self._begin(Thought if thinks else Said, None)
        return []

    @staticmethod
    def _may_be_head(text: str) -> bool:
        begun = text.lstrip()
        return len(begun) <= _LONGEST_HEAD and any(
            begun.startswith(head) or head.startswith(begun) for head in _HEADS
        )

    def _begin(self, kind: type[Said] | type[Thought], called: str | None) -> None:
        self._in_head = False
        self._thinks = kind is Thought
        self._called, self._arguments = called, ""

    def _body(self) -> list[Event] | None:
        """Some of a message; None when more must come."""
        found = _END.search(self._held)
        if found is None:
            cut = len(self._held) - self._possible_mark()
            piece, self._held = self._held[:cut], self._held[cut:]
            return self._piece(piece) or None
        events = self._piece(self._held[: found.start()]) + self._over()
        self._held = self._held[found.end() if found[0] in _ENDS else found.start() :]
        self._in_head = True
        return events

    def _piece(self, text: str) -> list[Event]:
        if self._called is not None:
            self._arguments += text
            return []
        if not text:
            return []
        return [Thought(text) if self._thinks else Said(text)]

    def _over(self) -> list[Event]:
        """The call, if it was one; what was no call is text."""
        name, written = self._called, self._arguments
        self._called, self._arguments = None, ""
        if name is None:
            return []
        made = calls.parsed(written or "{}")
        if name in self._names and isinstance(made, dict):
            return calls.of(name, json.dumps(made, ensure_ascii=False))
        return [Said(written)] if written else []

    def _possible_mark(self) -> int:
        """Length of the longest end of what is held that begins a mark."""
        marks = (*_ENDS, *_BEGINS)
        for length in range(min(len("<|channel|>") - 1, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(mark.startswith(tail) for mark in marks):
                return length
        return 0
