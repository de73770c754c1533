"""An engine over a fake model, and what its requests were told."""

from __future__ import annotations

import msgspec

from fake_engine import (
    FakeContext,
    FakeSamplers,
    FakeVocab,
    lively,
)
from lbhost.wire import Delta, Finish, Submit
from lbhost.worker.engine import Engine


class Result(msgspec.Struct):
    tokens: list[int] = []
    text: str = ""
    finish: Finish | None = None


class Bench:
    """An engine with its fakes, and what every request got."""

    def __init__(self, context: FakeContext | None = None) -> None:
        self.context = context or FakeContext()
        self.now = 0.0
        self.engine = Engine(
            self.context,
            FakeSamplers(),
            FakeVocab(),
            target_s=0.15,
            clock=lambda: self.now,
            cpu_clock=lambda: self.now,
        )
        self.results: dict[tuple[int, int], Result] = {}

    def submit(self, request: Submit, link: int = 0) -> None:
        self.engine.submit(link, request)

    def step(self) -> list[Delta]:
        deltas = []
        for link, delta in self.engine.step():
            result = self.results.setdefault((link, delta.request), Result())
            assert result.finish is None, "a delta after the end"
            result.tokens += delta.tokens
            result.text += delta.text
            result.finish = delta.finish
            deltas.append(delta)
        self.now += 0.01
        return deltas

    def run(self) -> None:
        for _ in range(10_000):
            if not self.engine.busy:
                return
            self.step()
        raise AssertionError("the engine never came to rest")

    def result(self, request: int, link: int = 0) -> Result:
        return self.results[link, request]

    def finish(self, request: int, link: int = 0) -> Finish:
        finish = self.result(request, link).finish
        assert finish is not None
        return finish


PROMPT = lively(8)
OTHER = lively(9)
