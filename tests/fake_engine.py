"""Stand-ins for llama.cpp under the engine: a model whose next token is a sum.

FakeContext keeps a KV of tokens per slot and checks what the engine must never get wrong:
positions without gaps, room, slots in order, no KV of another adapter. Its next token depends on
every token of its slot, on the adapter and on nothing else, so that a leak or a wrong reuse shows
in the output.
"""

from __future__ import annotations

import array
import ctypes
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy

from lbhost.guidance import GrammarError
from lbhost.wire import Sampling, Submit, pack_tokens, unpack_tokens
from lbhost.worker.context import Decoded
from lbhost.worker.sampling import PENALTY_LAST_N

N_VOCAB = 1000
EOG = 0
PADDING = 999
LIKELY = 12.0
"""The next token's logit; all others' are 0."""


_ADAPTED = 10_000
"""What the KV of an adapter's tokens is marked with, times its number."""


def next_token(tokens: list[int], adapter: int = 0) -> int:
    """The fake model. Ends (EOG) after about one token in 40."""
    value = 17 + 1009 * adapter
    for token in tokens:
        value = (value * 31 + token + 7) % 1_000_003
    return EOG if value % 40 == 0 else 1 + value % (N_VOCAB - 1)


def continuation(prompt: list[int], max_tokens: int, n_ctx: int, adapter: int = 0) -> list[int]:
    """What a lone sequence yields: the reference for everything."""
    tokens, out = list(prompt), list[int]()
    while len(out) < max_tokens:
        token = next_token(tokens, adapter)
        out.append(token)
        if token == EOG or len(tokens) == n_ctx:
            break
        tokens.append(token)
    return out


def lively(length: int, number: int = 0, adapter: int = 0) -> list[int]:
    """The number-th prompt of a length that goes on for as long as it is let."""
    found = 0
    for start in range(1, 900):
        prompt = list(range(start, start + length))
        if EOG not in continuation(prompt, 64, 64, adapter):
            if found == number:
                return prompt
            found += 1
    raise AssertionError("no such prompt")


class FakeContext:
    """See the module. `results` scripts the coming decodes; then they are all OK."""

    def __init__(self, slots: int = 4, n_ctx: int = 64, batch_size: int = 32) -> None:
        self.slots = slots
        self.n_ctx = n_ctx
        self.n_vocab = N_VOCAB
        self.batch_size = batch_size
        self.max_outputs = max(slots, 6)
        self.stream_bytes = 0
        self.can_copy = True
        self.can_cut = True
        self.tiled = False
        self.adapters = 2
        self.adapter = 0
        """What it computes with now."""
        self.kv: list[list[int]] = [[] for _ in range(slots)]
        """Tokens, each with the mark of the adapter that it was computed with."""
        self.results: list[Decoded] = []
        self.during_decode: Callable[[], None] | None = None
        self.batches: list[list[tuple[int, int]]] = []
        """(slot, tokens) of every decode."""
        self.copies = 0
        self.loads = 0
        self.can_load = True
        self._batch: list[tuple[int, list[int], dict[int, int]]] = []
        """(slot, tokens, how many of them come before each output)."""
        self._outputs: dict[int, list[int]] = {}

    def adapt(self, adapter: int) -> None:
        assert 0 <= adapter <= self.adapters
        self.adapter = adapter

    def clear(self) -> None:
        self._batch = []

    def add(
        self,
        slot: int,
        position: int,
        packed: bytes,
        *,
        output: bool,
        every: bool = False,
        padding: int = 0,
    ) -> int:
        tokens = array.array("i", packed).tolist()
        last = sum(len(t) for _, t, _ in self._batch) + len(tokens) - 1
        tokens += [PADDING] * padding
        assert position == len(self.kv[slot]), "a gap in the positions"
        assert position + len(tokens) <= self.n_ctx
        assert all(before < slot for before, _, _ in self._batch), "slots out of order"
        count = last + 1 - sum(len(t) for _, t, _ in self._batch)
        wanted = range(count if every else output)
        self._batch.append((slot, tokens, {last - i: count - i for i in wanted}))
        assert sum(len(outputs) for _, _, outputs in self._batch) <= self.max_outputs
        assert sum(len(t) for _, t, _ in self._batch) <= self.batch_size
        return last

    def decode(self) -> Decoded:
        self.batches.append([(slot, len(tokens)) for slot, tokens, _ in self._batch])
        if self.during_decode is not None:
            self.during_decode()
        result = self.results.pop(0) if self.results else Decoded.OK
        if result is Decoded.NO_ROOM:
            return result
        self._outputs = {}
        for slot, tokens, outputs in self._batch:
            for index, count in outputs.items():
                self._outputs[index] = self._own(slot) + tokens[:count]
            mark = self.adapter * _ADAPTED
            # an aborted or failed decode leaves what was through
            self.kv[slot] += [token + mark for token in tokens]
        return result

    def _own(self, slot: int) -> list[int]:
        """The tokens before, all of which the present adapter has computed."""
        assert {cell // _ADAPTED for cell in self.kv[slot]} <= {self.adapter}, "another one's KV"
        return [cell % _ADAPTED for cell in self.kv[slot]]

    def logits(self, index: int) -> Any:
        """The next token is likely, no other is."""
        row = numpy.zeros(N_VOCAB, numpy.float32)
        row[next_token(self._outputs[index], self.adapter)] = LIKELY
        return row

    def tokens_before(self, index: int) -> list[int]:
        """All that comes before the token to be picked at a batch index."""
        return self._outputs[index]

    def truncate(self, slot: int, length: int) -> bool:
        if length > len(self.kv[slot]):
            raise AssertionError("cannot keep what is not there")
        if length < len(self.kv[slot]) and length and not self.can_cut:
            self.kv[slot] = []
            return False
        del self.kv[slot][length:]
        return True

    def copy(self, source: int, target: int) -> None:
        self.copies += 1
        self.kv[target] = list(self.kv[source])

    def state_bytes(self, slot: int) -> int:
        return 4 * len(self.kv[slot])

    def save(self, slot: int, address: int, size: int) -> bool:
        ctypes.memmove(address, pack_tokens(self.kv[slot]), size)
        return True

    def load(self, slot: int, address: int, size: int) -> bool:
        self.loads += 1
        self.kv[slot] = unpack_tokens(ctypes.string_at(address, size)) if self.can_load else []
        return self.can_load


class FakeSampler:
    """Checks that its window, which the engine made it with, is what the penalties should see."""

    def __init__(self, history: list[int], *, forces: bool = False) -> None:
        self._window = deque(history, PENALTY_LAST_N)
        self._forces = forces
        self._tokens: list[int] = []
        self._adapter = 0

    finished = False

    def pick(self, outputs: Any, index: int) -> int:
        assert isinstance(outputs, FakeContext)
        tokens = outputs.tokens_before(index)
        assert list(self._window) == tokens[-PENALTY_LAST_N:]
        self._adapter = outputs.adapter
        self._window.append(next_token(tokens, self._adapter))
        self._tokens = [*tokens, self._window[-1]]
        return self._window[-1]

    def forced(self) -> list[int]:
        """Some of the tokens that would be picked next."""
        tokens = list(self._tokens)
        for _ in range(len(tokens) % 4 if self._forces else 0):
            tokens.append(next_token(tokens, self._adapter))
        return tokens[len(self._tokens) :]

    def take(self, token: int) -> None:
        assert token == next_token(self._tokens, self._adapter)
        self._tokens.append(token)
        self._window.append(token)


FORCING = "forcing"
"""A grammar that forces some of what the fake model says anyhow."""

UNKNOWN = "unknown"
"""A grammar that no fake sampler can follow."""


class FakeSamplers:
    """See sampling.Samplers."""

    def __init__(self) -> None:
        self.done: list[list[int]] = []
        """What each sampler was told."""

    def make(
        self,
        sampling: Sampling,
        *,
        ignore_eos: bool,
        history: list[int],
        done: Sequence[int] = (),
        grammar: str = "",
    ) -> FakeSampler:
        self.done.append(list(done))
        if grammar == UNKNOWN:
            raise GrammarError("unknown")
        return FakeSampler(history, forces=grammar == FORCING)


class FakeVocab:
    """Token 1 is "1 ", and so on."""

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return f"{token} ".encode()

    def is_eog(self, token: int) -> bool:
        return token == EOG


def submit(request: int, prompt: list[int], max_tokens: int = 20, **more: Any) -> Submit:
    """A greedy request."""
    sampling = Sampling(temperature=0.0)
    return Submit(request, pack_tokens(prompt), max_tokens, sampling, **more)
