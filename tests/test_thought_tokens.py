"""How many of an answer's tokens are told to be its thought."""

from __future__ import annotations

import json

import pytest

from lbhost import wire
from lbhost.gateway.api.answer import _news
from lbhost.gateway.api.chat_reply import ChatReply
from lbhost.gateway.api.generation import Style
from lbhost.gateway.api.reading import Reading, Thinking
from lbhost.gateway.api.replies import Given
from lbhost.gateway.api.responses_reply import ResponsesReply
from lbhost.gateway.api.thought_tokens import ThoughtTokens
from lbhost.gateway.scheduling.deltas import TextDelta
from lbhost.gateway.scheduling.group import Group
from lbhost.gateway.scheduling.job import Job, Work

PIECES = [b"<think>", b"</think>", b"hm", b"\n", b"<th", b"ink>", b"Yes", b"</think>\n\n", b""]
TAGS = Thinking("<think>", "</think>")
BEGUN = Thinking("<think>", "</think>", begun=True)


def pieces(token: int) -> bytes:
    return PIECES[token]


@pytest.mark.parametrize(
    ("thinking", "tokens", "expected"),
    [
        (TAGS, (0, 2, 2, 1, 6, 6), 4),
        (TAGS, (3, 4, 5, 2, 7, 6), 5),
        (TAGS, (6, 0, 2, 1), 0),
        (TAGS, (4, 6), 0),
        (TAGS, (4,), 0),
        (TAGS, (), 0),
        (TAGS, (0, 2, 2), 3),
        (TAGS, (0, 1, 6), 2),
        (BEGUN, (2, 2, 1, 6), 3),
        (BEGUN, (2, 8), 2),
        (None, (0, 2, 1), 0),
    ],
)
def test_tags_count_and_what_follows_does_not(
    thinking: Thinking | None, tokens: tuple[int, ...], expected: int
) -> None:
    finish = wire.Finish(wire.FinishReason.STOP, completion_tokens=len(tokens))
    for cut in range(len(tokens) + 1):
        counter = ThoughtTokens(thinking, pieces)
        counter.feed(tokens[:cut])
        counter.feed(tokens[cut:])
        assert counter.of(finish) == expected


def test_a_thought_that_was_cut_off_is_all_of_the_answer() -> None:
    counter = ThoughtTokens(TAGS, pieces)
    counter.feed((0, 2))
    # The last tokens had no text that a delta would have come for.
    assert counter.of(wire.Finish(wire.FinishReason.LENGTH, completion_tokens=4)) == 4


def test_tokens_that_have_no_text_yet_are_counted_with_those_that_follow() -> None:
    work = Work(b"", 0, 9, wire.Sampling(), stream=True)
    one, two = Job(1, work, 0.0), Job(2, work, 0.0)
    group, reply = Group([one, two]), ChatReply("a", "toy", Style(reading=Reading(TAGS)))
    one.put(TextDelta("Yes", (6,)))
    two.put(TextDelta("", (0, 2)))  # its text is held back
    assert _news(group, 0, reply, set())
    assert not _news(group, 1, reply, set())
    two.put(TextDelta("<think>hm", (2,)))
    assert two.has_news
    assert [token for delta in two.take() for token in delta.tokens] == [0, 2, 2]


def test_usage_tells_it() -> None:
    tokens = (0, 2, 1, 6)
    delta = TextDelta("".join(PIECES[token].decode() for token in tokens), tokens)
    finish = wire.Finish(wire.FinishReason.STOP, 9, completion_tokens=4)
    style = Style(reading=Reading(TAGS), include_usage=True)

    def chat() -> ChatReply:
        return ChatReply("a", "toy", style, pieces=pieces)

    two = json.loads(chat().whole([Given(delta, finish)] * 2, [finish] * 2))
    assert two["usage"]["completion_tokens_details"] == {"reasoning_tokens": 6}
    reply = chat()
    reply.text(0, delta)
    reply.last_chunk(0, finish)
    usage = json.loads(reply.closing([finish]).split(b"\n")[0].removeprefix(b"data: "))["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 3}
    responses = ResponsesReply("a", "toy", style, pieces=pieces)
    told = json.loads(responses.whole([Given(delta, finish)], [finish]))["usage"]
    assert told["output_tokens_details"] == {"reasoning_tokens": 3}
