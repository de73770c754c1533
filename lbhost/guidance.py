"""llguidance behind one door: from a grammar to the tokens that may come next.

`check` is for prompt helpers: whether a stranger's grammar can be followed at all, whatever the
vocabulary. Constraints are a worker's: matchers over its vocabulary, made in microseconds once a
grammar is known. Every step has a limit; a matcher over it says so and lets no text through.
"""

from __future__ import annotations

import functools
import re
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, cast

import numpy
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llguidance import TokenizerWrapper
    from llguidance._lib import JsonCompileOptions

from lbhost.errors import InvalidRequestError
from lbhost.grammar import Grammar, GrammarKind
from lbhost.llama import Vocab
from lbhost.llamacpp import address

COMPILE_S = 0.25
"""CPU seconds that compiling a grammar may take; the worker's sequences wait for as long."""

BURST_S = 0.2
"""CPU seconds that one answer's grammar may take beyond STEP_S a token: the worker's other
sequences wait for as long."""

STEP_S = 0.005
"""A mask over 49,000 tokens takes 0.3 to 3 ms, also of large schemas."""

TRIED = 32
"""Bytes of an answer that `check` follows a grammar for: some need more than they may only then."""

KEPT = 32
"""Compiled grammars that a worker keeps: some 100 KB each."""

_JSON: JsonCompileOptions = {
    "lenient": False,  # a keyword that cannot be followed is an error
    # As Python's json.dumps has it. Where white space is free, small models write it for ever.
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}

_PENALTIES = numpy.where(
    numpy.unpackbits(numpy.arange(256, dtype=numpy.uint8)[:, None], axis=1, bitorder="little"),
    numpy.float32(0),
    numpy.float32(-numpy.inf),
)
"""For the eight tokens of each byte of a mask: twice as fast as to unpack it and to select."""

_SPECIAL = b"\xff"
"""Before a special token's text, llguidance's sign that it is no text."""


def _limits() -> LLParserLimits:
    """What one compilation (20 ms of "fuel") and one step (14 ms) may take, and its memory.

    10,000 items are 25 to 90 ms, and 50,000 were 800; an object of 500 optional keys has 2,000.
    """
    return LLParserLimits(
        max_items_in_row=2000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=10_000,
        max_lexer_states=20_000,  # 2 KB each
        max_grammar_size=200_000,
        verbose_errors=False,
    )


class GrammarError(Exception):
    """A grammar cannot be compiled, or not be followed any further. One line."""


# --- in prompt helpers --------------------------------------------------------------------


def check(grammar: Grammar) -> str:
    """The grammar as llguidance writes it, once it is clear that it can be followed.

    Raises:
        InvalidRequestError: it is wrong, uses what llguidance cannot enforce, allows no text at
            all, or takes longer than COMPILE_S.
    """
    began = time.thread_time()
    try:
        text = _written(grammar)
        _try(_compiled(_bytes(), text), began + COMPILE_S)
    except GrammarError as error:
        raise InvalidRequestError(f"{grammar.param}: {error}", param=grammar.param) from error
    took = time.thread_time() - began
    if took > COMPILE_S:
        raise InvalidRequestError(
            f"{grammar.param}: too complex: compiling it takes {took:.2f} s of {COMPILE_S:g}",
            param=grammar.param,
        )
    return text


def _try(matcher: LLMatcher, until: float) -> None:
    """Follow it for some bytes, or until the thread's CPU clock says so. Raises GrammarError."""
    for _ in range(TRIED):
        mask = numpy.frombuffer(matcher.compute_bitmask(), numpy.uint8)
        if matcher.is_error():
            raise GrammarError(_reason(matcher))
        possible = numpy.flatnonzero(numpy.unpackbits(mask, bitorder="little")[:_N_BYTES])
        if not len(possible) or time.thread_time() > until:
            return
        printable = possible[possible >= ord(" ")]
        matcher.consume_token(int(printable[0] if len(printable) else possible[0]))
        if matcher.is_error():
            raise GrammarError(_reason(matcher))


def _written(grammar: Grammar) -> str:
    try:
        match grammar.kind:
            case GrammarKind.JSON_SCHEMA:
                return LLMatcher.grammar_from_json_schema(grammar.text, overrides=_JSON)
            case GrammarKind.EBNF:
                return LLMatcher.grammar_from_lark(any_to_lark(grammar.text))
    except Exception as error:  # the converter from GBNF raises plain Exceptions too
        raise GrammarError(_line(str(error))) from error


@functools.cache
def _bytes() -> LLTokenizer:
    """A vocabulary of bytes: enough to judge a grammar, and it costs nothing."""
    return _wrapped(_ByteTokens(), _N_BYTES)


_N_BYTES = 256


class _ByteTokens:
    """See llguidance.TokenizerWrapper."""

    is_tokenizer_wrapper = True
    eos_token_id = _N_BYTES
    bos_token_id = None
    special_token_ids = (_N_BYTES,)
    tokens = (*(bytes([byte]) for byte in range(_N_BYTES)), _SPECIAL + b"<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


# --- in workers ---------------------------------------------------------------------------


class Matcher:
    """One answer's way through its grammar: `mask`, pick, `accept`, until `finished`."""

    def __init__(self, matcher: LLMatcher, n_tokens: int) -> None:
        self._matcher = matcher
        self._bits = numpy.zeros(-(-n_tokens // 32), numpy.int32)
        self._address = self._bits.ctypes.data
        self._bytes = self._bits.view(numpy.uint8)
        self._owed_s = 0.0
        """CPU time that it took beyond STEP_S a token."""

    @property
    def finished(self) -> bool:
        """Whether nothing may follow but the end."""
        return bool(self._matcher.is_stopped())

    def mask(self, logits: NDArray[numpy.float32]) -> None:
        """Make all tokens impossible that may not come next, in place.

        Raises:
            GrammarError: the grammar has become too complex.
        """
        began = time.thread_time()
        self._matcher.unsafe_compute_mask_ptr(self._address, self._bits.nbytes)
        self._check(began)
        penalties = numpy.take(_PENALTIES, self._bytes, axis=0).reshape(-1)
        logits += penalties[: len(logits)]

    def forced(self) -> list[int]:
        """The next tokens as far as nothing else may come: what `mask` would leave, one by one.

        Raises GrammarError: as `mask`.
        """
        if self.finished:
            return []
        began = time.thread_time()
        tokens = self._matcher.compute_ff_tokens()
        self._check(began)
        return list(tokens)

    def accept(self, token: int) -> None:
        """Go on behind a token. Raises GrammarError: it may not come here, or as `mask`."""
        began = time.thread_time()
        self._matcher.consume_token(token)
        self._owed_s = max(0.0, self._owed_s - STEP_S)
        self._check(began)

    def _check(self, began: float) -> None:
        if self._matcher.is_error():
            raise GrammarError(_reason(self._matcher))
        self._owed_s += time.thread_time() - began
        if self._owed_s > BURST_S:
            raise GrammarError("following it takes too long")


class Constraints:
    """Makes matchers for a vocabulary: 0.2 s and 27 MB for 49,000 tokens, so once a fork server."""

    def __init__(self, vocab: Vocab) -> None:
        self._tokenizer = _tokenizer(vocab)
        self._known: OrderedDict[str, LLMatcher] = OrderedDict()

    def matcher(self, text: str) -> Matcher:
        """At the beginning of an answer. `text` is what `check` returned.

        Raises:
            GrammarError: it cannot be compiled.
        """
        known = self._known.get(text)
        if known is None:
            known = self._known[text] = _compiled(self._tokenizer, text)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        self._known.move_to_end(text)
        return Matcher(known.deep_copy(), self._tokenizer.vocab_size)


def _tokenizer(vocab: Vocab) -> LLTokenizer:
    pieces = [
        vocab.piece(token) or _SPECIAL + (vocab.special_text(token) or f"<{token}>").encode()
        for token in range(vocab.n_tokens)
    ]
    ends = list(vocab.eog_tokens)
    if not ends:  # an end that no model ever picks; `finished` says when nothing else is left
        ends = [len(pieces)]
        pieces.append(_SPECIAL + b"<end>")
    if vocab.eos in ends:
        ends.remove(vocab.eos)
        ends.insert(0, vocab.eos)
    if vocab.uses_regex:
        return _wrapped(_Careful(vocab, pieces, ends[0]), ends)
    make: Any = LLTokenizer.from_llamacpp  # type: ignore[attr-defined]
    made: LLTokenizer = make(
        tokens=pieces,
        vocab_ptr=vocab.handle,
        tokenize_fptr=address("llama_tokenize"),
        eos_token=ends,
        slices=None,
    )
    return made


class _Careful:
    """Tokenises a grammar's literals in parts that no std::regex can overflow the stack with.

    See llguidance.TokenizerWrapper.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None
    part = 256
    """Characters."""

    def __init__(self, vocab: Vocab, pieces: list[bytes], end: int) -> None:
        self._vocab = vocab
        self.tokens = pieces
        self.eos_token_id = end
        self.special_token_ids = [i for i, piece in enumerate(pieces) if piece[:1] == _SPECIAL]

    def __call__(self, text: str | bytes) -> list[int]:
        text = text if isinstance(text, str) else text.decode(errors="replace")
        tokens: list[int] = []
        for at in range(0, len(text), self.part):
            part = text[at : at + self.part]
            tokens += self._vocab.tokenize(part, add_bos=False, parse_special=False)
        return tokens


def _wrapped(tokens: Any, end: int | list[int]) -> LLTokenizer:
    """llguidance takes whatever looks like its TokenizerWrapper."""
    return LLTokenizer(cast("TokenizerWrapper", tokens), eos_token=end, slices=[])


# --- both ---------------------------------------------------------------------------------


def _compiled(tokenizer: LLTokenizer, text: str) -> LLMatcher:
    """Raises GrammarError."""
    matcher = LLMatcher(tokenizer, text, log_level=0, limits=_limits())
    if matcher.is_error():
        raise GrammarError(_reason(matcher))
    return matcher


def _reason(matcher: LLMatcher) -> str:
    error = _line(matcher.get_error())
    if error.startswith("NoExtension"):
        return "it allows no text at all"
    keywords = re.fullmatch(r"Unimplemented keys: \[(.*)\]", error)
    if keywords:
        return f"unsupported keywords: {keywords[1].replace(chr(34), '')}"
    return error


def _line(text: str) -> str:
    """The beginning of an error message of several lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[-1].startswith("error: "):
        return f"{lines[0]} {lines[-1]}"[:300]
    return lines[0][:300] if lines else ""
