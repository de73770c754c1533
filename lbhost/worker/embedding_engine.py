"""The engine of embedding and reranking workers: inputs of all requests packed into batches.

One `step` is one batch. Owns the requests and what has been computed of them. Like engine.py it
knows no sockets and no clock but those it is given, and worker/loop.py drives either.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import msgspec
import numpy
from numpy.typing import NDArray

from lbhost import log, wire
from lbhost.order import Overtaken, after
from lbhost.wire import Delta, Embed, Finish, FinishReason, Submit, Vectors
from lbhost.worker.admission import problem_of_inputs
from lbhost.worker.base_engine import BaseEngine
from lbhost.worker.crew import Crew
from lbhost.worker.interfaces import Load, Told
from lbhost.worker.keeper import Keeper
from lbhost.worker.llama_context import Decoded
from lbhost.worker.packing import Patience, Waiting, pack
from lbhost.worker.requests import Key
from lbhost.worker.widths import Phase


class EmbeddingContextLike(Protocol):
    """What the engine needs of embedding_context.EmbeddingContext; tests have a fake one."""

    n_ctx: int
    n_vocab: int
    usual_tokens: int
    most_inputs: int
    scores: bool

    def compute(self, inputs: list[bytes]) -> tuple[Decoded, list[NDArray[numpy.float32]]]: ...


class _Request:
    """From its Embed to its Vectors."""

    def __init__(self, link: int, embed: Embed, number: int, arrived_s: float) -> None:
        self.link = link
        self.embed = embed
        self.number = number
        self.key: Key = (link, embed.request)
        self.arrived_s = arrived_s
        self.started_s: float | None = None
        self.vectors: list[bytes] = []
        self.at = 0
        """Byte of `embed.tokens` where the next input begins."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each input that is left."""
        return self.embed.lengths[len(self.vectors) :]

    @property
    def left(self) -> int:
        return (len(self.embed.tokens) - self.at) // 4

    def next_inputs(self, count: int) -> list[bytes]:
        at, inputs = self.at, list[bytes]()
        for length in self.lengths[:count]:
            inputs.append(self.embed.tokens[at : at + 4 * length])
            at += 4 * length
        return inputs

    def computed(self, vectors: list[bytes]) -> None:
        self.at += 4 * sum(self.lengths[: len(vectors)])
        self.vectors += vectors


class EmbeddingEngine(BaseEngine[_Request, Delta | Vectors]):
    """See the module."""

    def __init__(
        self,
        context: EmbeddingContextLike,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
        before_step: Callable[[float], None] | None = None,
        fallback_token_s: float = 0.01,
        crew: Crew | None = None,
    ) -> None:
        super().__init__(
            clock=clock,
            cpu_clock=cpu_clock,
            before_step=before_step,
            fallback_token_s=fallback_token_s,
            crew=crew,
        )
        self._context = context
        self.keeper = Keeper(None, [])
        self._patience = Patience()
        self._waits_until: float | None = None
        self._had: int | None = None
        """Requests that were there when the wait began."""
        self._numbers = 0
        self._overtaken = Overtaken()

    # --- what comes in ----------------------------------------------------------------

    def submit(self, link: int, message: Submit | Embed, state: int | None = None) -> None:
        """Take a request. What is wrong with it is answered by the next `step`."""
        assert state is None, "no state belongs to an embedding request"
        if not isinstance(message, Embed):
            self._refuse_kind(link, message)
            return
        request = _Request(link, message, self._numbers, self._clock())
        self._numbers += 1
        if request.key in self._requests:
            log.get().warning("a request id was used twice", request=message.request)
            return
        problem = problem_of_inputs(
            message,
            n_ctx=self._context.n_ctx,
            n_vocab=self._context.n_vocab,
            waiting=len(self._requests),
        )
        if problem is not None:
            self._end(request, FinishReason.ERROR, error=problem)
            return
        if not self._requests and (wait_s := self._patience.wait_s()):
            self._waits_until = self._clock() + wait_s
        self._requests[request.key] = request

    def _answer(self, link: int, message: Submit | Embed, finish: Finish) -> None:
        self._out.append((link, Delta(message.request, (), "", finish)))

    # --- a step -----------------------------------------------------------------------

    def pause_s(self) -> float:
        """How long to wait for more requests before the next `step`."""
        if self._waits_until is None:
            return 0.0
        if self._had is None:
            self._had = len(self._requests)
        full = self.prefill_pending >= self._context.usual_tokens
        left = 0.0 if full or self._out else max(0.0, self._waits_until - self._clock())
        if left == 0.0:
            self._patience.waited(came=len(self._requests) > self._had)
            self._waits_until = self._had = None
        return left

    def step(self) -> list[Told]:
        """Compute one batch, if there is one, and return what is to be sent.

        Raises:
            EngineFailureError: MAX_FAILURES batches failed one after the other.
        """
        waiting = [Waiting(r.number, r.lengths, r.embed.rank) for r in self._requests.values()]
        if not waiting:
            return self.take()
        context = self._context
        counts = pack(waiting, self._overtaken, context.usual_tokens, context.most_inputs)
        chosen = [(r, counts[r.number]) for r in self._requests.values() if r.number in counts]
        tokens = {r.number: sum(r.lengths[:count]) for r, count in chosen}
        prompts = [one.prompt for one in waiting]
        result, vectors = self._compute(chosen, sum(tokens.values()))
        if result is Decoded.OK:
            self._overtaken = after(prompts, self._overtaken, tokens)
            self._advance(chosen, vectors)
        elif result is not Decoded.ABORTED:
            self._fail([request for request, _ in chosen])
        return self.take()

    def _compute(
        self, chosen: list[tuple[_Request, int]], tokens: int
    ) -> tuple[Decoded, list[NDArray[numpy.float32]]]:
        self._choose_width(Phase.PREFILL)
        self._announce(0, tokens)
        inputs: list[bytes] = []
        began_s = self._clock()
        for request, count in chosen:
            inputs += request.next_inputs(count)
            if request.started_s is None:
                request.started_s = began_s
        return self._measured(
            lambda: self._context.compute(inputs),
            {request.key for request, _ in chosen},
            sequences=0,
            prefill=tokens,
        )

    def _advance(
        self, chosen: list[tuple[_Request, int]], vectors: list[NDArray[numpy.float32]]
    ) -> None:
        rest = iter(vectors)
        for request, count in chosen:
            own = [self._settled(next(rest)) for _ in range(count)]
            good = [vector for vector in own if vector is not None]
            if len(good) < count:
                why = "the model computed something that is no number"
                self._end(request, FinishReason.ERROR, error=why)
                continue
            request.computed(good)
            if not request.lengths:
                self._end(request, FinishReason.STOP)

    def _settled(self, vector: NDArray[numpy.float32]) -> bytes | None:
        """A vector as it is sent: of length 1; a score as it is. None: it is none."""
        length = float(numpy.linalg.norm(vector))
        if not numpy.isfinite(length):
            return None
        if not self._context.scores and length > 0:
            vector = vector / numpy.float32(length)
        return vector.astype("<f4").tobytes()

    def _fail(self, requests: list[_Request]) -> None:
        log.get().error("batch failed", inputs_of=len(requests))
        for request in requests:
            why = "the batch failed"
            self._end(request, FinishReason.FAILED, error=why, alone=len(requests) == 1)
        self._count_failure()

    def _end(
        self,
        request: _Request,
        reason: FinishReason,
        *,
        error: str | None = None,
        alone: bool = False,
    ) -> None:
        self._requests.pop(request.key, None)
        now = self._clock()
        started = now if request.started_s is None else request.started_s
        finish = Finish(
            reason,
            prompt_tokens=len(request.embed.tokens) // 4,
            queued_s=started - request.arrived_s,
            prefill_s=now - started,
            error=error,
            alone=alone,
        )
        if reason is FinishReason.STOP:
            values = b"".join(request.vectors)
            parts = wire.vectors(request.embed.request, values, finish)
            self._out += [(request.link, part) for part in parts]
        else:
            self._out.append((request.link, Delta(request.embed.request, (), "", finish)))

    # --- what it is doing -------------------------------------------------------------

    @property
    def prefill_pending(self) -> int:
        """Tokens taken in and not yet computed."""
        return sum(request.left for request in self._requests.values())

    def load(self) -> Load:
        """A snapshot for the board. There is no KV cache between two batches."""
        started = sum(request.started_s is not None for request in self._requests.values())
        speeds = self._timing.meter.speeds
        if speeds.prefill_tok_s is not None:
            # Nothing is ever decoded; unknown would mean that the worker has measured nothing.
            speeds = msgspec.structs.replace(speeds, step_base_s=0.0, step_seq_s=0.0)
        return Load(
            steps=self._steps,
            slots_busy=started,
            waiting=len(self._requests) - started,
            prefill_pending=self.prefill_pending,
            kv_used=0,
            kv_total=0,
            tokens_out=0,
            prompt_tokens=self._prompt_tokens,
            speeds=speeds,
            wide_steps=self._wide_steps,
            lent=self._lent if self._requests else (),
        )
