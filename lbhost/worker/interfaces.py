"""What the parts of a worker need of each other: the loop of either engine, the engine of what
speaks to llama.cpp, so that tests can stand in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from lbhost.wire import Delta, Embed, Sampling, Submit, Vectors
from lbhost.worker.batch import Speeds
from lbhost.worker.llama_context import Decoded

MAX_FAILURES = 3
"""Failed decodes in a row after which the worker had better start afresh."""

Out = tuple[int, Delta]
"""(link, what it gets)."""

Told = tuple[int, Delta | Vectors]
"""The same of embedding requests."""


class EngineFailureError(Exception):
    """Decodes keep failing: the process should end and be replaced."""


class Load(msgspec.Struct, frozen=True):
    """What the engine is doing: the engine's part of a board row."""

    steps: int
    slots_busy: int
    waiting: int
    prefill_pending: int
    kv_used: int
    kv_total: int
    tokens_out: int
    prompt_tokens: int
    speeds: Speeds
    """Of the own threads."""
    wide_steps: int
    """How many of the steps were computed with lent CPUs too."""
    lent: tuple[int, ...]
    """Lent CPUs that the newest step took."""
    adapter_switches: int = 0
    """Times that the context got another LoRA adapter, or none."""


class KeeperLike(Protocol):
    """See keeper.Keeper."""

    out: list[Any]
    wanted: bool

    @property
    def due(self) -> bool: ...
    def want(self) -> None: ...
    def save_one(self, *, busy: bool) -> None: ...


class EngineLike(Protocol):
    """What the loop drives: engine.Engine, or embedding_engine.EmbeddingEngine."""

    @property
    def keeper(self) -> KeeperLike: ...
    @property
    def busy(self) -> bool: ...
    @property
    def computing(self) -> set[tuple[int, int]]: ...
    @property
    def prefill_pending(self) -> int: ...
    def submit(self, link: int, submit: Submit | Embed, state: int | None = None, /) -> None: ...
    def reject(self, link: int, submit: Submit | Embed, /) -> None: ...
    def cancel(self, link: int, request_id: int) -> None: ...
    def move(self, link: int, request_id: int) -> None: ...
    def cancel_link(self, link: int) -> None: ...
    def move_all(self) -> None: ...
    def lend(self, cpus: tuple[int, ...]) -> None: ...
    def pause_s(self) -> float: ...
    def step(self) -> Sequence[Told]: ...
    def take(self) -> Sequence[Told]: ...
    def load(self) -> Load: ...


class Watched(Protocol):
    """A context whose decodes can be aborted; see llama_context.LlamaContext."""

    def watch(self, callback: Callable[[], bool] | None) -> None: ...


class ContextLike(Protocol):
    """What the engine needs of worker/context.py's Context; tests have a fake one."""

    slots: int
    n_ctx: int
    n_vocab: int
    batch_size: int
    max_outputs: int
    stream_bytes: int
    tiled: bool
    adapters: int

    @property
    def can_copy(self) -> bool: ...
    def adapt(self, adapter: int) -> None: ...
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
