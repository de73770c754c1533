"""Whatever happens, every answer is its prompt's own: nothing leaks between slots."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_bench import Bench
from fake_engine import (
    FORCING,
    FakeContext,
    continuation,
    submit,
)
from lbhost.wire import FinishReason
from lbhost.worker import seating
from lbhost.worker.context import Decoded
from lbhost.worker.sharing import Held, Sharing, share

COMMON = list(range(100, 145))
"""Long enough that copying it from a busy slot pays."""


prompts = st.lists(st.integers(1, 4), min_size=1, max_size=60)


families = st.lists(
    st.builds(
        lambda shared, rest: COMMON[:shared] + rest,
        st.integers(36, len(COMMON)),
        st.lists(st.integers(1, 4), min_size=1, max_size=15),
    ),
    min_size=2,
    max_size=3,
)


actions = st.one_of(
    st.tuples(st.just("family"), families, st.integers(8, 12)),
    st.tuples(st.just("crowd"), families, st.integers(8, 12)),
    st.tuples(st.just("submit"), prompts, st.integers(1, 12)),
    st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("step"), st.integers(1, 5), st.just(0)),
    st.tuples(st.just("abort"), st.just(0), st.just(0)),
)


class Copies(msgspec.Struct):
    """Prefixes that were copied…"""

    seated: int
    """…as a request got its slot…"""
    shared: int
    """…and while it waited in it for another one to compute them."""


def run_script(
    script: list[tuple[str, object, int]], slots: int, can_cut: bool, can_copy: bool, tiled: bool
) -> Copies:
    """Play a script, check every answer, and return how many prefixes were copied."""
    shared = 0

    def counted(held: Sequence[Held], copy_worth: int) -> Sharing:
        nonlocal shared
        sharing = share(held, copy_worth)
        shared += len(sharing.copies)
        return sharing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seating, "share", counted)
        copies = play(script, slots, can_cut, can_copy, tiled)
    assert copies >= shared, "what is decided is done"
    return Copies(copies - shared, shared)


def play(
    script: list[tuple[str, object, int]], slots: int, can_cut: bool, can_copy: bool, tiled: bool
) -> int:
    """See run_script; returns the copies of both kinds."""
    context = FakeContext(slots=slots, batch_size=72 if tiled else 32)
    context.can_cut, context.can_copy, context.tiled = can_cut, can_cut and can_copy, tiled
    bench = Bench(context)
    sent: dict[int, tuple[list[int], int]] = {}
    for what, first, second in script:
        match what, first:
            case "submit", list():
                grammar = FORCING if len(sent) % 2 else ""
                sent[len(sent)] = (first, second)
                bench.submit(submit(len(sent) - 1, first, second, grammar=grammar))
            case "family", list():  # each while the one before is being answered
                for prompt in first:
                    sent[len(sent)] = (prompt, second)
                    bench.submit(submit(len(sent) - 1, prompt, second))
                    for _ in range(3):
                        bench.step()
            case "crowd", list():  # all at once
                for prompt in first:
                    sent[len(sent)] = (prompt, second)
                    bench.submit(submit(len(sent) - 1, prompt, second))
            case "cancel", int():
                bench.engine.cancel(0, first)
            case "step", int():
                for _ in range(first):
                    bench.step()
            case "abort", _:
                context.results = [Decoded.ABORTED]
    bench.run()
    for request, (prompt, max_tokens) in sent.items():
        result, reason = bench.result(request), bench.finish(request).reason
        expected = continuation(prompt, max_tokens, 64)
        if reason in (FinishReason.CANCELLED, FinishReason.ERROR):
            assert result.tokens == expected[: len(result.tokens)]
        else:
            assert result.tokens == expected
        assert not (can_cut and reason is FinishReason.ERROR)
    assert not bench.engine.load().slots_busy
    assert can_copy or not context.copies
    return context.copies


@settings(max_examples=150, deadline=None)
@given(
    st.lists(actions, max_size=40), st.integers(1, 4), st.booleans(), st.booleans(), st.booleans()
)
def test_whatever_happens_every_answer_is_its_prompts_own(
    script: list[tuple[str, object, int]], slots: int, can_cut: bool, can_copy: bool, tiled: bool
) -> None:
    run_script(script, slots, can_cut, can_cut and can_copy, tiled)


@pytest.mark.parametrize("kind", ["family", "crowd"])
def test_whatever_happens_around_copied_prefixes_every_answer_is_its_prompts_own(
    kind: str,
) -> None:
    found: list[Copies] = []

    @settings(max_examples=100, deadline=None)
    @given(families, st.lists(actions, max_size=20), st.integers(2, 4), st.booleans())
    def fuzz(
        family: list[list[int]], rest: list[tuple[str, object, int]], slots: int, tiled: bool
    ) -> None:
        script: list[tuple[str, object, int]] = [(kind, family, 12), *rest]
        found.append(run_script(script, slots, True, True, tiled))

    fuzz()
    copied = [one.seated if kind == "family" else one.shared for one in found]
    assert sum(map(bool, copied)) > len(copied) / 2, "a prefix is copied in most scripts"
