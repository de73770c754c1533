"""What all sections share: the models, the peers, prompts, how much to measure."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path

from benchmarks import peers
from benchmarks.peers import Peers
from benchmarks.prompts import PromptWriter
from lbhost import model
from lbhost.llama import Vocab, inspect
from lbhost.purpose import ModelKind


class BenchError(Exception):
    """A section cannot be measured; one line."""


class Bench:
    """One run of the benchmark. Makes what is expensive when it is first asked for."""

    def __init__(
        self,
        *,
        pairs: int,
        quick: bool,
        seed: int,
        trace: Path | None,
        say: Callable[[str], None],
        embedding: Path | None = None,
    ) -> None:
        self.pairs = pairs
        self.quick = quick
        self.rng = random.Random(seed)
        self.trace = trace
        self.say = say
        self._embedding = embedding

    def scaled(self, full: int) -> int:
        """How much of something to do: all of it, or an eighth in a quick run."""
        return max(2, full // 8) if self.quick else full

    @functools.cached_property
    def shipped(self) -> Path:
        """The starter model as its package carries it (Q4_1)."""
        return Path(model.resolve("starter").path)

    @functools.cached_property
    def q4_0(self) -> Path:
        """The same in Q4_0."""
        return peers.requantize(self.shipped, self.say)

    @functools.cached_property
    def embedding_model(self) -> Path:
        """An embedding model's file.

        Raises:
            BenchError: none was given, or one that does not embed.
            ModelFileError: it is no model's.
        """
        if self._embedding is None:
            raise BenchError("needs an embedding model: --embedding-model FILE.gguf")
        kind = inspect(self._embedding).purpose.kind
        if kind is not ModelKind.EMBEDDING:
            raise BenchError(f"{self._embedding} is no embedding model: its kind is {kind.value!r}")
        return self._embedding

    @functools.cached_property
    def peers(self) -> Peers:
        """llama.cpp's own programs."""
        return peers.build(self.shipped, self.say)

    @functools.cached_property
    def stock_peers(self) -> Peers:
        """The same without what makes them faster than they build themselves.

        Raises:
            BenchError: on this CPU that is nothing.
        """
        flags = " ".join(peers.cpu_flags()).split()
        if not {"avx512_fp16", "amx_tile"} & set(flags):
            raise BenchError("no AMX and no AVX-512 FP16 here: llama.cpp's own build is the same")
        return peers.build(self.shipped, self.say, stock=True)

    @functools.cached_property
    def prompts(self) -> PromptWriter:
        """All of a run's prompts come from one writer, so that none is like an earlier one."""
        return PromptWriter(Vocab.load(self.shipped), self.rng)
