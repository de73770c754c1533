"""The engine and its keeper over a fake model: what is saved, what is taken over, what is not."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from fake_engine import continuation, lively, submit
from keeping import IDENTITY, N_CTX, Bench
from lbhost.gateway.keyring import scope_of
from lbhost.gateway.states.store import Entry, Store
from lbhost.state_link import Unable
from lbhost.wire import FinishReason, pack_tokens


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.fixture
def other() -> Iterator[Bench]:
    """Another worker."""
    made = Bench()
    yield made
    made.close()


def last_state(bench: Bench) -> int:
    """A descriptor of its own of the newest state."""
    return os.dup(bench.states[-1][1])


def test_a_state_that_cannot_be_mapped_costs_time_and_leaves_nothing_of_the_slots_last_user(
    bench: Bench, other: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = lively(100)
    bench.engine.submit(0, submit(1, prompt, 10))
    bench.run(idle_only=True)
    for number in (1, 2):  # something is in every slot
        other.engine.submit(0, submit(number, lively(40, number), 5))
    other.run()
    saved = last_state(bench)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(mmap, "mmap", refuse)
    other.engine.submit(0, submit(7, prompt, 10, state=7), saved)
    while other.engine.busy:
        other.deltas += [delta for _, delta in other.engine.step()]
    other.run()
    assert other.answer(7) == continuation(prompt, 10, N_CTX)
    assert [(t.number, t.tokens) for t in other.taken()] == [(7, 0)]
    assert "mapped" in other.taken()[0].problem


def test_what_has_ended_is_saved_with_its_exact_tokens(bench: Bench) -> None:
    prompt = lively(100)
    bench.engine.submit(0, submit(1, prompt, 10, scope=3))
    bench.run(idle_only=True)
    ((header, _),) = bench.states
    # The last token that was sampled is not in the KV.
    assert header.tokens == pack_tokens(prompt + continuation(prompt, 10, N_CTX)[:-1])
    assert header.scope == 3


def test_another_worker_goes_on_from_it_and_computes_only_the_rest(
    bench: Bench, other: Bench
) -> None:
    prompt = lively(100)
    bench.engine.submit(0, submit(1, prompt, 10))
    bench.run(idle_only=True)
    longer = prompt + continuation(prompt, 5, N_CTX) + [8, 9]
    other.engine.submit(0, submit(7, longer, 10, state=7), last_state(bench))
    other.run()
    assert other.answer(7) == continuation(longer, 10, N_CTX)
    assert other.cached(7) == 105
    assert other.context.loads == 1
    assert [(t.number, t.tokens, t.problem) for t in other.taken()] == [(7, 105, "")]


def test_the_last_token_of_a_prompt_is_computed_although_a_state_has_it(
    bench: Bench, other: Bench
) -> None:
    prompt = lively(100)
    bench.engine.submit(0, submit(1, prompt, 10))
    bench.run()
    other.engine.submit(0, submit(7, prompt, 10, state=7), last_state(bench))
    other.run()
    assert other.answer(7) == continuation(prompt, 10, N_CTX)
    assert other.cached(7) == 99


def test_a_state_that_is_no_better_than_the_own_slot_is_left(bench: Bench) -> None:
    prompt = lively(100)
    bench.engine.submit(0, submit(1, prompt, 10))
    bench.run()
    bench.engine.submit(0, submit(2, prompt, 10, state=2), last_state(bench))
    bench.run()
    assert bench.context.loads == 0
    assert [(t.number, t.tokens, t.problem) for t in bench.taken()] == [(2, 0, "")]


@pytest.mark.parametrize("damage", ["identity", "scope", "not a state", "llama.cpp"])
def test_what_cannot_be_taken_over_is_computed(bench: Bench, damage: str) -> None:
    prompt = lively(100)
    bench.engine.submit(0, submit(1, prompt, 10))
    bench.run()
    other = Bench(identity=bytes(32) if damage == "identity" else IDENTITY)
    other.context.can_load = damage != "llama.cpp"
    fd = os.open("/dev/null", os.O_RDONLY) if damage == "not a state" else last_state(bench)
    scope = 1 if damage == "scope" else 0
    other.engine.submit(0, submit(7, prompt, 10, state=7, scope=scope), fd)
    other.run()
    assert other.answer(7) == continuation(prompt, 10, N_CTX)
    assert other.cached(7) == 0
    (taken,) = other.taken()
    assert taken.tokens == 0
    assert taken.problem
    other.close()


def test_what_the_store_has_is_not_saved_again(bench: Bench, other: Bench) -> None:
    prompt = lively(100)
    bench.engine.submit(0, submit(1, prompt, 10))
    bench.run()
    other.engine.submit(0, submit(7, prompt, 5, state=7, kept=100), last_state(bench))
    other.run()
    assert not other.states


def test_a_running_sequence_is_saved_now_and_then(bench: Bench) -> None:
    prompt = lively(100)
    bench.engine.submit(0, submit(1, prompt, 60))
    bench.run()
    lengths = [len(header.tokens) // 4 for header, _ in bench.states]
    # Its prompt as soon as that is computed, then every 8 tokens: its steps take a second.
    assert lengths[0] == 100
    assert lengths[1:4] == [108, 116, 124]


def test_a_slot_is_saved_before_it_is_overwritten() -> None:
    bench = Bench(slots=1)
    first, second = lively(100), lively(100, 5)
    bench.keeper.save_one(busy=False)  # the test, which a worker makes while it is idle
    bench.engine.submit(0, submit(1, first, 3))
    bench.engine.submit(0, submit(2, second, 3))
    bench.run(idle_only=True)
    beginnings = {header.tokens[:400] for header, _ in bench.states}
    assert beginnings == {pack_tokens(first), pack_tokens(second)}
    bench.close()


def test_a_slot_that_grows_is_not_saved_for_the_few_tokens_that_are_cut_off(bench: Bench) -> None:
    prompt = lively(100)
    bench.engine.submit(0, submit(1, prompt, 10))
    bench.run()
    count = len(bench.states)
    bench.engine.submit(0, submit(2, [*prompt, 5], 10, kept=100))
    bench.engine.step()
    assert len(bench.states) == count
    bench.run()


def test_a_new_gateway_gets_what_the_slots_hold(bench: Bench) -> None:
    prompt = lively(100)
    bench.engine.submit(0, submit(1, prompt, 10))
    bench.run()
    count = len(bench.states)
    bench.keeper.want()
    bench.run()
    assert len(bench.states) == count + 1
    assert bench.states[-1][0].tokens[:400] == pack_tokens(prompt)


def test_other_scopes_slots_are_no_help(bench: Bench) -> None:
    prompt = lively(100)
    bench.engine.submit(0, submit(1, prompt, 10, scope=1))
    bench.run()
    for request in (2, 3):
        bench.engine.submit(0, submit(request, prompt, 10, scope=2))
        bench.run()
    assert bench.cached(2) == 0
    assert bench.cached(3) == 99
    assert bench.answer(2) == bench.answer(3) == bench.answer(1)


def test_two_keys_share_neither_slots_nor_store(bench: Bench, other: Bench) -> None:
    """One prompt of two scopes in two workers and their store: as if the other did not exist."""
    prompt, mine, theirs = lively(100), scope_of(b"the first key"), scope_of(b"another key")
    store = Store()

    def ask(worker: Bench, request: int, scope: int) -> int:
        match = store.find(scope, pack_tokens(prompt))
        assert match is None or match.entry.scope == scope
        state = os.dup(match.entry.fd) if match is not None else None
        asked = submit(request, prompt, 10, state=request if match else 0, scope=scope)
        worker.engine.submit(0, asked, state)
        before = len(worker.states)
        worker.run(idle_only=True)
        for header, fd in worker.states[before:]:
            store.add(Entry(header.scope, header.tokens, fd, header.size, 0.0))
        return worker.cached(request)

    assert [ask(bench, 1, mine), ask(bench, 2, theirs)] == [0, 0]
    assert [ask(bench, 3, mine), ask(bench, 4, theirs)] == [99, 99]
    assert len(store) == 2
    stranger = scope_of(b"a third key")
    assert [ask(other, 1, mine), ask(other, 2, theirs), ask(other, 3, stranger)] == [99, 99, 0]
    assert other.context.loads == 2
    assert bench.answer(1) == bench.answer(2) == other.answer(1) == other.answer(3)


def test_what_is_moved_is_saved_first_and_goes_on_elsewhere(bench: Bench, other: Bench) -> None:
    prompt = lively(100)
    bench.keeper.save_one(busy=False)  # the test, which a worker makes while it is idle
    bench.engine.submit(0, submit(1, prompt, 60, kept=100))
    for _ in range(12):
        bench.deltas += [delta for _, delta in bench.engine.step()]
    bench.engine.move(0, 1)
    assert bench.keeper.out, "the state is there before anybody is told of the move"
    bench.run()
    done = bench.answer(1)
    other.engine.submit(
        0, submit(2, prompt, 60, done=pack_tokens(done), state=2), last_state(bench)
    )
    other.run()
    assert done + other.answer(2) == continuation(prompt, 60, N_CTX)
    assert [taken.tokens for taken in other.taken()] == [100 + len(done) - 1]


def test_prompts_that_begin_alike_are_computed_once() -> None:
    bench = Bench(slots=4)
    beginning = list(range(1, 600))
    prompts = [[*beginning, *lively(20, number)] for number in range(4)]
    for number, prompt in enumerate(prompts):
        bench.engine.submit(0, submit(number, prompt, 10))
    bench.run()
    for number, prompt in enumerate(prompts):
        assert bench.answer(number) == continuation(prompt, 10, N_CTX)
    cached = sorted(bench.cached(number) for number in range(4))
    assert cached[0] == 0
    assert cached[1] > len(beginning) - 32  # for fewer nobody waits
    assert bench.context.copies == 3
    bench.close()


def test_who_follows_a_prompt_that_is_given_up_is_computed(bench: Bench) -> None:
    first, second = ([*range(1, 600), *lively(20, number)] for number in range(2))
    bench.engine.submit(0, submit(1, first, 10))
    bench.engine.submit(0, submit(2, second, 10))
    bench.engine.step()
    bench.engine.cancel(0, 1)
    bench.run()
    assert bench.answer(2) == continuation(second, 10, N_CTX)


def test_other_scopes_do_not_wait_for_each_other(bench: Bench) -> None:
    prompt = [*range(1, 600), *lively(20)]
    bench.engine.submit(0, submit(1, prompt, 10, scope=1))
    bench.engine.submit(0, submit(2, prompt, 10, scope=2))
    bench.run()
    assert (bench.cached(1), bench.cached(2), bench.context.copies) == (0, 0, 0)


def test_memory_that_cannot_be_cut_is_not_moved() -> None:
    bench = Bench(movable=False)
    prompt = lively(100)
    bench.engine.submit(0, submit(1, prompt, 10))
    bench.run()
    assert not bench.states
    assert isinstance(bench.sent[0], Unable)


def test_without_a_store_nothing_is_saved(bench: Bench) -> None:
    bench.keeper.wanted = False
    bench.engine.submit(0, submit(1, lively(100), 10))
    bench.run()
    assert not bench.states


def test_a_request_that_never_starts_leaves_no_descriptor(bench: Bench, other: Bench) -> None:
    prompt = lively(100)
    bench.engine.submit(0, submit(1, prompt, 10))
    bench.run()
    fd = last_state(bench)
    other.engine.submit(0, submit(7, prompt, 10, state=7), fd)
    other.engine.cancel(0, 7)
    other.run()
    assert other.deltas[0].finish is not None
    assert other.deltas[0].finish.reason is FinishReason.CANCELLED
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_a_prompt_gets_on_although_no_worker_lives_to_compute_it() -> None:
    prompt = [*range(1, 600), *range(1, 600)]
    known, answer = 0, list[int]()
    state: int | None = None
    for _ in range(10):
        worker = Bench()
        worker.engine.submit(
            0, submit(1, prompt, 3, state=0 if state is None else 1, kept=known), state
        )
        for _ in range(2):  # then it is killed
            worker.deltas += [delta for _, delta in worker.engine.step()]
            worker.keeper.save_one(busy=worker.engine.busy)
            worker._take()
        answer = worker.answer(1)
        if answer:
            worker.close()
            break
        assert worker.states, "all that it did is lost"
        known = len(worker.states[-1][0].tokens) // 4
        state = last_state(worker)
        worker.close()
    assert answer == continuation(prompt, 3, N_CTX)[: len(answer)]
    assert answer


def test_a_worker_that_is_full_from_the_start_saves_too() -> None:
    bench = Bench(slots=2)
    for number in range(2):
        bench.engine.submit(0, submit(number, lively(100, number), 50))
    for _ in range(3):
        bench.deltas += [delta for _, delta in bench.engine.step()]
        bench.keeper.save_one(busy=True)
    bench._take()
    assert bench.states
    bench.close()
