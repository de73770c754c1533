"""The engine: continuous batching over one context. One `step` is one batch.

Owns slots, requests and what the KV of each slot holds. Knows no sockets and no clock but
the ones it is given; worker/loop.py drives it from a link, tests and benchmarks drive it
by hand:

    engine = Engine(context, samplers, vocab, target_s=0.15)
    engine.submit(0, Submit(request=1, prompt=pack_tokens(tokens), max_tokens=64, ...))
    while engine.busy:
        for link, delta in engine.step():
            ...
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from lbhost import log
from lbhost.guidance import GrammarError
from lbhost.placement.gain import WidthGain
from lbhost.wire import (
    Delta,
    Embed,
    Finish,
    FinishReason,
    Submit,
    TokenLogprob,
    joined,
    unpack_tokens,
)
from lbhost.worker.admission import problem_of_prompt
from lbhost.worker.answering import Answering
from lbhost.worker.base_engine import BaseEngine
from lbhost.worker.composer import Composer
from lbhost.worker.context import Decoded
from lbhost.worker.crew import Crew
from lbhost.worker.draw import LogitsError
from lbhost.worker.interfaces import ContextLike, Load, Out, SamplersLike, VocabLike
from lbhost.worker.keeper import Keeper
from lbhost.worker.requests import Entry, Request, Slot, depth
from lbhost.worker.sampling import PENALTY_LAST_N
from lbhost.worker.seating import Seating
from lbhost.worker.states import States
from lbhost.worker.stints import Stints


class Engine(BaseEngine[Request, Delta]):
    """See the module.

    Args (for the others see BaseEngine):
        target_s: inter-token target; see batch.plan.
        states: saves and loads slots; without it nothing leaves this worker or comes in.
    """

    def __init__(
        self,
        context: ContextLike,
        samplers: SamplersLike,
        vocab: VocabLike,
        *,
        target_s: float,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
        before_step: Callable[[float], None] | None = None,
        fallback_token_s: float = 0.01,
        crew: Crew | None = None,
        states: States | None = None,
        gains: Sequence[WidthGain] = (),
    ) -> None:
        super().__init__(
            clock=clock,
            cpu_clock=cpu_clock,
            before_step=before_step,
            fallback_token_s=fallback_token_s,
            crew=crew,
            tiled=context.tiled,
            slots=context.slots,
            gains=gains,
        )
        self._context = context
        self._samplers = samplers
        self._slots = [Slot(i) for i in range(context.slots)]
        self.keeper = Keeper(states, self._slots, most_s=target_s)
        self._seating = Seating(
            context, self._slots, self.keeper, lambda: self._timing.meter.speeds.prefill_tok_s
        )
        self._composer = Composer(context, self._slots, target_s)
        self._stints = Stints(context, self._slots, target_s)
        self._answering = Answering(context, vocab)
        self._waiting: list[Request] = []
        self._arrivals = 0
        self._held: frozenset[int] = frozenset()
        """Numbers of the requests whose prompts others are computing; see sharing.py."""
        self._uses = 0
        self._tokens_out = 0

    # --- what comes in ----------------------------------------------------------------

    def submit(self, link: int, submit: Submit | Embed, state: int | None = None) -> None:
        """Take a request. What is wrong with it is answered by the next `step`.

        Args:
            state: descriptor of the KV state that came for it; the engine's from now on.
        """
        if not isinstance(submit, Submit):
            self._refuse_kind(link, submit)
            return
        request = Request(link, submit, self._arrivals, self._clock(), state)
        self._arrivals += 1
        if request.key in self._requests:
            log.get().warning("a request id was used twice", request=submit.request)
            self.keeper.drop(request)
            return
        problem = problem_of_prompt(
            submit,
            n_ctx=self._context.n_ctx,
            n_vocab=self._context.n_vocab,
            adapters=self._context.adapters,
            waiting=len(self._waiting),
        )
        if problem is not None:
            self._end(request, FinishReason.ERROR, error=problem)
            return
        reason = self._answering.replay(request)
        if reason is not None:
            self._end(request, reason, text=request.text.finish())
            return
        self._requests[request.key] = request
        self._waiting.append(request)

    def _answer(self, link: int, message: Submit | Embed, finish: Finish) -> None:
        self._out.append((link, Delta(message.request, (), "", finish)))

    # --- a step -----------------------------------------------------------------------

    def step(self) -> list[Out]:
        """Compute one batch, if there is one, and return what is to be sent.

        Raises:
            EngineFailureError: MAX_FAILURES decodes failed one after the other.
        """
        self._admit()
        self._held = self._seating.share()
        adapter = self._stints.turn(self._held)
        self._choose_width(self._composer.phase(adapter))
        entries = self._composer.entries(adapter, self._held, self._speeds())
        if not entries:
            return self.take()
        result = self._compute(entries)
        if result is Decoded.OK:
            self._advance(entries)
        elif result is Decoded.ABORTED:
            self._roll_back(entries)
        else:
            self._fail(entries, result)
        return self.take()

    def _compute(self, entries: list[Entry]) -> Decoded:
        decoding = sum(1 for entry in entries if entry.request.next_token)
        prefill = sum(len(entry.packed) // 4 for entry in entries) - decoding
        self._announce(decoding, prefill)
        forced = sum(len(entry.packed) // 4 for entry in entries if entry.request.forced)
        tells = not prefill and self._stints.settled and self._crew.width == self._crew.own
        rows = partial(self._timing.meter.times.rows, tells=tells) if decoding else None
        fillers = self._composer.fillers(entries, rows)
        self._composer.fill([*entries, *fillers])
        result, _ = self._measured(
            lambda: (self._context.decode(), None),
            {entry.request.key for entry in entries},
            sequences=decoding + len(fillers),
            prefill=prefill,
            forced=forced,
            settled=self._stints.settled,
            depth=depth(entries),
        )
        self._stints.spent(self._step_s)
        for filler in fillers:
            self._cut_back(filler.slot)
        return result

    def _admit(self) -> None:
        """Give waiting requests their slots: by rank, then first come first served."""
        while self._waiting and any(slot.request is None for slot in self._slots):
            first = min(self._waiting, key=lambda request: (request.rank, request.number))
            self._waiting.remove(first)
            self._start(first)

    def _start(self, request: Request) -> None:
        submit = request.submit
        try:
            request.sampler = self._samplers.make(
                submit.sampling,
                ignore_eos=submit.ignore_eos,
                history=unpack_tokens(request.given[-4 * PENALTY_LAST_N :]),
                done=unpack_tokens(submit.done),
                grammar=submit.grammar,
            )
        except GrammarError as error:
            self._waiting.append(request)  # where _end looks for those without a slot
            self._end(request, FinishReason.GRAMMAR, error=str(error))
            return
        slot = self._seating.fill(request)
        slot.scope, slot.kept = submit.scope, submit.kept
        request.cached = min(len(slot.tokens) // 4, request.prompt_tokens)
        request.started_s = self._clock()
        slot.request = request
        self._uses += 1
        slot.last_used = self._uses

    def _cut_back(self, slot: Slot) -> bool:
        """Cut a slot's KV to its tokens. False: it could not be, and is empty now."""
        kept = self._context.truncate(slot.index, len(slot.tokens) // 4)
        if not kept:
            slot.tokens.clear()
        return kept

    # --- after the decode -------------------------------------------------------------

    def _advance(self, entries: list[Entry]) -> None:
        self._composer.computed(self._stints.current, self._held, entries)
        for entry in entries:
            entry.slot.tokens += entry.packed
            if entry.padding:
                self._cut_back(entry.slot)
        self.keeper.computed(entries, self._step_s)
        now = self._clock()
        for entry in entries:
            request = entry.request
            try:
                if entry.every:
                    self._out.append((request.link, self._answering.score(entry)))
                if entry.output and request.submit.max_tokens:
                    token, scores = self._answering.pick(entry)
                    self._tell(entry.slot, request, token, scores, now)
                elif entry.output:
                    self._end(request, FinishReason.LENGTH)
            except LogitsError:
                self._forget(entry.slot)
                why = "the model computed something that is no number"
                self._end(request, FinishReason.ERROR, error=why)
            except GrammarError as error:
                self._end(request, FinishReason.GRAMMAR, error=str(error))

    def _tell(
        self,
        slot: Slot,
        request: Request,
        token: int,
        scores: tuple[TokenLogprob, ...],
        now: float,
    ) -> None:
        """The token that was picked, and those that follow from it."""
        deltas = [self._append(slot, request, token, scores, now)]
        try:
            if slot.request is request:
                self._jump(slot, request, now, deltas)
        finally:
            self._out.append((request.link, joined(deltas) if len(deltas) > 1 else deltas[0]))

    def _append(
        self,
        slot: Slot,
        request: Request,
        token: int,
        scores: tuple[TokenLogprob, ...],
        now: float,
    ) -> Delta:
        """One more token of a request, which may be its last."""
        cached: int | None = None
        step_s: float | None = None
        if request.first_token_s is None:
            request.first_token_s = now
            cached, step_s = request.cached, self._step_s
        self._tokens_out += 1
        text, reason = self._answering.append(slot, request, token)
        if reason is not None:
            text += request.text.finish()
            return self._ended(request, reason, tokens=(token,), text=text, scores=scores)
        request.next_token = token.to_bytes(4, "little")
        return Delta(request.submit.request, (token,), text, None, scores, (), cached, step_s)

    def _jump(self, slot: Slot, request: Request, now: float, deltas: list[Delta]) -> None:
        """Tokens that its grammar forces need no sampling: they are told at once, and computed in
        one go, as a prompt is.

        Args:
            deltas: what this step tells of the request; more is added.
        """
        sampler = request.sampler
        assert sampler is not None
        if request.submit.logprobs is not None:
            return  # they are told of every token, and only computing it tells them
        forced = sampler.forced()[: self._context.n_ctx - len(slot.tokens) // 4 - 1]
        if not forced:
            return
        known = bytes(slot.tokens) + request.next_token
        for token in forced:
            sampler.take(token)
            deltas.append(self._append(slot, request, token, (), now))
            if slot.request is not request:
                break
            known += request.next_token
        else:
            request.given, request.next_token = known, b""

    def _forget(self, slot: Slot) -> None:
        """Nobody may reuse what this slot's KV holds."""
        self._context.truncate(slot.index, 0)
        slot.tokens.clear()
        slot.unsaved_s = 0.0

    def _roll_back(self, entries: list[Entry]) -> None:
        """After an abort: the KV holds what it held before, whatever was through.

        Where it cannot be cut there, all of it is computed again.
        """
        for entry in entries:
            request = entry.request
            held = bytes(entry.slot.tokens) + request.next_token
            if not self._cut_back(entry.slot) and request.next_token:
                request.given, request.next_token = held, b""

    def _fail(self, entries: list[Entry], result: Decoded) -> None:
        why = "no room in the KV cache" if result is Decoded.NO_ROOM else "the decode failed"
        log.get().error("decode failed", why=why, sequences=len(entries))
        for entry in entries:
            self._forget(entry.slot)
            self._end(entry.request, FinishReason.FAILED, error=why, alone=len(entries) == 1)
        self._count_failure()

    def _end(
        self,
        request: Request,
        reason: FinishReason,
        *,
        text: str = "",
        error: str | None = None,
        alone: bool = False,
    ) -> None:
        """Free what the request holds (its KV stays for the next), and say why it ended."""
        delta = self._ended(request, reason, text=text, error=error, alone=alone)
        self._out.append((request.link, delta))

    def _ended(
        self,
        request: Request,
        reason: FinishReason,
        *,
        tokens: tuple[int, ...] = (),
        text: str = "",
        scores: tuple[TokenLogprob, ...] = (),
        error: str | None = None,
        alone: bool = False,
    ) -> Delta:
        """Free what the request holds; the last that is told of it."""
        self.keeper.drop(request)
        if self._requests.pop(request.key, None) is not None:
            self._leave(request, reason)
        finish = request.finish(reason, self._clock(), error=error, alone=alone)
        return Delta(request.submit.request, tokens, text, finish, scores)

    def _leave(self, request: Request, reason: FinishReason) -> None:
        for slot in self._slots:
            if slot.request is request:
                slot.request = None
                if reason is FinishReason.MOVED:
                    self.keeper.before_move(slot)
                return
        self._waiting.remove(request)

    @property
    def prefill_pending(self) -> int:
        """Prompt tokens taken in and not yet computed."""
        pending = sum(request.given_tokens for request in self._waiting)
        for slot in self._slots:
            if slot.request is not None and not slot.request.next_token:
                pending += slot.request.given_tokens - len(slot.tokens) // 4
        return pending

    def load(self) -> Load:
        """A snapshot for the board. KV used counts running requests; the rest is reusable."""
        running = [slot for slot in self._slots if slot.request is not None]
        return Load(
            steps=self._steps,
            slots_busy=len(running),
            waiting=len(self._waiting),
            prefill_pending=self.prefill_pending,
            kv_used=sum(len(slot.tokens) for slot in running) // 4,
            kv_total=self._context.slots * self._context.n_ctx,
            tokens_out=self._tokens_out,
            prompt_tokens=self._prompt_tokens,
            speeds=self._timing.meter.speeds,
            wide_steps=self._wide_steps,
            lent=self._lent if self._requests else (),
            adapter_switches=self._stints.switches,
        )
