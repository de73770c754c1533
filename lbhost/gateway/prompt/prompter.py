"""From messages or text to prompt tokens.

Owns the chat template and the vocabulary's use. Everything here computes and nothing waits;
long texts take a second and belong into a helper process (see intake.py).

Whoever writes "<|im_end|>" into a message must not be able to end it and to speak as somebody
else. Special texts inside messages are therefore swapped for marks before the template is
rendered, and tokenised as plain text afterwards; special texts of the template itself become
their tokens. The raw prompt of a plain completion is the client's own template: there all
special texts count.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from lbhost import log
from lbhost.errors import (
    ContextLengthError,
    InvalidRequestError,
    ModelFileError,
    RenderLimitError,
    TooLongInlineError,
    UnprocessableError,
)
from lbhost.gateway.prompt import special_texts
from lbhost.gateway.prompt.chat_template import ChatTemplate


class Limits(msgspec.Struct, frozen=True):
    """What one prompt may take."""

    render_s: float
    """Wall clock of the chat template."""
    characters: int
    """Of the longest text that is rendered or tokenised."""
    inline: bool = False
    """Whether there is a helper that may do more: TooLongInlineError instead of a refusal."""


IN_HELPER = Limits(render_s=5.0, characters=16 * 1024 * 1024)
"""A helper's; the kernel ends it at its own limits (helper.py)."""

_INLINE_REPEATED = 65536
"""Characters of a query before all its documents, up to which it is tokenised in the event loop."""

_CHECKED_FROM = 65536
"""Characters from which it is worth knowing that a text cannot fit before tokenising it."""


class Vocabulary(Protocol):
    """What is used of lbhost.llama.Vocab."""

    @property
    def n_tokens(self) -> int: ...
    @property
    def bos(self) -> int | None: ...
    @property
    def bos_text(self) -> str | None: ...
    @property
    def eos_text(self) -> str | None: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def special_texts(self) -> tuple[str, ...]: ...
    @property
    def uses_regex(self) -> bool: ...

    @property
    def pair_marks(self) -> tuple[list[int], list[int], list[int]]: ...
    @property
    def rerank_template(self) -> str | None: ...

    @property
    def infill_tokens(self) -> tuple[int, int, int] | None: ...

    def tokenize(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]: ...
    def piece(self, token: int, *, special: bool = False) -> bytes: ...


class Prompter:
    """Makes prompts for one model."""

    def __init__(self, vocab: Vocabulary, n_ctx: int, limits: Limits = IN_HELPER) -> None:
        self._vocab = vocab
        self._n_ctx = n_ctx
        self._limits = limits
        self._bos_text = vocab.bos_text or ""
        self._template: ChatTemplate | None = None
        self._why_no_chat = "this model has no chat template; use /v1/completions"
        if vocab.chat_template is not None:
            try:
                self._template = ChatTemplate(
                    vocab.chat_template, bos_text=self._bos_text, eos_text=vocab.eos_text or ""
                )
            except ModelFileError as error:
                log.get().error("no chat completions", reason=error.message)
                self._why_no_chat = error.message
        self._special = special_texts.pattern(vocab.special_texts)
        nonce = secrets.token_hex(8)
        self._mark = f"\ue000{nonce}.%d\ue001"
        self._marks = re.compile(f"\ue000{nonce}\\.(\\d+)\ue001")
        self._end_mark = f"\ue000{nonce}.end\ue001"
        self._longest_piece = 0 if limits.inline else self._find_longest_piece()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        next_speaker: bool = True,
        continues: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Tokens of a conversation, ending where the answer begins.

        Args:
            next_speaker: whether the template puts what it has before the assistant's turn.
            continues: the answer goes on with the last message: nothing comes after that.
            tools, options: see ChatTemplate.render.

        Raises:
            UnprocessableError: no chat template, or it refuses these messages.
            ContextLengthError: longer than any context.
        """
        if self._template is None:
            raise UnprocessableError(self._why_no_chat, param="messages")
        said = [len(m["content"]) for m in messages if m["role"] == "user"]
        if len(said) > self._n_ctx:  # each is a token at least; 10,000 took over 3 s
            raise self._too_long("messages", len(said))
        self.check_length(sum(said), "messages")  # before it is searched and rendered
        swapped: list[str] = []
        if self._special is not None:
            messages, tools = self._swap(messages, swapped), self._swap(tools, swapped)
        text = self.rendered(
            messages, next_speaker=next_speaker, continues=continues, tools=tools, options=options
        )
        self.check_length(len(text), "messages")
        with_bos = not (self._bos_text and text.startswith(self._bos_text))
        if not swapped:
            return self._vocab.tokenize(text, add_bos=with_bos, parse_special=True)
        tokens: list[int] = []
        for i, piece in enumerate(self._marks.split(text)):
            literal = i % 2 == 1
            tokens += self._vocab.tokenize(
                swapped[int(piece)] if literal else piece,
                add_bos=with_bos and i == 0,
                parse_special=not literal,
            )
            if len(tokens) > self._n_ctx:
                raise self._too_long("messages", len(tokens))
        return tokens

    def rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        next_speaker: bool = True,
        continues: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation, ending where the answer begins. Arguments as in `chat`.

        Raises:
            UnprocessableError: no chat template, or it refuses these messages.
        """
        if self._template is None:
            raise UnprocessableError(self._why_no_chat, param="messages")
        render = partial(self._render, tools=tools, options=options)
        return self._continued(messages, render) if continues else render(messages, next_speaker)

    def tokens(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Tokens of any text, however many. `add_special`: begin as the model wants it."""
        if self._limits.inline and len(text) > self._limits.characters:
            raise TooLongInlineError("too long to be tokenised here")
        return self._vocab.tokenize(text, add_bos=add_special, parse_special=parse_special)

    def text(self, text: str) -> list[int]:
        """Tokens of a plain completion's prompt; a lone BOS for an empty one.

        Raises:
            InvalidRequestError: empty, and the model has no BOS.
            ContextLengthError: longer than any context.
        """
        self.check_length(len(text), "prompt")
        tokens = self._vocab.tokenize(text, add_bos=True, parse_special=True)
        return tokens or self.empty()

    def input(self, text: str) -> list[int]:
        """Tokens of a text that is to be embedded, begun and ended as the model wants it."""
        return self._vocab.tokenize(text, add_bos=True, parse_special=True)

    def pairs(self, query: str, documents: Sequence[str]) -> Iterator[list[int]]:
        """Tokens of a query with each document, as a reranker reads them.

        Raises TooLongInlineError: the query is repeated so often that a short body is much work.
        """
        vocab = self._vocab
        if self._limits.inline and len(query) * len(documents) > _INLINE_REPEATED:
            raise TooLongInlineError("too much to be tokenised here")
        if vocab.rerank_template is not None:
            for document in documents:
                text = vocab.rerank_template.replace("{query}", query)
                text = text.replace("{document}", document)
                yield vocab.tokenize(text, add_bos=False, parse_special=True)
            return
        begin, between, end = vocab.pair_marks
        asked = [*begin, *self._plain(query), *between]
        for document in documents:
            yield [*asked, *self._plain(document), *end]

    def infill(
        self, befores: Sequence[str | list[int]], after: str, after_param: str
    ) -> list[list[int]]:
        """Tokens of what is to be filled in between each of these and what comes after, in the
        model's own way.

        Nothing in the texts is special. Raises what `text` does, and InvalidRequestError: this
        model cannot.
        """
        marks = self._vocab.infill_tokens
        if marks is None:
            raise InvalidRequestError(
                f"{after_param}: this model has no tokens for filling in; leave it out",
                param=after_param,
            )
        self.check_length(len(after), after_param)
        prefix, suffix, middle = marks
        begin = [*self._vocab.tokenize("", add_bos=True, parse_special=False), prefix]
        end = [suffix, *self._plain(after), middle]
        prompts: list[list[int]] = []
        for before in befores:
            if isinstance(before, str):
                self.check_length(len(before), "prompt")
                before = self._plain(before)
            prompts.append([*begin, *before, *end])
        return prompts

    def said(self, tokens: list[int]) -> str:
        """The text of tokens, special ones written out."""
        pieces = [self._vocab.piece(token, special=True) for token in tokens]
        return b"".join(pieces).decode(errors="replace")

    def empty(self) -> list[int]:
        """The prompt that says nothing. Raises InvalidRequestError: this model needs one."""
        if self._vocab.bos is None:
            raise InvalidRequestError("prompt: must not be empty", param="prompt")
        return [self._vocab.bos]

    def _swap(self, value: Any, swapped: list[str]) -> Any:
        """The same with marks for special texts, wherever in it they are."""
        assert self._special is not None

        def mark(found: re.Match[str]) -> str:
            swapped.append(found[0])
            return self._mark % (len(swapped) - 1)

        if isinstance(value, str):
            return self._special.sub(mark, value)
        if isinstance(value, Mapping):
            return {self._swap(k, swapped): self._swap(v, swapped) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._swap(one, swapped) for one in value]
        return value

    def special_tokens(self, texts: Iterable[str]) -> tuple[int, ...]:
        """The tokens of those texts that are one special token each."""
        found: set[int] = set()
        for text in texts:
            tokens = self._vocab.tokenize(text, add_bos=False, parse_special=True)
            if len(tokens) == 1 and not self._vocab.piece(tokens[0]):
                found.add(tokens[0])
        return tuple(sorted(found))

    def suffix(self, text: str) -> list[int]:
        """Tokens of the server's own words behind a prompt."""
        return self._vocab.tokenize(text, add_bos=False, parse_special=True)

    def _plain(self, text: str) -> list[int]:
        return self._vocab.tokenize(text, add_bos=False, parse_special=False)

    def _continued(
        self,
        messages: Sequence[Mapping[str, Any]],
        render: Callable[[Sequence[Mapping[str, Any]], bool], str],
    ) -> str:
        """The conversation up to the end of its last message's text."""
        last = messages[-1]
        marked = {**last, "content": last["content"] + self._end_mark}
        text, mark, _ = render([*messages[:-1], marked], False).rpartition(self._end_mark)
        if not mark:
            raise UnprocessableError(
                "the model's chat template leaves out the last message; it cannot be continued",
                param="continue_final_message",
            )
        return text

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        next_speaker: bool,
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        options: Mapping[str, Any] | None,
    ) -> str:
        assert self._template is not None
        limits = self._limits
        try:
            return self._template.render(
                messages,
                next_speaker=next_speaker,
                tools=tools,
                options=options,
                time_s=limits.render_s,
                characters=limits.characters,
            )
        except RenderLimitError as error:
            if limits.inline:
                raise TooLongInlineError(error.message) from error
            raise

    def check_length(self, characters: int, param: str) -> None:
        """Refuse what cannot fit whatever its tokens are: tokenising 4 MB takes 2 s.

        Raises ContextLengthError, or TooLongInlineError.
        """
        if self._limits.inline:
            if characters > self._limits.characters:
                raise TooLongInlineError("too long to be tokenised here")
            return
        if characters >= _CHECKED_FROM:
            least = characters // self._longest_piece
            if least > self._n_ctx:
                raise self._too_long(param, least)

    def _too_long(self, param: str, least: int) -> ContextLengthError:
        return ContextLengthError(
            f"the context holds {self._n_ctx} tokens, this prompt is over {least}", param=param
        )

    def _find_longest_piece(self) -> int:
        """Bytes that one token stands for at the most; a look at each, 50 ms for 50,000."""
        return max(
            1,
            max(len(self._vocab.piece(token)) for token in range(self._vocab.n_tokens)),
            max((len(text) for text in self._vocab.special_texts), default=1),
        )
