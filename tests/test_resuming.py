"""A request goes on in another engine from its tokens: nothing repeated, nothing missing."""

from __future__ import annotations

import msgspec
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_engine import (
    EOG,
    FORCING,
    FakeContext,
    FakeSamplers,
    FakeVocab,
    continuation,
    lively,
    submit,
)
from lbhost.wire import Delta, Finish, FinishReason, Sampling, Submit, pack_tokens
from lbhost.worker.context import Decoded
from lbhost.worker.draw import Draw
from lbhost.worker.engine import Engine

PROMPT = lively(8)


class Bytes(FakeVocab):
    """Each token is one byte of a text with characters of one to four bytes, or of none."""

    TEXT = "ab€😀".encode() + b"\xff"

    def piece(self, token: int, *, special: bool = False) -> bytes:
        at = token % len(self.TEXT)
        return self.TEXT[at : at + 1]


class Whole(FakeVocab):
    """Tokens are the bytes of a text, in turn, so that most characters come out whole."""

    TEXT = "a€b😀".encode()

    def piece(self, token: int, *, special: bool = False) -> bytes:
        at = 3 * token % len(self.TEXT)
        return self.TEXT[at : at + 1 + token % 4]


def engine(vocab: FakeVocab | None = None, context: FakeContext | None = None) -> Engine:
    samplers = FakeSamplers()
    return Engine(
        context or FakeContext(),
        samplers,
        vocab or FakeVocab(),
        target_s=0.15,
        clock=lambda: 0.0,
        cpu_clock=lambda: 0.0,
    )


def deltas(made: Engine, request: Submit, *, stop_after: int | None = None) -> list[Delta]:
    """What a request gets, until its end or for so many deltas with tokens."""
    made.submit(0, request)
    got: list[Delta] = []
    for _ in range(1000):
        if not made.busy or (stop_after is not None and len(got) >= stop_after):
            return got[:stop_after]
        got += [delta for _, delta in made.step()]
    raise AssertionError("the engine never came to rest")


def text(got: list[Delta]) -> str:
    return "".join(delta.text for delta in got)


def tokens(got: list[Delta]) -> list[int]:
    return [token for delta in got for token in delta.tokens]


def finish(got: list[Delta]) -> Finish:
    assert got[-1].finish is not None
    return got[-1].finish


@settings(max_examples=150, deadline=None)
@given(
    start=st.integers(1, 900),
    length=st.integers(1, 60),
    max_tokens=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 39), max_size=3),
    stop=st.lists(st.sampled_from(["a", "ab", "€", "b€", "😀", "\ufffd\ufffd", "zz"]), max_size=2),
    vocab=st.sampled_from([FakeVocab, Bytes, Whole]),
    grammar=st.sampled_from(["", FORCING]),
)
def test_wherever_it_is_cut_the_answer_is_the_undisturbed_one(
    start: int,
    length: int,
    max_tokens: int,
    cuts: list[int],
    stop: list[str],
    vocab: type[FakeVocab],
    grammar: str,
) -> None:
    prompt = list(range(start, start + length))
    prompt = [token % 998 + 1 for token in prompt]
    request = submit(1, prompt, max_tokens, stop=tuple(stop), grammar=grammar)
    whole = deltas(engine(vocab()), request)
    end = finish(whole)
    parts: list[Delta] = []
    for cut in [*sorted(cuts), max_tokens]:
        missing = cut - len(tokens(parts))
        if missing > 0 and not (parts and parts[-1].finish):
            rest = msgspec.structs.replace(request, done=pack_tokens(tokens(parts)))
            parts += deltas(engine(vocab()), rest, stop_after=missing)
    assert tokens(parts) == tokens(whole)
    assert text(parts) == text(whole)
    last = finish(parts)
    assert (last.reason, last.prompt_tokens) == (end.reason, end.prompt_tokens)
    assert last.completion_tokens == end.completion_tokens


def test_a_full_context_ends_a_resumed_request_where_it_would_have_ended() -> None:
    prompt = lively(60)
    expected = continuation(prompt, 100, 64)
    assert len(expected) == 5
    for done in range(1, 5):
        got = deltas(engine(), submit(1, prompt, 100, done=pack_tokens(expected[:done])))
        assert tokens(got) == expected[done:]
        assert finish(got).reason is FinishReason.LENGTH
        assert finish(got).completion_tokens == 5


@pytest.mark.parametrize(
    ("done", "stop", "reason"),
    [
        (continuation(PROMPT, 5, 64), (), FinishReason.LENGTH),
        ([*continuation(PROMPT, 3, 64), EOG], (), FinishReason.STOP),
        (continuation(PROMPT, 3, 64), (f"{continuation(PROMPT, 2, 64)[1]} ",), FinishReason.STOP),
    ],
)
def test_a_request_that_has_all_its_tokens_ends_without_computing(
    done: list[int], stop: tuple[str, ...], reason: FinishReason
) -> None:
    context = FakeContext()
    request = submit(1, PROMPT, 5, stop=stop, done=pack_tokens(done))
    got = deltas(engine(context=context), request)
    assert (finish(got).reason, tokens(got), text(got)) == (reason, [], "")
    assert context.batches == []


def test_what_was_done_is_held_against_the_context_and_the_vocabulary() -> None:
    for done, says in (([1000], "not in the vocabulary"), ([5] * 60, "exceed the context")):
        got = deltas(engine(), submit(1, PROMPT, 99, done=pack_tokens(done)))
        assert finish(got).reason is FinishReason.ERROR
        assert says in (finish(got).error or "")


def test_usage_counts_all_output_and_no_more_than_the_prompt_as_cached() -> None:
    made = engine()
    expected = continuation(PROMPT, 12, 64)
    deltas(made, submit(1, PROMPT, 12))
    got = deltas(made, submit(2, PROMPT, 12, done=pack_tokens(expected[:9])))
    assert tokens(got) == expected[9:]
    last = finish(got)
    assert (last.prompt_tokens, last.cached_tokens, last.completion_tokens) == (8, 8, 12)


def test_what_is_copied_of_an_answer_is_not_counted_as_prompt() -> None:
    made, prompt = engine(), lively(40)
    done = pack_tokens(continuation(prompt, 10, 64))
    for number in (1, 2):
        made.submit(0, submit(number, prompt, 14, done=done))
    got: list[Delta] = []
    while made.busy:
        got += [delta for _, delta in made.step()]
    ends = [delta.finish for delta in got if delta.finish is not None]
    assert sorted(end.cached_tokens for end in ends) == [0, 40]
    told = {delta.request: delta.cached_tokens for delta in got if delta.cached_tokens is not None}
    assert sorted(told.values()) == [0, 40]


def test_a_moved_request_is_given_back_wherever_it_is() -> None:
    made = engine(context=FakeContext(slots=2))
    made.submit(0, submit(1, PROMPT, 50))  # will decode
    got = [delta for _, delta in made.step()]
    made.submit(0, submit(2, list(range(1, 61)), 50))  # will be between chunks
    made.submit(0, submit(3, PROMPT, 50))  # will wait
    got += [delta for _, delta in made.step()]
    for request in (1, 2, 3, 4):
        made.move(0, request)
    got += [delta for _, delta in made.take()]
    ends = {delta.request: delta.finish for delta in got if delta.finish is not None}
    assert {number: end.reason for number, end in ends.items()} == dict.fromkeys(
        (1, 2, 3), FinishReason.MOVED
    )
    assert made.load().slots_busy == made.load().waiting == 0
    told = tokens([delta for delta in got if delta.request == 1])
    assert told == continuation(PROMPT, len(told), 64)
    assert ends[1].completion_tokens == len(told) > 0


def test_a_state_that_is_lost_in_an_abort_is_computed_again() -> None:
    context = FakeContext()
    context.can_cut = context.can_copy = False
    made = engine(context=context)
    made.submit(0, submit(1, PROMPT, 12))
    got = [delta for _ in range(3) for _, delta in made.step()]
    assert len(got) == 3
    context.results = [Decoded.ABORTED]
    assert made.step() == []
    assert context.kv[0] == []
    while made.busy:
        got += [delta for _, delta in made.step()]
    assert tokens(got) == continuation(PROMPT, 12, 64)
    assert finish(got).reason is FinishReason.LENGTH


def test_a_sampler_is_told_which_tokens_were_picked_elsewhere() -> None:
    samplers = FakeSamplers()
    made = Engine(FakeContext(), samplers, FakeVocab(), target_s=0.15)
    done = continuation(PROMPT, 7, 64)
    deltas(made, submit(1, PROMPT, 12, done=pack_tokens(done)))
    assert samplers.done == [done]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.8, seed=7),
        Sampling(temperature=1.0, top_k=40, seed=8),
        Sampling(temperature=1.3, top_p=0.9, seed=9),
        Sampling(temperature=0.7, top_p=0.95, min_p=0.05, top_k=100, seed=10),
    ],
)
def test_draws_go_on_where_another_ones_have_ended(sampling: Sampling) -> None:
    rng = numpy.random.default_rng(5)
    rows = [rng.normal(size=4000).astype(numpy.float32) * 3 for _ in range(40)]
    alone = Draw(sampling)
    expected = [alone.pick(row) for row in rows]
    first = Draw(sampling)
    for cut in (0, 1, 17):
        second = Draw(sampling, cut)
        assert [second.pick(row) for row in rows[cut:]] == expected[cut:]
    assert [first.pick(row) for row in rows[:17]] == expected[:17]


def test_what_was_interrupted_goes_before_what_has_just_come() -> None:
    made = engine(context=FakeContext(batch_size=16))
    done = continuation(PROMPT, 8, 64)
    made.submit(0, submit(1, lively(10, 1), 4))
    made.submit(0, submit(2, PROMPT, 12, done=pack_tokens(done)))
    first = [delta.request for _, delta in made.step()]
    assert first == [2], "its prompt is longer, but its reader has seen it begin"
