"""What a slot's KV keeps and lends: reuse, copies, filled tiles, what decodes along."""

from __future__ import annotations

import pytest

from engine_bench import OTHER, PROMPT, Bench
from fake_engine import (
    EOG,
    FakeContext,
    continuation,
    lively,
    submit,
)
from lbhost.wire import FinishReason
from lbhost.worker.context import Decoded
from lbhost.worker.requests import Part, Slot, depth


def test_a_prompt_seen_before_reuses_all_but_its_last_token() -> None:
    bench = Bench()
    for request in (1, 2):
        bench.submit(submit(request, PROMPT, 5))
        bench.run()
    assert bench.finish(2).cached_tokens == len(PROMPT) - 1
    assert bench.result(1).tokens == bench.result(2).tokens


def test_a_conversation_goes_on_in_its_slot() -> None:
    bench = Bench()
    bench.submit(submit(1, PROMPT, 5))
    bench.run()
    longer = PROMPT + bench.result(1).tokens[:4] + [77, 78]
    bench.submit(submit(2, longer, 5))
    bench.run()
    assert bench.finish(2).cached_tokens == len(PROMPT) + 4
    assert bench.result(2).tokens == continuation(longer, 5, 64)


def test_memory_that_cannot_be_cut_is_computed_again() -> None:
    context = FakeContext()
    context.can_cut = False
    bench = Bench(context)
    for request in (1, 2):
        bench.submit(submit(request, PROMPT, 5))
        bench.run()
    assert bench.finish(2).cached_tokens == 0
    assert bench.result(2).tokens == bench.result(1).tokens


def test_a_busy_slots_long_prefix_is_copied() -> None:
    common = list(range(100, 140))
    bench = Bench()
    bench.submit(submit(1, [*common, 1], 20))
    while not bench.results:
        bench.step()
    bench.submit(submit(2, [*common, 2], 5))
    bench.run()
    assert bench.context.copies == 1
    assert bench.finish(2).cached_tokens == len(common)
    assert bench.result(2).tokens == continuation([*common, 2], 5, 64)
    assert bench.result(1).tokens == continuation([*common, 1], 20, 64)


def prefilled_in_tiles(prompt: list[int], n_ctx: int, *, can_cut: bool = True) -> Bench:
    """A bench with a tiled context, after the one step that a prompt takes."""
    context = FakeContext(n_ctx=n_ctx, batch_size=72)
    context.tiled, context.can_copy, context.can_cut = True, can_cut, can_cut
    bench = Bench(context)
    bench.submit(submit(1, prompt, 4))
    bench.step()
    return bench


def test_the_last_tile_of_a_prompt_is_filled_and_the_filling_cut_off() -> None:
    prompt = lively(60)
    bench = prefilled_in_tiles(prompt, n_ctx=128)
    assert bench.context.batches == [[(0, 64)]]
    assert bench.context.kv[0] == prompt
    bench.run()
    assert bench.result(1).tokens == continuation(prompt, 4, 128)


def test_a_tile_is_not_filled_beyond_the_context() -> None:
    bench = prefilled_in_tiles(lively(60), n_ctx=63)
    assert bench.context.batches == [[(0, 60)]]


def test_memory_that_cannot_be_cut_gets_no_filling() -> None:
    bench = prefilled_in_tiles(lively(60), n_ctx=128, can_cut=False)
    assert bench.context.batches == [[(0, 60)]]


def with_a_gap(context: FakeContext) -> Bench:
    """Sequences that decode in slots 0 and 2; what was in slot 1 has ended."""
    bench = Bench(context)
    for number, (prompt, tokens) in enumerate([(PROMPT, 40), (OTHER, 1), (lively(10), 40)]):
        bench.submit(submit(number, prompt, tokens))
    while 1 not in {request for _, request in bench.results}:
        bench.step()
    bench.step()
    context.batches.clear()
    return bench


def test_a_gap_between_sequences_decodes_along_and_keeps_its_tokens() -> None:
    bench = with_a_gap(FakeContext())
    before = list(bench.context.kv[1])
    bench.step()
    assert bench.context.batches == [[(0, 1), (1, 1), (2, 1)]]
    assert bench.context.kv[1] == before
    bench.run()
    assert bench.result(0).tokens == continuation(PROMPT, 40, 64)
    assert bench.result(2).tokens == continuation(lively(10), 40, 64)
    bench.submit(submit(3, OTHER, 1))
    bench.run()
    assert bench.finish(3).cached_tokens == len(OTHER) - 1


def test_a_gap_that_cannot_be_cut_again_is_left() -> None:
    context = FakeContext()
    context.can_copy = False
    bench = with_a_gap(context)
    bench.step()
    assert context.batches == [[(0, 1), (2, 1)]]


def test_a_gap_whose_slot_is_full_is_left() -> None:
    bench = Bench(FakeContext(n_ctx=24))
    long = lively(24)
    for number, (prompt, tokens) in enumerate([(PROMPT, 14), (long, 1), (OTHER, 14)]):
        bench.submit(submit(number, prompt, tokens))
    while len(bench.results) < 3:
        bench.step()
    assert bench.finish(1).reason is FinishReason.LENGTH
    bench.context.batches.clear()
    bench.step()
    assert bench.context.batches == [[(0, 1), (2, 1)]]


@pytest.mark.parametrize("how", [Decoded.ABORTED, Decoded.FAILED])
def test_what_decodes_along_is_forgotten_when_a_decode_goes_wrong(how: Decoded) -> None:
    bench = with_a_gap(FakeContext())
    before = list(bench.context.kv[1])
    bench.context.results = [how]
    bench.step()
    assert bench.context.kv[1] == before


SEVEN_ROWS_S, EIGHT_ROWS_S = 0.034, 0.025


def test_a_row_that_makes_steps_faster_decodes_along_and_is_forgotten() -> None:
    context = FakeContext(slots=8)
    bench = Bench(context)

    def compute() -> None:
        bench.now += EIGHT_ROWS_S if len(context.batches[-1]) == 8 else SEVEN_ROWS_S

    context.during_decode = compute
    for number in range(7):
        bench.submit(submit(number, lively(10, number), 24))
    bench.run()
    for number in range(7):
        assert bench.result(number).tokens == continuation(lively(10, number), 24, 64)
    rows = [len(batch) for batch in context.batches if all(count == 1 for _, count in batch)]
    assert rows.count(7) == 1  # the first: what it takes must be known
    assert rows.count(8) > 15
    assert context.kv[7] == []


def test_what_another_row_would_take_is_found_out_beside_no_prompt() -> None:
    context = FakeContext(slots=4, n_ctx=256, batch_size=20)
    bench = Bench(context)

    def compute() -> None:
        bench.now += EIGHT_ROWS_S if len(context.batches[-1]) == 4 else SEVEN_ROWS_S

    context.during_decode = compute
    for number, tokens in enumerate((50, 50, 2)):
        bench.submit(submit(number, lively(8, number), tokens))
    while bench.engine.load().slots_busy != 2:
        bench.step()
    made = (list(range(start, start + 100)) for start in range(1, 500))
    long = next(prompt for prompt in made if EOG not in continuation(prompt, 12, 256))
    bench.submit(submit(3, long, 12))
    while (0, 3) not in bench.results:
        bench.step()  # three rows, and none of these steps tells what they take alone
    context.batches.clear()
    bench.run()
    assert len(context.batches[1]) == 4


def test_nothing_decodes_along_in_memory_that_cannot_be_cut() -> None:
    context = FakeContext(slots=4)
    context.can_copy = False
    bench = Bench(context)
    for number in range(3):
        bench.submit(submit(number, lively(10, number), 24))
    bench.run()
    assert max(len(batch) for batch in context.batches) == 3


def test_the_context_of_a_step_is_that_of_the_tokens_it_computes() -> None:
    deep, shallow = Slot(0), Slot(1)
    deep.tokens = bytearray(4 * 1000)
    shallow.tokens = bytearray(4 * 10)
    assert depth([Part(deep, bytes(4))]) == 1000
    assert depth([Part(deep, bytes(4)), Part(shallow, bytes(4))]) == 505
    assert depth([Part(deep, bytes(4)), Part(shallow, bytes(4 * 98))]) == (1000 + 980) // 99
    assert depth([]) == 0
