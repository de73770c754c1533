"""Grammars: which can be followed, and which tokens they allow in the starter's vocabulary."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbhost import grammar, guidance
from lbhost.errors import InvalidRequestError
from lbhost.guidance import Constraints, GrammarError
from lbhost.llama import Vocab
from lbhost.model import resolve

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return Vocab.load(resolve("starter").path)


@pytest.fixture(scope="module")
def constraints(vocab: Vocab) -> Constraints:
    return Constraints(vocab)


def written(schema: dict[str, Any]) -> str:
    return guidance.check(grammar.of_schema(schema, "response_format"))


def allowed(matcher: guidance.Matcher, n_vocab: int) -> set[int]:
    logits = numpy.zeros(n_vocab, numpy.float32)
    matcher.mask(logits)
    return set(numpy.flatnonzero(logits == 0).tolist())


def test_only_what_the_schema_allows_may_come_next(constraints: Constraints, vocab: Vocab) -> None:
    matcher = constraints.matcher(written(PERSON))
    said = '{"name": "Ada", "age": 36}'
    for token in vocab.tokenize(said, add_bos=False, parse_special=False):
        possible = allowed(matcher, vocab.n_tokens)
        assert token in possible
        assert not possible & set(vocab.eog_tokens), "no end before the end"
        assert not matcher.finished
        matcher.accept(token)
    assert matcher.finished


def test_the_end_is_allowed_where_the_grammar_can_end(
    constraints: Constraints, vocab: Vocab
) -> None:
    matcher = constraints.matcher(written({"type": "integer"}))
    matcher.accept(vocab.tokenize("7", add_bos=False, parse_special=False)[0])
    assert allowed(matcher, vocab.n_tokens) >= set(vocab.eog_tokens)
    assert not matcher.finished, "another digit may follow"


def test_a_token_that_may_not_come_is_an_error(constraints: Constraints, vocab: Vocab) -> None:
    matcher = constraints.matcher(written(PERSON))
    with pytest.raises(GrammarError):
        matcher.accept(vocab.tokenize("hello", add_bos=False, parse_special=False)[0])


def test_matchers_of_one_grammar_do_not_share_their_place(
    constraints: Constraints, vocab: Vocab
) -> None:
    text = written(PERSON)
    first, second = constraints.matcher(text), constraints.matcher(text)
    before = allowed(second, vocab.n_tokens)
    first.accept(vocab.tokenize("{", add_bos=False, parse_special=False)[0])
    assert allowed(second, vocab.n_tokens) == before


def test_a_matcher_is_rebuilt_from_the_tokens_so_far(
    constraints: Constraints, vocab: Vocab
) -> None:
    text = written(PERSON)
    first = constraints.matcher(text)
    said = vocab.tokenize('{"name": "Ada', add_bos=False, parse_special=False)
    for token in said:
        allowed(first, vocab.n_tokens)
        first.accept(token)
    second = constraints.matcher(text)
    for token in said:
        second.accept(token)
    assert allowed(first, vocab.n_tokens) == allowed(second, vocab.n_tokens)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"not": {"type": "string"}}, "unsupported keywords: not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": {}}, "contains"),
        ({"if": {}, "then": {}}, "if, then"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "format": "nonsense"}, "nonsense"),
        ({"type": "nonsense"}, "nonsense"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "http://example.com/schema"}, "example.com"),
        ({"$ref": "#"}, "no text at all"),
        ({"enum": []}, "empty"),
        ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "oneOf"),
        ({"not": {}, "x-guidance": {"lenient": True}}, "not"),
        ({"const": 10**50}, "digits"),
        ({"enum": ["a", {"b": [-(2**63)]}]}, "digits"),
        ({"type": "integer", "minimum": 1e20, "maximum": 1e21}, "digits"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_refused_by_name(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        written(schema)
    assert says in caught.value.message
    assert caught.value.param == "response_format"


BOMBS: list[dict[str, Any]] = [
    {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1800)}},
    {
        "allOf": [
            {"anyOf": [{"properties": {f"k{i}{j}": {"type": "integer"}}} for j in range(4)]}
            for i in range(9)
        ]
    },
]


def refusal(asked: grammar.Grammar) -> InvalidRequestError | None:
    try:
        guidance.check(asked)
    except InvalidRequestError as error:
        return error
    return None


@pytest.mark.parametrize("schema", BOMBS)
def test_a_bomb_ends_at_a_limit(schema: dict[str, Any]) -> None:
    error = refusal(grammar.of_schema(schema, "response_format"))
    assert error is not None
    assert error.param == "response_format"
    # A quick machine comes to the parser's limits before the time is over.
    assert "too " in error.message or "max is" in error.message


def test_a_grammar_that_only_an_answer_shows_to_be_too_large_is_refused() -> None:
    many = {"type": "object", "properties": {f"p{i}": {"type": "boolean"} for i in range(600)}}
    error = refusal(grammar.of_schema({**many, "additionalProperties": False}, "json_schema"))
    assert error is not None
    assert "max is 2000" in error.message
    rules = "".join(f'r{i}: r{i + 1} r{i + 1} | "x"\n' for i in range(99))
    error = refusal(grammar.of_text(f'start: r0\n{rules}r99: "y"', "grammar"))
    assert error is not None
    assert "max is 2000" in error.message


def follow(constraints: Constraints, text: str, vocab: Vocab) -> list[float]:
    """CPU seconds of each step of an answer that always takes the first token there is."""
    took: list[float] = []
    matcher = constraints.matcher(guidance.check(grammar.of_text(text, "grammar")))
    for _ in range(400):
        logits = numpy.zeros(vocab.n_tokens, numpy.float32)
        began = time.thread_time()
        try:
            matcher.mask(logits)
            possible = numpy.flatnonzero(logits == 0).tolist()
            matcher.accept(next(token for token in possible if token not in vocab.eog_tokens))
        except GrammarError:
            return took
        finally:
            took.append(time.thread_time() - began)
    return took


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "a" | root root',  # 160 ms a token, for ever
        "start: s\ns: s s s | s s | /./",  # 800 ms a token
    ],
)
def test_a_grammar_that_becomes_slow_to_follow_is_ended(
    constraints: Constraints, vocab: Vocab, text: str
) -> None:
    took = follow(constraints, text, vocab)
    assert len(took) < 400, "it was ended"
    beyond = sum(max(0.0, one - guidance.STEP_S) for one in took[:-1])
    assert beyond <= 2 * guidance.BURST_S


def test_a_large_honest_schema_is_followed_to_its_end(
    constraints: Constraints, vocab: Vocab
) -> None:
    keys = {f"key number {i}": {"type": "string"} for i in range(400)}
    matcher = constraints.matcher(written({"type": "object", "properties": keys}))
    said = json.dumps(dict.fromkeys(keys, "v" * 9))
    for token in vocab.tokenize(said, add_bos=False, parse_special=False):
        assert token in allowed(matcher, vocab.n_tokens)
        matcher.accept(token)
    assert matcher.finished or allowed(matcher, vocab.n_tokens) >= set(vocab.eog_tokens)


def test_a_grammar_may_be_gbnf_or_lark() -> None:
    for text in (
        'root ::= "yes" | "no" ws\nws ::= [ \\t]*',
        'start: "yes" | "no"',
        "start: /[0-9]{3}-[a-z]+/",
    ):
        assert guidance.check(grammar.of_text(text, "grammar"))


@pytest.mark.parametrize(
    "text", ["root ::= (", "garbage", "root ::= missing", "start: MISSING", 'root ::= "a', ""]
)
def test_a_broken_grammar_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        guidance.check(grammar.of_text(text, "grammar"))
    assert caught.value.param == "grammar"


def test_size_and_nesting_are_bounded_before_anything_is_compiled() -> None:
    for text in ("(" * 100, "a" * (grammar.MAX_BYTES + 1)):
        with pytest.raises(InvalidRequestError):
            grammar.of_text(text, "grammar")
    with pytest.raises(InvalidRequestError):
        grammar.of_schema({"description": "x" * grammar.MAX_BYTES}, "response_format")


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet='root ::=[]()*+?{}|"\\ab0-9\n.^', max_size=60))
def test_no_grammar_does_worse_than_being_refused(text: str) -> None:
    for whole in (text, f"start: /{text}/"):
        error = refusal(grammar.of_text(whole, "grammar"))
        assert error is None or "\n" not in error.message


def test_only_numbers_that_bind_an_answer_have_to_be_short() -> None:
    example = {"examples": [{"id": 10**18}], "default": {"id": [10**18]}}
    assert json.loads(grammar.of_schema(example, "x").text) == example
    binds = {"const": 10**18}
    for schema in (
        {"properties": {"default": binds}},
        {"properties": {"properties": binds, "default": {}}},
        {"enum": [{"default": {"id": 10**18}}]},
    ):
        with pytest.raises(InvalidRequestError, match="too many digits"):
            grammar.of_schema(schema, "x")


def test_key_order_and_numbers_of_a_schema_survive() -> None:
    limits = {"type": "integer", "minimum": 0, "maximum": 2**64 - 1, "default": 10**30}
    schema = {"type": "object", "properties": {"b": limits, "a": {"const": 2**53}}}
    assert json.loads(grammar.of_schema(schema, "x").text) == schema
    assert grammar.of_schema(schema, "x").text.index('"b"') < grammar.of_schema(
        schema, "x"
    ).text.index('"a"')
