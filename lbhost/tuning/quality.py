"""What a model's answers lose when its weights are rewritten: KL divergence over a fixed text.

Runs in the measuring process only. The text (text.txt) is short and of several kinds; the figure is
the mean over its tokens of KL(original || rewritten), in nats, which is 0 for equal models.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy
from numpy.typing import NDArray

from lbhost.errors import TuningError
from lbhost.llama import Model
from lbhost.worker.context import Context, Decoded

TOKENS = 256
"""Of the text, at most: so many rows of logits are kept on disk."""
_AT_ONCE = 16
"""Outputs that a context of one slot gives in a step."""
_SKIPPED = 8
"""First tokens that do not count: with so little before them every model guesses."""

_Logits = NDArray[numpy.float32]


def keep(model: Model, path: Path) -> int:
    """Write a model's logits for the text to a file; how many tokens that are."""
    tokens = _tokens(model)
    with path.open("wb") as file:
        for rows in _logits(model, tokens):
            file.write(rows.tobytes())
    return len(tokens)


def compare(model: Model, path: Path) -> tuple[float, float]:
    """A model beside the one whose logits are in the file.

    Returns:
        The mean KL divergence in nats, and the part of the tokens of which both have the same
        first choice.

    Raises:
        TuningError: another vocabulary, or logits that are not numbers.
    """
    tokens = _tokens(model)
    n_vocab = model.vocab.n_tokens
    if path.stat().st_size != len(tokens) * n_vocab * 4:
        raise TuningError("the rewritten model has another vocabulary")
    total, same, at = 0.0, 0, 0
    with path.open("rb") as file:
        for rows in _logits(model, tokens):
            data = file.read(rows.nbytes)
            before = numpy.frombuffer(data, numpy.float32).reshape(rows.shape)
            for reference, changed in zip(before, rows, strict=True):
                if at >= _SKIPPED:
                    total += divergence(reference, changed)
                    same += int(reference.argmax() == changed.argmax())
                at += 1
    counted = len(tokens) - _SKIPPED
    mean = total / counted
    if not numpy.isfinite(mean):
        raise TuningError("the rewritten model computes no numbers")
    return max(0.0, mean), same / counted


def divergence(reference: _Logits, changed: _Logits) -> float:
    """KL(softmax(reference) || softmax(changed)), nats."""
    p, q = _log_softmax(reference), _log_softmax(changed)
    return float(numpy.sum(numpy.exp(p) * (p - q)))


def _log_softmax(logits: _Logits) -> NDArray[numpy.float64]:
    shifted = logits.astype(numpy.float64) - float(logits.max())
    total = float(numpy.log(numpy.exp(shifted).sum()))
    result: NDArray[numpy.float64] = shifted - total
    return result


def text() -> str:
    """What models are judged by."""
    return (Path(__file__).parent / "text.txt").read_text(encoding="utf-8")


def _tokens(model: Model) -> list[int]:
    return model.vocab.tokenize(text(), add_bos=True, parse_special=False)[:TOKENS]


def _logits(model: Model, tokens: list[int]) -> Iterator[_Logits]:
    """The rows for all tokens, in blocks."""
    # One thread: those of a pool would not survive the fork of a trial.
    context = Context(model, slots=1, n_ctx=TOKENS, threads=1)
    try:
        for begin in range(0, len(tokens), _AT_ONCE):
            context.clear()
            indices = [
                context.add(0, begin + i, struct.pack("=i", token), output=True)
                for i, token in enumerate(tokens[begin : begin + _AT_ONCE])
            ]
            if context.decode() is not Decoded.OK:
                raise TuningError("llama.cpp cannot compute a batch of this model")
            yield numpy.stack([context.logits(index) for index in indices])
    finally:
        context.close()
