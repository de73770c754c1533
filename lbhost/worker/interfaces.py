"""What the engine needs of the parts that speak to llama.cpp, so that tests can stand in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lbhost.wire import Sampling
from lbhost.worker.context import Decoded


class ContextLike(Protocol):
    """What the engine needs of worker/context.py's Context; tests have a fake one."""

    slots: int
    n_ctx: int
    n_vocab: int
    batch_size: int
    max_outputs: int
    stream_bytes: int
    tiled: bool

    @property
    def can_copy(self) -> bool: ...
    def clear(self) -> None: ...
    def add(
        self,
        slot: int,
        position: int,
        packed: bytes,
        *,
        output: bool,
        every: bool = False,
        padding: int = 0,
    ) -> int: ...
    def decode(self) -> Decoded: ...
    def logits(self, index: int) -> Any: ...
    def truncate(self, slot: int, length: int) -> bool: ...
    def copy(self, source: int, target: int) -> None: ...
    def state_bytes(self, slot: int) -> int: ...
    def save(self, slot: int, address: int, size: int) -> bool: ...
    def load(self, slot: int, address: int, size: int) -> bool: ...


class SamplerLike(Protocol):
    """See sampling.Sampler."""

    @property
    def finished(self) -> bool: ...
    def pick(self, outputs: Any, index: int) -> int: ...
    def forced(self) -> list[int]: ...
    def take(self, token: int) -> None: ...


class SamplersLike(Protocol):
    """See sampling.Samplers."""

    def make(
        self,
        sampling: Sampling,
        *,
        ignore_eos: bool,
        history: list[int],
        done: Sequence[int] = (),
        grammar: str = "",
    ) -> SamplerLike: ...


class VocabLike(Protocol):
    """See llama.Vocab."""

    def piece(self, token: int, *, special: bool = False) -> bytes: ...
    def is_eog(self, token: int) -> bool: ...
