"""What of a request cannot be computed by this worker, said in a line. Pure.

The gateway has checked all of it before; a worker does not rely on that, because llama.cpp ends
the process where a token is none.
"""

from __future__ import annotations

from lbhost.errors import WireError
from lbhost.wire import Embed, Submit, unpack_tokens

MAX_WAITING = 256
"""Requests that may wait in the worker; the gateway sends no more than there are slots."""


def problem_of_prompt(
    submit: Submit, *, n_ctx: int, n_vocab: int, adapters: int, waiting: int
) -> str | None:
    """Why this request cannot be admitted; None: it can.

    Args:
        adapters: that there are.
        waiting: requests that have no slot yet.
    """
    if not 0 <= submit.adapter <= adapters:
        return f"there is no adapter {submit.adapter}"
    try:
        tokens = unpack_tokens(submit.prompt)
        done = unpack_tokens(submit.done)
    except WireError as error:
        return error.message
    if not tokens:
        return "the prompt has no tokens"
    tokens += done
    if len(tokens) > n_ctx:
        return f"the prompt's {len(tokens)} tokens exceed the context of {n_ctx}"
    if min(tokens) < 0 or max(tokens) >= n_vocab:
        return "the prompt holds a token that is not in the vocabulary"
    return _crowd(waiting)


def problem_of_inputs(embed: Embed, *, n_ctx: int, n_vocab: int, waiting: int) -> str | None:
    """The same of an embedding request."""
    try:
        tokens = unpack_tokens(embed.tokens)
    except WireError as error:
        return error.message
    lengths = embed.lengths
    if not lengths or min(lengths) < 1 or sum(lengths) != len(tokens):
        return "the inputs' lengths are not those of the tokens"
    if max(lengths) > n_ctx:
        return f"an input's {max(lengths)} tokens exceed the context of {n_ctx}"
    if min(tokens) < 0 or max(tokens) >= n_vocab:
        return "an input holds a token that is not in the vocabulary"
    return _crowd(waiting)


def _crowd(waiting: int) -> str | None:
    return "too many requests wait in this worker" if waiting >= MAX_WAITING else None
