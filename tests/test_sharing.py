"""Prompts that begin alike are computed once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_bench import Bench
from fake_engine import FakeContext, continuation, lively, submit
from lbhost.wire import pack_tokens
from lbhost.worker.sharing import Copy, Held, share

LONG = list(range(100, 200))
OTHER = list(range(500, 600))


def held(
    slot: int,
    done: int,
    prompt: list[int],
    *,
    rank: int = 1,
    scored: bool = False,
    scope: int = 0,
) -> Held:
    """A slot whose number is its request's, with so many of the prompt's tokens computed."""
    return Held(slot, pack_tokens(prompt[:done]), pack_tokens(prompt), slot, rank, scored, scope)


def test_the_first_of_those_that_are_alike_computes_and_the_others_wait() -> None:
    sharing = share([held(0, 0, LONG), held(1, 0, LONG), held(2, 0, LONG), held(3, 0, OTHER)], 32)
    assert sharing.copies == ()
    assert sharing.waiting == {1, 2}


def test_while_it_is_computed_they_wait_and_then_they_copy() -> None:
    waiting = held(1, 0, LONG)
    assert share([held(0, 64, LONG), waiting], 32).waiting == {1}
    computed = Held(0, pack_tokens([*LONG, 7, 8]))
    sharing = share([computed, waiting], 32)
    assert sharing.waiting == frozenset()
    assert sharing.copies == (Copy(0, 1, 99),)


def test_what_they_share_is_enough_to_copy() -> None:
    longer = [*LONG[:50], *OTHER]
    assert share([held(0, 32, LONG), held(1, 0, longer)], 32).waiting == {1}
    sharing = share([held(0, 50, LONG), held(1, 0, longer)], 32)
    assert sharing.copies == (Copy(0, 1, 50),)
    assert sharing.waiting == frozenset()


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    short = [*LONG[:40], 1]
    sharing = share([held(0, 0, LONG), held(1, 0, short)], 32)
    assert sharing.waiting == {0}


def test_nobody_waits_for_who_has_a_lower_class() -> None:
    assert share([held(0, 0, LONG, rank=2), held(1, 0, LONG, rank=1)], 32).waiting == {0}


@pytest.mark.parametrize(("common", "waits"), [(31, False), (32, True)])
def test_little_is_not_worth_a_copy(common: int, waits: bool) -> None:
    other = [*LONG[:common], *OTHER]
    assert bool(share([held(0, 0, LONG), held(1, 0, other)], 32).waiting) is waits


@pytest.mark.parametrize(("own", "worth"), [(67, True), (68, False)])
def test_what_it_holds_itself_needs_no_copy(own: int, worth: bool) -> None:
    computed = Held(0, pack_tokens(LONG))
    copies = share([computed, held(1, own, LONG)], 32).copies
    assert copies == ((Copy(0, 1, 99),) if worth else ())
    shorter = held(0, 0, LONG[:98], rank=0)
    assert bool(share([shorter, held(1, own - 1, LONG)], 32).waiting) is worth


def test_one_waits_for_whoever_has_most_in_common_with_it() -> None:
    little, much = [*LONG[:31], 1], [*LONG[:90], 1]
    for first, second in ((little, much), (much, little)):
        slots = [held(0, 0, first), held(1, 0, second), held(2, 0, LONG)]
        assert share(slots, 32).waiting == {2}


def test_nothing_is_shared_between_scopes() -> None:
    mine, same, others = (held(n, 0, LONG, scope=scope) for n, scope in enumerate((1, 1, 2)))
    assert share([mine, same, others], 32).waiting == {1}
    computed = Held(3, pack_tokens(LONG), scope=1)
    assert share([computed, mine, others], 32).copies == (Copy(3, 0, 99),)


def test_who_is_to_be_scored_computes_all_of_it_itself() -> None:
    sharing = share([held(0, 0, LONG), held(1, 0, LONG, scored=True)], 32)
    assert sharing == share([held(0, 0, LONG)], 32)


@given(
    slots=st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 2)), min_size=1, max_size=6
    )
)
def test_somebody_always_computes(slots: list[tuple[int, int, int]]) -> None:
    """However they are alike: the first in the order waits for nobody."""
    views = [
        held(slot, min(done, 40 + own), [*LONG[: 40 + own], *OTHER[:own]], rank=rank)
        for slot, (done, own, rank) in enumerate(slots)
    ]
    sharing = share(views, 8)
    first = min(views, key=lambda view: view.place)
    assert first.number not in sharing.waiting
    for copy in sharing.copies:
        assert copy.source != copy.target
        source, target = views[copy.source], views[copy.target]
        assert source.tokens[: 4 * copy.tokens] == target.prompt[: 4 * copy.tokens]
        assert 4 * copy.tokens < len(target.prompt)


# --- in the engine ----------------------------------------------------------------------


def test_a_prompt_that_is_asked_four_times_is_computed_once() -> None:
    prompt = lively(48)
    bench = Bench(FakeContext(slots=4))
    for number in range(4):
        bench.submit(submit(number, prompt, max_tokens=6))
    bench.run()
    for number in range(4):
        assert bench.result(number).tokens == continuation(prompt, 6, 64)
        assert bench.finish(number).cached_tokens == (47 if number else 0)
    assert bench.context.copies == 3
    assert bench.engine.load().prompt_tokens == 48 + 3


def test_when_the_one_that_computes_is_cancelled_the_next_goes_on() -> None:
    prompt = lively(48)
    bench = Bench(FakeContext(slots=4))
    for number in range(3):
        bench.submit(submit(number, prompt, max_tokens=6))
    bench.step()
    bench.engine.cancel(0, 0)
    bench.run()
    for number in (1, 2):
        assert bench.result(number).tokens == continuation(prompt, 6, 64)
    assert bench.engine.load().prompt_tokens < 2 * 48


def test_memory_that_cannot_be_copied_is_computed_by_each() -> None:
    prompt = lively(48)
    bench = Bench(FakeContext(slots=2))
    bench.context.can_copy = False
    for number in range(2):
        bench.submit(submit(number, prompt, max_tokens=6))
    bench.run()
    assert [bench.finish(number).cached_tokens for number in range(2)] == [0, 0]
    assert bench.result(1).tokens == continuation(prompt, 6, 64)


@settings(deadline=None, max_examples=60)
@given(
    asked=st.lists(
        st.tuples(st.sampled_from([34, 40, 48]), st.integers(0, 2), st.integers(0, 30)),
        min_size=2,
        max_size=8,
    )
)
def test_whoever_shares_with_whom_every_answer_is_its_prompts_own(
    asked: list[tuple[int, int, int]],
) -> None:
    base = lively(48)
    prompts = [[*base[:length], *range(700, 700 + more)] for length, more, _ in asked]
    bench = Bench(FakeContext(slots=3))
    for number, (prompt, (_, _, when)) in enumerate(zip(prompts, asked, strict=True)):
        for _ in range(when % 4):
            bench.step()
        bench.submit(submit(number, prompt, max_tokens=4))
    bench.run()
    for number, prompt in enumerate(prompts):
        assert bench.result(number).tokens == continuation(prompt, 4, 64)
