"""Answers that are a row of blocks, each a thought, text or a call. Pure.

What OpenAI's responses and Anthropic's messages share: which blocks an answer has, and when each
begins and ends. A block is open until the next one begins or the answer ends.
"""

from __future__ import annotations

import abc
import enum
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from lbhost import wire
from lbhost.gateway.api.generation import Style
from lbhost.gateway.api.reading import AnswerReader
from lbhost.gateway.api.replies import Given
from lbhost.gateway.api.thought_tokens import ThoughtTokens
from lbhost.gateway.api.tools.calls import Arguments, CallBegun, Event, Said, Thought
from lbhost.gateway.api.writer import OneAnswer
from lbhost.gateway.scheduling.deltas import TextDelta


class BlockKind(enum.Enum):
    """What a block holds."""

    THOUGHT = "thought"
    TEXT = "text"
    CALL = "call"


_KINDS: dict[type[Event], BlockKind] = {
    Said: BlockKind.TEXT,
    Thought: BlockKind.THOUGHT,
    CallBegun: BlockKind.CALL,
    Arguments: BlockKind.CALL,
}


class Block(msgspec.Struct):
    """One of an answer's blocks, as far as it has come."""

    kind: BlockKind
    index: int
    """Its place among the answer's."""
    name: str = ""
    """The function that a call calls."""
    pieces: list[str] = []

    @property
    def text(self) -> str:
        """All of it; of a call the JSON of its arguments."""
        return "".join(self.pieces)


class BlockWriter(OneAnswer):
    """Writes one answer, block by block."""

    def __init__(self, name: str, model: str, style: Style | None = None, **more: Any) -> None:
        super().__init__(name, model, style, **more)
        reading = self.style.reading
        self._reader = None if reading is None else AnswerReader(reading)
        thinking = None if reading is None else reading.thinking
        self.thought_tokens = ThoughtTokens(thinking, self.pieces)
        self.blocks: list[Block] = []
        """Only the last one may be open."""

    # --- what a dialect says ---------------------------------------------------------

    @abc.abstractmethod
    def answer(self, finish: wire.Finish) -> Any:
        """The answer with all its blocks, ready to be encoded as JSON."""

    @abc.abstractmethod
    def open(self, block: Block) -> bytes:
        """A block begins."""

    @abc.abstractmethod
    def more(self, block: Block, text: str) -> bytes:
        """There is more of it: some text, never empty."""

    @abc.abstractmethod
    def close(self, block: Block, *, cut: bool) -> bytes:
        """It is complete, or was cut off with the answer."""

    @abc.abstractmethod
    def closed(self, finish: wire.Finish) -> bytes:
        """What comes behind the last block: why the answer ended, what it cost."""

    # --- as OneAnswer ----------------------------------------------------------------

    def whole(self, answers: Sequence[Given], costs: Sequence[wire.Finish]) -> bytes:
        self.thought_tokens.feed(answers[0].delta.tokens)
        return super().whole(answers, costs)

    def text(self, index: int, delta: TextDelta) -> bytes:
        self.thought_tokens.feed(delta.tokens)
        return super().text(index, delta)

    def complete(self, text: str, finish: wire.Finish) -> Any:
        for event in [*self._read(text), *self._rest()]:
            self._add(event)
        if not self.blocks:
            self._add(Said(""))
        return self.answer(finish)

    def piece(self, text: str) -> bytes:
        return self._written(self._read(text))

    def end(self, finish: wire.Finish) -> bytes:
        written = self._written(self._rest())
        if not self.blocks:  # clients look at the first one
            written += self._written([Said("")])
        cut = finish.reason is wire.FinishReason.LENGTH
        return written + self.close(self.blocks[-1], cut=cut) + self.closed(finish)

    # --- for dialects ----------------------------------------------------------------

    def calls(self) -> bool:
        """Whether the answer calls anything."""
        return any(block.kind is BlockKind.CALL for block in self.blocks)

    def unique(self, block: Block) -> str:
        """For ids: no other block of any answer has it."""
        return hashlib.sha256(f"{self.name}.{block.index}".encode()).hexdigest()[:24]

    def _read(self, text: str) -> list[Event]:
        if self._reader is not None:
            return self._reader.feed(text)
        return [Said(text)] if text else []

    def _rest(self) -> list[Event]:
        return [] if self._reader is None else self._reader.finish()

    def _written(self, events: Iterable[Event]) -> bytes:
        written = b""
        for event in events:
            last = self.blocks[-1] if self.blocks else None
            if self._add(event):
                if last is not None:
                    written += self.close(last, cut=False)
                written += self.open(self.blocks[-1])
            if not isinstance(event, CallBegun) and event.text:
                written += self.more(self.blocks[-1], event.text)
        return written

    def _add(self, event: Event) -> bool:
        """Whether a new block begins with it."""
        kind = _KINDS[type(event)]
        named = isinstance(event, CallBegun)
        begins = named or not self.blocks or self.blocks[-1].kind is not kind
        if begins:
            name = event.name if isinstance(event, CallBegun) else ""
            self.blocks.append(Block(kind, len(self.blocks), name))
        if not isinstance(event, CallBegun):
            self.blocks[-1].pieces.append(event.text)
        return begins
