"""Answers of the real model that follow a grammar, beside others that follow none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

import schemas
from lbhost import grammar, guidance
from lbhost.guidance import Constraints
from lbhost.llama import Model
from lbhost.model import resolve
from lbhost.wire import Finish, FinishReason, Sampling, Submit, pack_tokens
from lbhost.worker.context import Context
from lbhost.worker.engine import Engine
from lbhost.worker.sampling import Sampler, Samplers

pytestmark = pytest.mark.e2e

SCHEMAS = int(os.environ.get("LBHOST_SCHEMAS", "24"))
"""How many are tried: a few each time, 200 take minutes."""

ASKED = "<|im_start|>user\nMake up some data about a person.<|im_end|>\n<|im_start|>assistant\n"


class Rig:
    """An engine over the starter model."""

    def __init__(self) -> None:
        self.model = Model(resolve("starter").path)
        self._context = Context(self.model, slots=4, n_ctx=512, threads=1)
        vocab = self.model.vocab
        samplers = Samplers(vocab, Constraints(vocab))
        self._engine = Engine(self._context, samplers, vocab, target_s=1e6)
        self._prompt = pack_tokens(vocab.tokenize(ASKED, add_bos=True, parse_special=True))

    def close(self) -> None:
        self._context.close()
        self.model.close()

    def steps(self) -> int:
        """So far."""
        return self._engine.load().steps

    def answers(
        self, written: list[str], max_tokens: int = 200, **how: Any
    ) -> list[tuple[str, Finish]]:
        """What the model says under each of these grammars ("" for none)."""
        for i, text in enumerate(written):
            sampling = Sampling(**{"temperature": 1.0, "seed": i, **how})
            self._engine.submit(0, Submit(i, self._prompt, max_tokens, sampling, grammar=text))
        texts = [""] * len(written)
        finishes: dict[int, Finish] = {}
        while self._engine.busy:
            for _, delta in self._engine.step():
                texts[delta.request] += delta.text
                if delta.finish is not None:
                    finishes[delta.request] = delta.finish
        return [(texts[i], finishes[i]) for i in range(len(written))]

    def moving(self, text: str, max_tokens: int) -> tuple[str, int]:
        """What it says under a grammar if it is asked back after each step, and how often."""
        said, done, moves = "", list[int](), 0
        sampling = Sampling(temperature=1.0, seed=0)
        while True:
            submit = Submit(moves, self._prompt, max_tokens, sampling, grammar=text)
            submit = msgspec.structs.replace(submit, done=pack_tokens(done))
            self._engine.submit(0, submit)
            told = self._engine.step()
            while not told:
                told = self._engine.step()
            self._engine.move(0, moves)
            for _, delta in [*told, *self._engine.take()]:
                said += delta.text
                done += delta.tokens
                if delta.finish is not None and delta.finish.reason is not FinishReason.MOVED:
                    return said, moves
            moves += 1


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def of_schema(schema: dict[str, Any]) -> str:
    return guidance.check(grammar.of_schema(schema, "response_format"))


def test_whatever_the_schema_a_finished_answer_follows_it(rig: Rig) -> None:
    wanted = schemas.varied(SCHEMAS, seed=1)
    written = [of_schema(schema) for schema in wanted]
    finished = 0
    for schema, (text, finish) in zip(wanted, rig.answers(written), strict=True):
        assert finish.reason in (FinishReason.STOP, FinishReason.LENGTH), finish
        if finish.reason is FinishReason.STOP:
            finished += 1
            assert schemas.follows(text, schema), (schema, text)
    assert finished >= 0.8 * SCHEMAS, "bounded answers come to their end"


def test_neighbours_without_a_grammar_say_what_they_always_say(rig: Rig) -> None:
    alone = rig.answers([""], max_tokens=24, temperature=0.0)[0][0]
    bound = of_schema({"type": "string", "maxLength": 30})
    beside = rig.answers(["", bound, bound], max_tokens=24, temperature=0.0)
    assert beside[0][0] == alone
    assert beside[1][0].startswith('"')


def test_an_answer_ends_with_its_grammar_and_needs_no_token_to_say_so(rig: Rig) -> None:
    regex = guidance.check(grammar.of_text("start: /(yes|no)!/", "grammar"))
    text, finish = rig.answers([regex])[0]
    assert re.fullmatch("(yes|no)!", text)
    assert finish.reason is FinishReason.STOP
    assert finish.completion_tokens <= 4


def test_the_same_seed_gives_the_same_answer(rig: Rig) -> None:
    written = [of_schema(schema) for schema in schemas.varied(3, seed=5)]
    assert rig.answers(written)[0][0] == rig.answers(written[:1])[0][0]


def test_what_a_grammar_forces_is_not_sampled_and_changes_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = [of_schema(schema) for schema in schemas.varied(6, seed=4)]
    how = {"presence_penalty": 0.5}
    before = rig.steps()
    jumped = rig.answers(written, 60, **how)
    between = rig.steps()
    monkeypatch.setattr(Sampler, "forced", lambda _: [])
    sampled = rig.answers(written, 60, **how)

    def told(answers: list[tuple[str, Finish]]) -> list[tuple[str, FinishReason, int]]:
        return [(text, finish.reason, finish.completion_tokens) for text, finish in answers]

    assert told(jumped) == told(sampled)
    assert between - before < 0.9 * (rig.steps() - between)


def test_an_answer_that_moves_after_each_step_is_the_same(rig: Rig) -> None:
    for schema in schemas.varied(6, seed=4):
        text = of_schema(schema)
        said, moves = rig.moving(text, 60)
        assert said == rig.answers([text], 60)[0][0]
        assert moves


def test_biases_that_forbid_all_that_is_allowed_are_an_error(rig: Rig) -> None:
    regex = guidance.check(grammar.of_text('start: "a"', "grammar"))
    tokens = rig.model.vocab.tokenize("a", add_bos=False, parse_special=False)
    for temperature in (0.0, 1.0):
        _, finish = rig.answers(
            [regex], temperature=temperature, logit_bias=((tokens[0], -100.0),)
        )[0]
        assert finish.reason is FinishReason.GRAMMAR
        assert "logit_bias" in (finish.error or "")


def test_a_grammar_that_a_worker_cannot_compile_ends_its_request_only(rig: Rig) -> None:
    broken, plain = rig.answers(["no grammar at all", ""], max_tokens=4)
    assert broken[1].reason is FinishReason.GRAMMAR
    assert "grammar" in (broken[1].error or "")
    assert plain[1].completion_tokens == 4
