"""What a model's vectors lose when its weights are rewritten: how far they turn, over some texts.

Runs in the measuring process only. The texts are the lines of text.txt. The figure is the mean over
them of 1 - cos(original, rewritten), which is 0 for equal models.
"""

from __future__ import annotations

from pathlib import Path

import numpy
from numpy.typing import NDArray

from lbhost import wire
from lbhost.errors import TuningError
from lbhost.llama import Model
from lbhost.purpose import Pooling
from lbhost.tuning import quality
from lbhost.worker.embedding_context import EmbeddingContext
from lbhost.worker.llama_context import Decoded

TOKENS = 256
"""Of a text, at most."""

_Vectors = NDArray[numpy.float32]


def keep(model: Model, pooling: Pooling, path: Path) -> int:
    """Write a model's vectors of the texts to a file; how many they are."""
    vectors = _vectors(model, pooling)
    path.write_bytes(vectors.tobytes())
    return len(vectors)


def compare(model: Model, pooling: Pooling, path: Path) -> tuple[float, float]:
    """A model beside the one whose vectors are in the file.

    Returns:
        The mean of 1 - cosine, and the part of the texts whose nearest among the others is the
        same.

    Raises:
        TuningError: vectors of another width, or of what is no number.
    """
    changed = _vectors(model, pooling)
    before = numpy.frombuffer(path.read_bytes(), numpy.float32)
    if before.size != changed.size:
        raise TuningError("the rewritten model has vectors of another width")
    return turned(before.reshape(changed.shape), changed)


def turned(before: _Vectors, changed: _Vectors) -> tuple[float, float]:
    """See compare. Rows are vectors of length 1."""
    lost = float(numpy.mean(1 - numpy.sum(before * changed, axis=1, dtype=numpy.float64)))
    if not numpy.isfinite(lost):
        raise TuningError("the rewritten model computes no numbers")
    same = _nearest(before) == _nearest(changed)
    return max(0.0, lost), float(numpy.mean(same))


def _nearest(vectors: _Vectors) -> NDArray[numpy.int64]:
    """To each row the most like it of the others."""
    alike = vectors @ vectors.T
    numpy.fill_diagonal(alike, -numpy.inf)
    nearest: NDArray[numpy.int64] = numpy.argmax(alike, axis=1)
    return nearest


def _vectors(model: Model, pooling: Pooling) -> _Vectors:
    # One thread: those of a pool would not survive the fork of a trial.
    context = EmbeddingContext(model, pooling=pooling, n_ctx=TOKENS, threads=1)
    vectors: list[_Vectors] = []
    try:
        for line in filter(None, map(str.strip, quality.text().splitlines())):
            tokens = model.vocab.tokenize(line, add_bos=True, parse_special=False)[:TOKENS]
            result, found = context.compute([wire.pack_tokens(tokens)])
            if result is not Decoded.OK:
                raise TuningError("llama.cpp cannot compute a batch of this model")
            vectors.append(found[0] / numpy.linalg.norm(found[0]))
    finally:
        context.close()
    return numpy.stack(vectors).astype(numpy.float32)
