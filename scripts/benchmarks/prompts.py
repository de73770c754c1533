"""Prompts of an exact length in tokens that share no prefix, so that no prefix cache helps."""

from __future__ import annotations

import random
from typing import Protocol

_TRIES = 200


class Tokens(Protocol):
    """What is needed of lbhost.llama.Vocab."""

    n_tokens: int

    def tokenize(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]: ...
    def piece(self, token: int) -> bytes: ...


class PromptError(Exception):
    """The vocabulary yields no plain words to write prompts with."""


class PromptWriter:
    """Writes prompts of random words. Never repeats a first word until all have been used."""

    def __init__(self, vocab: Tokens, rng: random.Random) -> None:
        self._vocab = vocab
        self._rng = rng
        self._words = _plain_words(vocab)
        if len(self._words) < 100:
            raise PromptError(f"only {len(self._words)} plain words in the vocabulary")
        self._firsts: list[str] = []

    def write(self, tokens: int, begin: str = "") -> str:
        """A text that the model sees as exactly `tokens` tokens, BOS included if it has one.

        Args:
            begin: what it begins with, which is shorter.

        Raises:
            PromptError: no such text was found.
        """
        if not self._firsts:
            self._firsts = self._rng.sample(self._words, len(self._words))
        first = self._firsts.pop()
        for _ in range(_TRIES):
            words = [first if begin else first.strip()]
            words += self._rng.choices(self._words, k=tokens)
            while words:
                text = begin + "".join(words)
                surplus = self._length(text) - tokens
                if surplus == 0:
                    return text
                if surplus < 0:
                    break
                del words[-max(1, surplus // 2) :]
        raise PromptError(f"found no prompt of {tokens} tokens")

    def _length(self, text: str) -> int:
        return len(self._vocab.tokenize(text, add_bos=True, parse_special=False))


def _plain_words(vocab: Tokens) -> list[str]:
    """Tokens that are a space and then at least three lower-case ASCII letters."""
    pieces = (vocab.piece(token) for token in range(vocab.n_tokens))
    return [
        piece.decode("ascii")
        for piece in pieces
        if len(piece) >= 4 and piece[:1] == b" " and piece[1:].isalpha() and piece[1:].islower()
    ]
