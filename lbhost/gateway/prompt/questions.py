"""Answers what only the vocabulary and the chat template are needed for.

Computes and never waits, within the prompter's limits. The answer is JSON, ready to be sent.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from lbhost.errors import UnprocessableError
from lbhost.gateway.api import messages, questions
from lbhost.gateway.api.generation import Generation
from lbhost.gateway.api.questions import Content, Counted, Rendered, TokenPiece, Tokens
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.prompt.prompter import Prompter, Vocabulary

MAX_ANSWER = 12 * 1024 * 1024
"""Bytes: what a helper may send."""

PATHS = {
    Kind.COUNT_TOKENS: ("/v1/messages/count_tokens",),
    Kind.TOKENIZE: ("/tokenize",),
    Kind.DETOKENIZE: ("/detokenize",),
    Kind.APPLY_TEMPLATE: ("/apply-template",),
}

_encode = msgspec.json.Encoder().encode


class Told(msgspec.Struct, frozen=True, tag="told"):
    """The answer's body, as JSON."""

    body: bytes


class Questions:
    """Answers for one model."""

    def __init__(
        self,
        vocab: Vocabulary,
        prompter: Prompter,
        count: Callable[[Generation], int],
        render: Callable[[Generation], str],
    ) -> None:
        """`count`: tokens of a prompt; checks the model's name too. `render`: a conversation's
        text."""
        self._vocab = vocab
        self._prompter = prompter
        self._count = count
        self._render = render

    def tell(self, body: bytes, kind: Kind) -> Told:
        """The answer to a question of PATHS.

        Raises:
            InvalidRequestError: it cannot be understood.
            UnprocessableError: the answer would be over MAX_ANSWER bytes.
            TooLongInlineError: for a helper to do.
        """
        answer = _encode(self._answer(body, kind))
        if len(answer) > MAX_ANSWER:
            raise UnprocessableError(
                f"the answer would be over {MAX_ANSWER} bytes; ask for parts of it"
            )
        return Told(answer)

    def _answer(self, body: bytes, kind: Kind) -> msgspec.Struct:
        if kind is Kind.TOKENIZE:
            return Tokens(self._tokens(questions.tokenize(body)))
        if kind is Kind.DETOKENIZE:
            tokens = questions.detokenize(body, self._vocab.n_tokens)
            return Content(self._prompter.said(tokens))
        if kind is Kind.APPLY_TEMPLATE:
            return Rendered(self._render(questions.apply_template(body, self._vocab.n_tokens)))
        assert kind is Kind.COUNT_TOKENS
        generation = messages.parse_count(body, self._vocab.n_tokens)
        return Counted(self._count(generation))

    def _tokens(self, asked: questions.TokenizeRequest) -> list[int | TokenPiece]:
        tokens = self._prompter.tokens(
            asked.content,
            add_special=bool(asked.add_special),
            parse_special=asked.parse_special is not False,
        )
        if not asked.with_pieces:
            return list(tokens)
        pieces = [self._vocab.piece(token, special=True) for token in tokens]
        return [
            TokenPiece(token, _piece(piece)) for token, piece in zip(tokens, pieces, strict=True)
        ]


def _piece(data: bytes) -> str | list[int]:
    """Its text, or its bytes where they are only a part of a character, as llama-server does."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
