"""Section `bound`: what a grammar and log-probabilities cost, in one worker's engine on one core.

By the thread's CPU time, so that a neighbour changes little. Bound and free answers take turns.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from benchmarks.bench import Bench
from benchmarks.figures import Figure, at_least, at_most, number
from benchmarks.stats import Spread, paired_ratios, spread
from lbhost import grammar, guidance
from lbhost.guidance import Constraints
from lbhost.llama import Model
from lbhost.wire import Sampling, Submit, pack_tokens
from lbhost.worker.context import Context
from lbhost.worker.engine import Engine
from lbhost.worker.sampling import Samplers

BATCH = 4
PROMPT_TOKENS = 64
OUTPUT_TOKENS = 96

_WORD = {"type": "string", "minLength": 10, "maxLength": 60}
_PERSON = {
    "name": _WORD,
    "age": {"type": "integer", "minimum": 0},
    "mood": {"enum": ["good", "bad"]},
}
KINDS: dict[str, Any] = {
    "texts": _WORD,  # of which next to nothing is forced
    "records": {
        "type": "object",
        "properties": _PERSON,
        "required": list(_PERSON),
        "additionalProperties": False,
    },
}
"""What the items of an answer are; it is an array that is longer than max_tokens."""


def bound(bench: Bench) -> list[Figure]:
    """Tokens/s of four bound answers and with log-probabilities; a known schema's first token."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cpus)})
    rig = _Rig(bench)
    try:
        return _figures(bench, rig)
    finally:
        rig.close()
        os.sched_setaffinity(0, cpus)


def _figures(bench: Bench, rig: _Rig) -> list[Figure]:
    pairs = bench.pairs * bench.scaled(4)
    figures = []
    for name, items in KINDS.items():
        text = _written(items)
        rig.tokens_s(grammar=text)  # compiled now, as every later request has it
        both = [(rig.tokens_s(grammar=text), rig.tokens_s()) for _ in range(pairs)]
        figures.append(_figure(f"{name}, batch {BATCH}: tok/s, bound to free", both, 0.90))
    both = [(rig.tokens_s(logprobs=5), rig.tokens_s()) for _ in range(pairs)]
    figures.append(_figure(f"batch {BATCH}: tok/s, 5 log-probabilities to none", both, 0.95))
    text = _written(KINDS["records"])
    ours, theirs = zip(
        *((rig.first_s(grammar=text), rig.first_s()) for _ in range(pairs)), strict=True
    )
    ratios = paired_ratios(list(ours), list(theirs))
    behind = _behind(spread([1000 * s for s in ours]), spread([1000 * s for s in theirs]), "ms")
    name = "first token of a schema seen before, bound to free"
    return [*figures, Figure("bound", name, ratios, "x", at_most(1.05), behind)]


def _figure(name: str, both: list[tuple[float, float]], least: float) -> Figure:
    ours, theirs = [one for one, _ in both], [other for _, other in both]
    behind = _behind(spread(ours), spread(theirs), "tok/s")
    return Figure("bound", name, paired_ratios(ours, theirs), "x", at_least(least), behind)


def _behind(ours: Spread, theirs: Spread, unit: str) -> str:
    return f"{number(ours.median)} : {number(theirs.median)} {unit}"


def _written(items: dict[str, Any]) -> str:
    schema = json.loads(json.dumps({"type": "array", "minItems": 64, "items": items}))
    return guidance.check(grammar.of_schema(schema, "bench"))


class _Rig:
    """An engine over the starter model, on the calling thread."""

    def __init__(self, bench: Bench) -> None:
        self._model = Model(bench.shipped)
        self._context = Context(self._model, slots=BATCH, n_ctx=512, threads=1)
        vocab = self._model.vocab
        samplers = Samplers(vocab, Constraints(vocab))
        self._engine = Engine(self._context, samplers, vocab, target_s=0.15)
        self._prompts = bench.prompts
        self._requests = 0

    def close(self) -> None:
        self._context.close()
        self._model.close()

    def tokens_s(self, **how: Any) -> float:
        """Of BATCH answers side by side, from the moment on in which all of them have begun."""
        begun: set[int] = set()
        for _ in range(BATCH):
            self._submit(OUTPUT_TOKENS, **how)
        while len(begun) < BATCH:
            begun |= {delta.request for delta in self._step()}
        began, tokens = time.thread_time(), 0
        ended = False
        while not ended:  # then the batch is not full any more
            deltas = self._step()
            tokens += sum(len(delta.tokens) for delta in deltas)
            ended = any(delta.finish is not None for delta in deltas)
        took = time.thread_time() - began
        while self._engine.busy:
            self._step()
        return tokens / took

    def first_s(self, **how: Any) -> float:
        """From a lone request to its first token."""
        began = time.thread_time()
        self._submit(1, **how)
        while self._engine.busy:
            self._step()
        return time.thread_time() - began

    def _submit(self, max_tokens: int, **how: Any) -> None:
        prompt = self._prompt()
        self._requests += 1
        sampling = Sampling(temperature=0.8, seed=self._requests)
        self._engine.submit(
            0, Submit(self._requests, prompt, max_tokens, sampling, ignore_eos=True, **how)
        )

    def _prompt(self) -> bytes:
        text = self._prompts.write(PROMPT_TOKENS)
        tokens = self._model.vocab.tokenize(text, add_bos=True, parse_special=False)
        return pack_tokens(tokens)

    def _step(self) -> list[Any]:
        return [delta for _, delta in self._engine.step()]
