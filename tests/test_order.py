"""The order of prompts in a worker: short first, and the oldest keeps its part."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbhost.order import (
    DEFAULT,
    FLEX,
    PART,
    PRIORITY,
    Overtaken,
    Prompt,
    Turn,
    after,
    rank_of,
    takers,
    tokens_until_done,
    turns,
    whose_turn,
)

GRAIN = 64


def test_the_fewest_tokens_left_go_first_and_age_settles_ties() -> None:
    prompts = [Prompt(0, 90), Prompt(1, 30), Prompt(3, 40), Prompt(2, 40)]
    line = turns(prompts, Overtaken(), GRAIN)
    assert line == [Turn(1, 30), Turn(2, 40), Turn(3, 40), Turn(0, 90)]


def test_however_old_a_long_prompt_is_a_short_one_goes_before_it() -> None:
    old, new = Prompt(1, 1038), Prompt(10_000, 63)
    assert turns([old, new], Overtaken(1, 0), GRAIN)[0] == Turn(10_000, 63)


def test_after_three_grains_of_others_the_oldest_has_one() -> None:
    prompts = [Prompt(0, 1000), Prompt(1, 300)]
    assert turns(prompts, Overtaken(0, 3 * GRAIN - 1), GRAIN)[0] == Turn(1, 300)
    line = turns(prompts, Overtaken(0, 3 * GRAIN), GRAIN)
    assert line == [Turn(0, GRAIN), Turn(1, 300), Turn(0, 1000)]


def test_the_part_is_paid_whole_and_never_beyond_the_prompt() -> None:
    other = Prompt(1, 20)
    assert turns([Prompt(0, 1000), other], Overtaken(0, 500), GRAIN)[0] == Turn(0, 128)
    assert turns([Prompt(0, 50), other], Overtaken(0, 500), GRAIN)[0] == Turn(0, 50)
    assert turns([Prompt(0, 50), other], Overtaken(0, 150), GRAIN)[0] == Turn(0, 50)


def test_what_another_prompt_was_owed_goes_to_nobody() -> None:
    prompts = [Prompt(4, 1000), Prompt(5, 300)]
    assert turns(prompts, Overtaken(3, 10_000), GRAIN)[0] == Turn(5, 300)


def test_being_overtaken_is_counted_and_being_served_counted_off() -> None:
    prompts = [Prompt(0, 1000), Prompt(1, 300)]
    owed = after(prompts, Overtaken(), {1: 64})
    assert owed == Overtaken(0, 64)
    owed = after(prompts, owed, {1: 128})
    assert owed == Overtaken(0, 192)
    owed = after(prompts, owed, {0: 64, 1: 10})
    assert owed == Overtaken(0, 10)
    assert after(prompts, owed, {0: 64}) == Overtaken(0, 0)
    assert after(prompts, owed, {0: 1000}) == Overtaken()


def test_nothing_waits_nothing_is_owed() -> None:
    assert turns([], Overtaken(0, 999), GRAIN) == []
    assert after([], Overtaken(0, 999), {}) == Overtaken()


def test_rank_comes_before_length() -> None:
    flex, default, first = Prompt(0, 1, FLEX), Prompt(1, 50, DEFAULT), Prompt(2, 900, PRIORITY)
    line = turns([flex, default, first], Overtaken(), GRAIN)
    assert [turn.number for turn in line] == [2, 1, 0]


def test_what_has_begun_goes_like_priority_but_flex_stays_flex() -> None:
    ranks = (PRIORITY, DEFAULT, FLEX)
    assert tuple(rank_of(rank, begun=False) for rank in ranks) == ranks
    assert tuple(rank_of(rank, begun=True) for rank in ranks) == (PRIORITY, PRIORITY, FLEX)


def test_flex_has_no_part_against_others_and_one_among_flex() -> None:
    flex, newer = Prompt(0, 900, FLEX), Prompt(2, 20, FLEX)
    default = Prompt(1, 50)
    assert after([flex, default], Overtaken(0, 500), {1: 10}) == Overtaken(1, 0)
    assert turns([flex, default], Overtaken(0, 500), GRAIN)[0] == Turn(1, 50)
    assert turns([flex, newer], Overtaken(0, 500), GRAIN)[0] == Turn(0, 128)


@pytest.mark.parametrize(
    ("tokens", "others", "done"),
    [
        (100, [], 100),
        (100, [100, 40], 240),
        (100, [1000], 133),
        (100, [110], 133),
        (900, [1000, 60], 900 + 60 + 320),
        (900, [901, 60, 5000], 900 + 60 + 320),
        (300, [310, 20], 300 + 20 + 106),
        (3000, [3001], 3000 + 1000),
    ],
)
def test_what_is_computed_until_a_new_prompt_is_done(
    tokens: int, others: list[int], done: int
) -> None:
    assert tokens_until_done(tokens, others) == done


def test_a_new_prompt_passes_lower_ranks_and_waits_for_higher() -> None:
    others, ranks = [30, 700, 30], [FLEX, PRIORITY, DEFAULT]
    assert tokens_until_done(99, others, ranks=ranks) == 99 + 700 + 30
    assert tokens_until_done(99, others, rank=PRIORITY, ranks=ranks) == 99 + 33
    assert tokens_until_done(99, others, rank=FLEX, ranks=ranks) == 99 + 700 + 30 + 30


# --- the bounds, over random arrivals -----------------------------------------------------


class Served(msgspec.Struct):
    """Some tokens that were computed of a prompt, which had `left` before."""

    prompt: Prompt
    tokens: int
    step: int
    oldest: int
    """Of the step."""


class Arrivals(msgspec.Struct, frozen=True):
    prompts: list[list[Prompt]]
    """Those that come before each step; after the last, steps go on until all is computed."""
    rooms: list[int]
    """Tokens of the steps, over and over again."""
    grain: int

    @property
    def step(self) -> int:
        return max(self.rooms)


@st.composite
def arrivals(draw: st.DrawFn, ranks: tuple[int, ...] = (DEFAULT,)) -> Arrivals:
    number = 0
    came: list[list[Prompt]] = []
    for count in draw(st.lists(st.integers(0, 3), min_size=1, max_size=30)):
        some = []
        for _ in range(count):
            length = draw(st.integers(1, 80) | st.integers(1, 2500))
            some.append(Prompt(number, length, draw(st.sampled_from(ranks))))
            number += 1
        came.append(some)
    grain = draw(st.sampled_from([8, 16, 64]))
    rooms = draw(st.lists(st.integers(grain, 2 * grain + 30), min_size=1, max_size=5))
    return Arrivals(came, rooms, grain)


def serve(case: Arrivals) -> list[Served]:
    """What a worker with this order computes, in order."""
    left: dict[int, Prompt] = {}
    overtaken = Overtaken()
    served: list[Served] = []
    step = 0
    while step < len(case.prompts) or left:
        for prompt in case.prompts[step] if step < len(case.prompts) else []:
            left[prompt.number] = prompt
        room = case.rooms[step % len(case.rooms)]
        prompts = list(left.values())
        computed: dict[int, int] = {}
        for turn in turns(prompts, overtaken, case.grain):
            prompt = left[turn.number]
            count = min(turn.most, room, prompt.remaining)
            if count:
                room -= count
                computed[turn.number] = computed.get(turn.number, 0) + count
                oldest = min(p.number for p in prompts)
                served.append(Served(prompt, count, step, oldest))
                left[turn.number] = msgspec.structs.replace(
                    prompt, remaining=prompt.remaining - count
                )
        overtaken = after(prompts, overtaken, computed)
        left = {number: prompt for number, prompt in left.items() if prompt.remaining}
        step += 1
    return served


@settings(deadline=None)
@given(arrivals())
def test_a_prompt_waits_for_the_shorter_work_a_third_of_it_and_a_step(case: Arrivals) -> None:
    served = serve(case)
    for came, prompts in enumerate(case.prompts):
        for new in prompts:
            shorter = longer = own = 0
            for part in served:
                if part.step < came:
                    continue
                if part.prompt.number == new.number:
                    own += part.tokens
                elif part.prompt.remaining <= new.remaining:
                    shorter += part.tokens
                else:
                    longer += part.tokens
                if own == new.remaining:
                    break
            assert own == new.remaining
            bound = (own + shorter + case.step) / (PART - 1) + case.grain
            assert longer < bound


@settings(deadline=None)
@given(arrivals(), st.integers(0, 30))
def test_a_prompt_of_one_token_waits_for_a_step_whatever_else_is_there(
    case: Arrivals, came: int
) -> None:
    """Nothing is shorter, so its bound needs no knowledge of the others."""
    new = Prompt(10_000, 1)
    before = [*case.prompts, *([[]] * 30)][:came]
    longer = [[p for p in some if p.remaining > 1000] for some in before]
    served = serve(Arrivals([*longer, [new]], case.rooms, case.grain))
    wait = 0
    for part in served:
        if part.step >= came:
            if part.prompt.number == new.number:
                break
            # what the part has left of a long one may have become as short as the new one
            wait += part.tokens if part.prompt.remaining > 1 else 0
    assert wait < case.grain + (case.step + 1) / (PART - 1)


@settings(deadline=None)
@given(arrivals())
def test_the_oldest_prompt_keeps_its_part(case: Arrivals) -> None:
    own: dict[int, int] = {}
    others: dict[int, int] = {}
    for part in serve(case):
        counts = own if part.prompt.number == part.oldest else others
        counts[part.oldest] = counts.get(part.oldest, 0) + part.tokens
        overtaking = others.get(part.oldest, 0)
        least = (overtaking - case.step) / (PART - 1) - case.grain
        assert own.get(part.oldest, 0) >= least


@settings(deadline=None)
@given(arrivals(ranks=(PRIORITY, DEFAULT, FLEX)))
def test_whatever_the_ranks_every_prompt_is_computed_once(case: Arrivals) -> None:
    computed: dict[int, int] = {}
    for part in serve(case):
        computed[part.prompt.number] = computed.get(part.prompt.number, 0) + part.tokens
    assert computed == {p.number: p.remaining for some in case.prompts for p in some}


@settings(deadline=None)
@given(arrivals(ranks=(PRIORITY, DEFAULT, FLEX)))
def test_a_priority_prompt_waits_for_others_no_longer_than_their_part(case: Arrivals) -> None:
    served = serve(case)
    for came, prompts in enumerate(case.prompts):
        for new in (prompt for prompt in prompts if prompt.rank == PRIORITY):
            first = others = own = 0
            for part in served:
                if part.step < came:
                    continue
                if part.prompt.number == new.number:
                    own += part.tokens
                elif (part.prompt.rank, part.prompt.remaining) <= (PRIORITY, new.remaining):
                    first += part.tokens
                else:
                    others += part.tokens
                if own == new.remaining:
                    break
            assert others < (own + first + case.step) / (PART - 1) + case.grain


@settings(deadline=None)
@given(arrivals(ranks=(DEFAULT, FLEX)))
def test_flex_gets_only_what_the_others_leave_of_a_step(case: Arrivals) -> None:
    steps: dict[int, list[Served]] = {}
    for part in serve(case):
        steps.setdefault(part.step, []).append(part)
    for parts in steps.values():
        ranks = [part.prompt.rank for part in parts]
        assert ranks == sorted(ranks)


@settings(deadline=None)
@given(st.integers(1, 300), st.lists(st.integers(1, 300), max_size=6), st.integers(2000, 3000))
def test_the_prediction_is_what_the_order_gives_but_for_a_grain(
    tokens: int, others: list[int], long: int
) -> None:
    """With a long prompt there that is the oldest, and nothing owed to it yet."""
    there = [Prompt(number, length) for number, length in enumerate([long, *others])]
    new = Prompt(len(there), tokens)
    done = 0
    for part in serve(Arrivals([[*there, new]], [GRAIN], GRAIN)):
        done += part.tokens
        if part.prompt.number == new.number and part.tokens == part.prompt.remaining:
            break
    assert abs(done - tokens_until_done(tokens, [long, *others])) <= GRAIN


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whoever_has_something_to_compute_has_its_turn_within_the_bound(
    data: st.DataObject,
) -> None:
    """Adapters come and go at random; each step takes a random time."""
    stint_s, longest_s = 0.15, 0.4
    current, spent_s, line, waited_s = 0, 0.0, list[int](), dict[int, float]()
    for _ in range(data.draw(st.integers(1, 120))):
        there = data.draw(st.sets(st.integers(0, 4), min_size=1))
        line = [one for one in line if one in there] + sorted(there - set(line))
        waited_s = {one: waited_s.get(one, 0.0) for one in there}
        turn = whose_turn(line, current, dict.fromkeys(line, DEFAULT), spent_s, stint_s)
        assert turn in there
        if turn != current:
            line.sort(key=lambda one: one == current)
            current, spent_s = turn, 0.0
        step_s = data.draw(st.floats(0.001, longest_s))
        spent_s += step_s
        for one in there:
            waited_s[one] = 0.0 if one == turn else waited_s[one] + step_s
            assert waited_s[one] <= 4 * (stint_s + longest_s)


def test_a_turn_of_flex_requests_alone_ends_after_a_step_where_others_wait() -> None:
    flex, mixed = {0: FLEX, 1: DEFAULT}, {0: DEFAULT, 1: FLEX}
    assert whose_turn([0, 1], 0, flex, 0.0, 0.15) == 0, "it has a step"
    assert whose_turn([0, 1], 0, flex, 0.01, 0.15) == 1
    assert whose_turn([0, 1], 0, mixed, 0.01, 0.15) == 0
    assert whose_turn([0, 1], 0, {0: FLEX, 1: FLEX}, 0.01, 0.15) == 0, "a change is not free"
    assert whose_turn([0, 1], 0, {0: FLEX, 1: FLEX}, 0.15, 0.15) == 1
    assert whose_turn([0], 0, {0: FLEX}, 9.0, 0.15) == 0, "nobody waits"
    assert whose_turn([], 2, {}, 9.0, 0.15) == 2, "nothing is changed for nobody"


def test_time_is_shared_among_adapters_not_requests() -> None:
    assert takers(1, []) == takers(1, [1, 1]) == 1
    assert takers(1, [0, 2, 2]) == 3
