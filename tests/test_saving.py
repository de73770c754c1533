"""When saving pays: pure."""

from __future__ import annotations

import pytest

from lbhost.worker.saving import LEAST, LEAST_S, PAYS, Doing, Unsaved, worth


@pytest.mark.parametrize("doing", list(Doing))
def test_few_new_tokens_are_not_worth_a_save(doing: Doing) -> None:
    few = LEAST[doing] - 1
    assert not worth(Unsaved(doing, 2000 + few, 2000, 1e9), 0.001)
    assert worth(Unsaved(doing, 2000 + few + 1, 2000, 1e9), 0.001)


@pytest.mark.parametrize("doing", list(Doing))
def test_a_save_must_be_quick_beside_what_it_saves(doing: Doing) -> None:
    limit = PAYS[doing] * 0.01
    assert limit >= LEAST_S.get(doing, 0.0)
    assert not worth(Unsaved(doing, 4000, 0, limit * 0.99), 0.01)
    assert worth(Unsaved(doing, 4000, 0, limit), 0.01)


def test_saves_of_a_running_sequence_take_a_seventieth_of_its_time() -> None:
    # 40 ms to compute a token, 50 us to save one: the sequence grows, and saves with it.
    saved_s = computed_s = unsaved_s = 0.0
    kept = 0
    for tokens in range(1, 4000):
        computed_s += 0.04
        unsaved_s += 0.04
        save_s = tokens * 0.00005
        if worth(Unsaved(Doing.DECODE, tokens, kept, unsaved_s), save_s):
            saved_s, kept, unsaved_s = saved_s + save_s, tokens, 0.0
    assert 0 < saved_s <= 0.0144 * computed_s


def test_a_loss_that_nobody_notices_is_not_insured() -> None:
    assert not worth(Unsaved(Doing.DECODE, 200, 0, 0.24), 0.0001)
    assert worth(Unsaved(Doing.DECODE, 200, 0, 0.25), 0.0001)


def saves(prompt: int, output: int, token_s: float, save_s: float) -> list[int]:
    """Tokens of a stream's checkpoints; its prompt took a quarter of `token_s` a token."""
    found, kept, unsaved_s = list[int](), 0, prompt * token_s / 4
    for count in range(1, output):
        unsaved_s += token_s
        left_s = (output - count) * token_s
        if worth(Unsaved(Doing.DECODE, prompt + count, kept, unsaved_s, left_s), save_s):
            found.append(count)
            kept, unsaved_s = prompt + count, 0.0
    return found


def test_a_short_answer_is_saved_when_it_ends_and_not_on_the_way() -> None:
    assert not saves(128, 64, 0.004, 0.002)
    assert saves(128, 640, 0.004, 0.002)


def test_what_is_unsaved_near_an_end_is_no_more_than_between_two_saves_twice() -> None:
    for output in range(60, 400, 7):
        last = ([0, *saves(0, output, 0.01, 0.002)])[-1]
        assert output - last <= 2 * 0.25 / 0.01 + 1


def test_what_the_store_has_of_a_prompt_that_is_not_computed_yet_counts_for_nothing() -> None:
    assert not worth(Unsaved(Doing.NOTHING, 100, 900, 1e9), 0.001)


@pytest.mark.parametrize(("token_s", "save_token_s"), [(0.03, 25e-6), (0.003, 8e-6)])
def test_what_a_workers_end_costs_a_stream_of_256_tokens_is_bounded(
    token_s: float, save_token_s: float
) -> None:
    # Prefill of what came since the last save, for a slow box and a fast one: a token of prefill
    # costs a quarter of one that is decoded.
    kept, unsaved_s, lost = 256, 0.0, list[float]()
    for tokens in range(257, 640):
        unsaved_s += token_s
        lost.append((tokens - kept) * token_s / 4)
        if worth(Unsaved(Doing.DECODE, tokens, kept, unsaved_s), 0.0005 + tokens * save_token_s):
            kept, unsaved_s = tokens, 0.0
    assert sum(lost) / len(lost) < 0.15
    assert max(lost) < 0.3
