"""Log-probabilities of tokens, from the model's own logits. Pure numpy.

They are of the distribution before anything of the request's changes it: no bias, no penalty, no
temperature, as vLLM has them. The sampler changes logits in place, so whoever wants these keeps a
copy, or asks first.
"""

from __future__ import annotations

import math

import numpy
from numpy.typing import NDArray

from lbhost.wire import TokenLogprob
from lbhost.worker.draw import LogitsError

_LEAST = -9999.0
"""Instead of minus infinity, which JSON does not have; OpenAI's servers say the same."""

_BLOCK = 256


def of_token(logits: NDArray[numpy.float32], token: int, top: int) -> TokenLogprob:
    """How probable the model held a token, and what it held most probable.

    Args:
        logits: of the whole vocabulary; they stay as they are.
        top: how many of the most probable, most probable first.

    Raises:
        LogitsError: one of the logits is no number.
    """
    highest = logits.max()
    if highest != highest:
        raise LogitsError
    weights = logits - highest
    numpy.exp(weights, out=weights)
    norm = float(highest) + math.log(weights.sum())  # added in pairs: six digits are right
    best = _largest(logits, top) if top else []
    return TokenLogprob(
        token,
        max(_LEAST, float(logits[token]) - norm),
        tuple((one, max(_LEAST, float(logits[one]) - norm)) for one in best),
    )


def _largest(logits: NDArray[numpy.float32], count: int) -> list[int]:
    """The tokens with the largest logits, the largest first.

    They are in the blocks with the largest maxima, and only those are looked at.
    """
    whole = len(logits) // _BLOCK
    rest = whole * _BLOCK
    if count < whole:
        highest = logits[:rest].reshape(whole, _BLOCK).max(axis=1)
        blocks = numpy.argpartition(highest, -count)[-count:]
        within = blocks[:, None] * _BLOCK + numpy.arange(_BLOCK)
        chosen = numpy.concatenate([within.ravel(), numpy.arange(rest, len(logits))])
    else:
        chosen = numpy.arange(len(logits))
    order = numpy.argsort(-logits[chosen])
    return [int(token) for token in chosen[order[:count]]]
