"""A real context that changes its LoRA adapter between steps: exactly what it computes alone."""

from __future__ import annotations

from pathlib import Path

import tiny_lora
from lbhost import model, wire
from lbhost.adapters import AdapterFile
from lbhost.llama import Model
from lbhost.weights import identify
from lbhost.worker.context import Context
from lbhost.worker.engine import Engine
from lbhost.worker.sampling import Samplers

TOKENS = 16


def answers(loaded: Model, *adapters: int, stint_s: float = 0.15) -> tuple[list[list[int]], int]:
    """The tokens of an answer with each, all asked for at once; and the changes that took."""
    prompt = wire.pack_tokens(loaded.vocab.tokenize("Rome was", add_bos=True, parse_special=True))
    context = Context(loaded, slots=4, n_ctx=128, threads=1)
    engine = Engine(context, Samplers(loaded.vocab, None), loaded.vocab, target_s=stint_s)
    greedy = wire.Sampling(temperature=0.0)
    for number, adapter in enumerate(adapters):
        one = wire.Submit(
            number, prompt, TOKENS, greedy, ignore_eos=True, adapter=adapter, scope=adapter
        )
        engine.submit(0, one)
    told: list[list[int]] = [[] for _ in adapters]
    while engine.busy:
        for _, delta in engine.step():
            told[delta.request] += delta.tokens
    switches = engine.load().adapter_switches
    context.close()
    return told, switches


def test_who_takes_turns_with_others_computes_what_it_computes_alone(tmp_path: Path) -> None:
    base = Path(model.resolve("starter").path)
    files = [tiny_lora.write(tmp_path / f"{seed}.gguf", base, seed=seed) for seed in (1, 2)]
    found = [AdapterFile(file.stem, 1.0, *identify([file])) for file in files]
    loaded = Model(base, adapters=found)
    plain = Model(base)
    alone = [answers(loaded, adapter)[0][0] for adapter in range(3)]
    assert alone[0] == answers(plain, 0)[0][0], "adapters that are loaded change nothing by that"
    assert len({tuple(tokens) for tokens in alone}) == 3
    for stint_s, least in ((0.15, 2), (1e-6, 3 * TOKENS - 4)):
        together, switches = answers(loaded, 0, 1, 2, stint_s=stint_s)
        assert together == alone
        assert switches >= least
    plain.close()
    loaded.close()
