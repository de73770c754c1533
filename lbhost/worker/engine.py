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
from collections.abc import Callable

from lbhost import log
from lbhost.errors import WireError
from lbhost.guidance import GrammarError
from lbhost.order import Overtaken, Prompt, after
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
from lbhost.worker import logprobs
from lbhost.worker.batch import Speeds, gaps, padding, plan, predict_s
from lbhost.worker.context import Decoded
from lbhost.worker.crew import Crew
from lbhost.worker.draw import LogitsError
from lbhost.worker.interfaces import (
    MAX_FAILURES,
    ContextLike,
    EngineFailureError,
    Load,
    Out,
    SamplersLike,
    VocabLike,
    of_another_kind,
)
from lbhost.worker.keeper import Keeper
from lbhost.worker.requests import Entry, Key, Part, Request, Slot
from lbhost.worker.sampling import PENALTY_LAST_N
from lbhost.worker.seating import Seating
from lbhost.worker.speed import SpeedMeter
from lbhost.worker.states import States
from lbhost.worker.widths import Phase, Widths

MAX_WAITING = 256
"""Requests that may wait in the worker; the gateway sends no more than there are slots."""


class Engine:
    """See the module. All times are seconds of the clocks given.

    Args:
        target_s: inter-token target; see batch.plan.
        clock: wall time. cpu_clock: the engine's own CPU time (for GPUs: wall time again).
        before_step: called with the expected seconds of a step just before it is computed.
        crew: the worker's threads; without one nothing can be lent.
        fallback_token_s: a token's expected time while nothing is measured.
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
    ) -> None:
        self._context = context
        self._samplers = samplers
        self._vocab = vocab
        self._target_s = target_s
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._before_step = before_step
        self._fallback_token_s = fallback_token_s
        self._slots = [Slot(i) for i in range(context.slots)]
        self.keeper = Keeper(states, self._slots, most_s=target_s)
        self._waiting: list[Request] = []
        self._requests: dict[Key, Request] = {}
        self._computing: set[Key] = set()
        self._out: list[Out] = []
        self._meter = SpeedMeter(tiled=context.tiled)
        self._seating = Seating(
            context, self._slots, self.keeper, lambda: self._meter.speeds.prefill_tok_s
        )
        self._crew = crew or Crew(1, lambda _: None)
        self._widths = Widths(self._crew.own)
        self._wide_steps = 0
        self._lent: tuple[int, ...] = ()
        self._step_s = 0.0
        self._arrivals = 0
        self._held: frozenset[int] = frozenset()
        """Numbers of the requests whose prompts others are computing; see sharing.py."""
        self._overtaken = Overtaken()
        self._uses = 0
        self._steps = 0
        self._tokens_out = 0
        self._prompt_tokens = 0
        self._failures = 0

    # --- what comes in ----------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do or to hand out."""
        return bool(self._requests or self._out)

    @property
    def computing(self) -> set[Key]:
        """The requests in the batch that is being computed: for whoever decides on an abort."""
        return self._computing

    def pause_s(self) -> float:
        """How long to wait for more requests before the next `step`: what comes joins it later."""
        return 0.0

    def submit(self, link: int, submit: Submit | Embed, state: int | None = None) -> None:
        """Take a request. What is wrong with it is answered by the next `step`.

        Args:
            state: descriptor of the KV state that came for it; the engine's from now on.
        """
        if not isinstance(submit, Submit):
            self._out.append(of_another_kind(link, submit))
            return
        request = Request(link, submit, self._arrivals, self._clock(), state)
        self._arrivals += 1
        if request.key in self._requests:
            log.get().warning("a request id was used twice", request=submit.request)
            self.keeper.drop(request)
            return
        problem = self._problem(request)
        if problem is not None:
            self._end(request, FinishReason.ERROR, error=problem)
            return
        reason = self._replay(request)
        if reason is not None:
            self._end(request, reason, text=request.text.finish())
            return
        self._requests[request.key] = request
        self._waiting.append(request)

    def reject(self, link: int, submit: Submit | Embed) -> None:
        """Refuse a request: it belongs elsewhere."""
        finish = Finish(FinishReason.REJECTED)
        self._out.append((link, Delta(submit.request, (), "", finish)))

    def cancel(self, link: int, request_id: int) -> None:
        """End a request wherever it is; an unknown one has just ended."""
        request = self._requests.get((link, request_id))
        if request is not None:
            self._end(request, FinishReason.CANCELLED)

    def move(self, link: int, request_id: int) -> None:
        """Give a request back as it is; an unknown one has just ended."""
        request = self._requests.get((link, request_id))
        if request is not None:
            self._end(request, FinishReason.MOVED)

    def cancel_link(self, link: int) -> None:
        """End everything that came over a link that is gone; nobody is told."""
        for request in [r for r in self._requests.values() if r.link == link]:
            self._end(request, FinishReason.CANCELLED)
        self._out = [(to, message) for to, message in self._out if to != link]

    def move_all(self) -> None:
        """Give everything back."""
        for request in list(self._requests.values()):
            self._end(request, FinishReason.MOVED)

    def lend(self, cpus: tuple[int, ...]) -> None:
        """From the next step on these CPUs may be used beside the worker's own."""
        self._crew.lend(cpus)

    def take(self) -> list[Out]:
        """What is to be sent, without computing anything."""
        out, self._out = self._out, []
        return out

    def _problem(self, request: Request) -> str | None:
        try:
            tokens = unpack_tokens(request.submit.prompt)
            done = unpack_tokens(request.submit.done)
        except WireError as error:
            return error.message
        if not tokens:
            return "the prompt has no tokens"
        tokens += done
        if len(tokens) > self._context.n_ctx:
            return f"the prompt's {len(tokens)} tokens exceed the context of {self._context.n_ctx}"
        if min(tokens) < 0 or max(tokens) >= self._context.n_vocab:
            return "the prompt holds a token that is not in the vocabulary"
        if len(self._waiting) >= MAX_WAITING:
            return "too many requests wait in this worker"
        return None

    def _replay(self, request: Request) -> FinishReason | None:
        """Bring a request's text to where other workers have left it. Why it ends there, if so.

        What this releases was told with those tokens.
        """
        if not request.submit.done:
            return None
        for token in unpack_tokens(request.submit.done):
            if self._vocab.is_eog(token):
                return FinishReason.STOP
            request.text.feed(self._piece(request, token))
            if request.text.stopped:
                return FinishReason.STOP
        return FinishReason.LENGTH if request.completion >= request.submit.max_tokens else None

    # --- a step -----------------------------------------------------------------------

    def step(self) -> list[Out]:
        """Compute one batch, if there is one, and return what is to be sent.

        Raises:
            EngineFailureError: MAX_FAILURES decodes failed one after the other.
        """
        self._admit()
        self._held = self._seating.share()
        phase = self._phase()
        self._crew.use(
            self._widths.choose(phase, self._crew.widest, known=self._knows_own_speed(phase))
        )
        entries = self._entries()
        if not entries:
            return self.take()
        decoding = sum(1 for e in entries if e.request.next_token)
        prefill = sum(len(e.packed) // 4 for e in entries) - decoding
        if self._before_step is not None:
            self._before_step(
                predict_s(decoding, prefill, self._meter.speeds, self._fallback_token_s)
            )
        result = self._compute(entries, phase, decoding, prefill)
        self._steps += 1
        if result is Decoded.OK:
            self._failures = 0
            self._advance(entries)
        elif result is Decoded.ABORTED:
            self._roll_back(entries)
        else:
            self._fail(entries, result)
        return self.take()

    def _phase(self) -> Phase:
        """What the next step mostly computes."""
        requests = [slot.request for slot in self._slots if slot.request is not None]
        prefilling = any(not request.next_token for request in requests)
        return Phase.PREFILL if prefilling else Phase.DECODE

    def _knows_own_speed(self, phase: Phase) -> bool:
        speeds = self._meter.speeds
        known = speeds.prefill_tok_s if phase is Phase.PREFILL else speeds.step_base_s
        return known is not None

    def _speeds(self) -> Speeds:
        """With the threads of the next step."""
        width = self._crew.width
        if width == self._crew.own:
            return self._meter.speeds
        return self._meter.speeds.times(
            prefill=self._widths.gain(Phase.PREFILL, width),
            decode=self._widths.gain(Phase.DECODE, width),
        )

    def _compute(self, entries: list[Entry], phase: Phase, decoding: int, prefill: int) -> Decoded:
        context = self._context
        fillers = self._fillers(entries)
        context.clear()
        for part in sorted([*entries, *fillers], key=lambda part: part.slot.index):
            at = len(part.slot.tokens) // 4
            part.index = context.add(
                part.slot.index,
                at,
                part.packed,
                output=part.output,
                every=part.every,
                padding=part.padding,
            )
        self._computing = {entry.request.key for entry in entries}
        crew, sequences = self._crew, decoding + len(fillers)
        crew.before()
        began, began_s = self._cpu_clock(), self._clock()
        result = context.decode()
        cpu_s, wall_s = self._cpu_clock() - began, self._clock() - began_s
        crew.after()
        self._computing = set()
        if result is Decoded.OK:
            own_s = predict_s(sequences, prefill, self._meter.speeds, self._fallback_token_s)
            if self._knows_own_speed(phase):
                self._widths.observe(phase, crew.width, own_s, wall_s)
            if crew.width == crew.own:
                self._meter.observe(sequences, prefill, cpu_s)
            self._wide_steps += crew.width > crew.own
            self._prompt_tokens += prefill
        self._lent = crew.lent
        self._step_s = wall_s
        for filler in fillers:
            self._cut_back(filler.slot)
        return result

    def _fillers(self, entries: list[Entry]) -> list[Part]:
        """What decodes along in the gaps between these and is forgotten; see batch.gaps."""
        free = [self._slots[index] for index in gaps([entry.slot.index for entry in entries])]
        if not (free and self._context.can_copy):
            return []
        tokens = sum(len(entry.packed) // 4 + entry.padding for entry in entries) + len(free)
        fit = all(len(slot.tokens) // 4 < self._context.n_ctx for slot in free)
        if not fit or tokens > self._context.batch_size:
            return []
        return [Part(slot, bytes(4)) for slot in free]

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

    def _entries(self) -> list[Entry]:
        """The next batch, in slot order: only neighbours are computed in one go."""
        prompts = self._prompts()
        running = [slot for slot in self._slots if slot.request is not None]
        decoding = sum(1 for slot in running if slot.request and slot.request.next_token)
        chunks = plan(
            decoding,
            prompts,
            self._overtaken,
            self._speeds(),
            self._target_s,
            self._context.batch_size,
            tiled=self._context.tiled,
        )
        counts = {chunk.number: chunk.count for chunk in chunks}
        outputs = self._context.max_outputs - len(running)  # beside the one that each may have
        entries: list[Entry] = []
        for slot in running:
            request = slot.request
            assert request is not None
            if request.next_token:
                entries.append(Entry(slot, request.next_token, output=True, request=request))
            elif request.number in counts:
                count, every = counts[request.number], request.scored
                if every:
                    count = min(count, 1 + outputs)
                    outputs -= count - 1
                at = len(slot.tokens)
                packed = request.given[at : at + 4 * count]
                last = at + len(packed) == len(request.given)
                fill = len(chunks) == 1 and not every
                filling = self._padding(slot, len(packed) // 4, decoding) if fill else 0
                entries.append(Entry(slot, packed, last, every, filling, request=request))
        return entries

    def _prompts(self) -> list[Prompt]:
        """Those with tokens left to compute, and nobody to wait for."""
        return [
            Prompt(
                request.number,
                request.given_tokens - len(slot.tokens) // 4,
                request.rank,
            )
            for slot in self._slots
            if (request := slot.request) is not None
            and not request.next_token
            and request.number not in self._held
        ]

    def _padding(self, slot: Slot, count: int, decoding: int) -> int:
        """How many tokens to put after a chunk, where they can be cut off again."""
        context = self._context
        if not (context.tiled and context.can_copy):
            return 0
        tokens = padding(count, decoding)
        fits = len(slot.tokens) // 4 + count + tokens <= context.n_ctx
        return tokens if fits else 0

    # --- after the decode -------------------------------------------------------------

    def _advance(self, entries: list[Entry]) -> None:
        computed = {
            entry.request.number: len(entry.packed) // 4
            for entry in entries
            if not entry.request.next_token
        }
        self._overtaken = after(self._prompts(), self._overtaken, computed)
        for entry in entries:
            entry.slot.tokens += entry.packed
            if entry.padding:
                self._cut_back(entry.slot)
        self.keeper.computed(entries, self._step_s)
        now = self._clock()
        for entry in entries:
            try:
                if entry.every:
                    self._score(entry)
                if entry.output and entry.request.submit.max_tokens:
                    token, scores = self._pick(entry)
                    self._emit(entry.slot, entry.request, token, scores, now)
                    if entry.slot.request is entry.request:
                        self._jump(entry.slot, entry.request, now)
                elif entry.output:
                    self._end(entry.request, FinishReason.LENGTH)
            except LogitsError:
                self._forget(entry.slot)
                why = "the model computed something that is no number"
                self._end(entry.request, FinishReason.ERROR, error=why)
            except GrammarError as error:
                self._end(entry.request, FinishReason.GRAMMAR, error=str(error))

    def _score(self, entry: Entry) -> None:
        """Tell how probable the prompt's tokens were that come after those just computed."""
        submit, top = entry.request.submit, entry.request.submit.logprobs or 0
        count = len(entry.packed) // 4
        at = len(entry.slot.tokens) - 4 * (count - 1)
        scores = tuple(
            logprobs.of_token(self._context.logits(entry.index - count + 1 + i), token, top)
            for i, token in enumerate(unpack_tokens(submit.prompt[at : at + 4 * count]))
        )
        delta = Delta(submit.request, (), "", prompt_logprobs=scores)
        self._out.append((entry.request.link, delta))

    def _pick(self, entry: Entry) -> tuple[int, tuple[TokenLogprob, ...]]:
        """A request's next token, and its log-probability if that was asked for."""
        top, sampler = entry.request.submit.logprobs, entry.request.sampler
        assert sampler is not None
        if top is None:
            return sampler.pick(self._context, entry.index), ()
        logits = self._context.logits(entry.index).copy()  # the sampler changes them
        token = sampler.pick(self._context, entry.index)
        if self._vocab.is_eog(token):
            return token, ()
        return token, (logprobs.of_token(logits, token, top),)

    def _emit(
        self,
        slot: Slot,
        request: Request,
        token: int,
        scores: tuple[TokenLogprob, ...],
        now: float,
    ) -> None:
        """One more token of a request: its text, and whether it was the last."""
        cached: int | None = None
        step_s: float | None = None
        if request.first_token_s is None:
            request.first_token_s = now
            cached, step_s = request.cached, self._step_s
        request.completion += 1
        self._tokens_out += 1
        reason: FinishReason | None = None
        text = ""
        if self._vocab.is_eog(token):
            reason = FinishReason.STOP
        else:
            text = request.text.feed(self._piece(request, token))
            assert request.sampler is not None
            if request.text.stopped or request.sampler.finished:
                reason = FinishReason.STOP
            elif (
                request.completion >= request.submit.max_tokens
                or len(slot.tokens) // 4 >= self._context.n_ctx
            ):
                reason = FinishReason.LENGTH
        if reason is None:
            request.next_token = token.to_bytes(4, "little")
            delta = Delta(request.submit.request, (token,), text, None, scores, (), cached, step_s)
            self._out.append((request.link, delta))
        else:
            self._end(
                request, reason, token=token, text=text + request.text.finish(), scores=scores
            )

    def _jump(self, slot: Slot, request: Request, now: float) -> None:
        """Tokens that its grammar forces need no sampling: they are told at once, and computed in
        one go, as a prompt is."""
        sampler = request.sampler
        assert sampler is not None
        if request.submit.logprobs is not None:
            return  # they are told of every token, and only computing it tells them
        forced = sampler.forced()[: self._context.n_ctx - len(slot.tokens) // 4 - 1]
        if not forced:
            return
        picked = len(self._out) - 1
        known = bytes(slot.tokens) + request.next_token
        for token in forced:
            sampler.take(token)
            self._emit(slot, request, token, (), now)
            if slot.request is not request:
                break
            known += request.next_token
        else:
            request.given, request.next_token = known, b""
        self._out[picked:] = [(request.link, joined([delta for _, delta in self._out[picked:]]))]

    def _forget(self, slot: Slot) -> None:
        """Nobody may reuse what this slot's KV holds."""
        self._context.truncate(slot.index, 0)
        slot.tokens.clear()
        slot.unsaved_s = 0.0

    def _piece(self, request: Request, token: int) -> bytes:
        """What a token adds to a request's text."""
        return self._vocab.piece(token, special=token in request.submit.shown)

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
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise EngineFailureError(f"{MAX_FAILURES} decodes failed in a row")

    def _end(
        self,
        request: Request,
        reason: FinishReason,
        *,
        token: int | None = None,
        text: str = "",
        scores: tuple[TokenLogprob, ...] = (),
        error: str | None = None,
        alone: bool = False,
    ) -> None:
        """Free what the request holds (its KV stays for the next), and say why it ended."""
        self.keeper.drop(request)
        if self._requests.pop(request.key, None) is not None:
            for slot in self._slots:
                if slot.request is request:
                    slot.request = None
                    if reason is FinishReason.MOVED:
                        self.keeper.before_move(slot)
                    break
            else:
                self._waiting.remove(request)
        now = self._clock()
        started = request.started_s if request.started_s is not None else now
        first = request.first_token_s if request.first_token_s is not None else now
        finish = Finish(
            reason,
            prompt_tokens=request.prompt_tokens,
            cached_tokens=request.cached,
            completion_tokens=request.completion,
            queued_s=started - request.arrived_s,
            prefill_s=first - started,
            decode_s=now - first,
            error=error,
            stop=request.text.stop,
            alone=alone,
        )
        tokens = () if token is None else (token,)
        delta = Delta(request.submit.request, tokens, text, finish, scores)
        self._out.append((request.link, delta))

    # --- what it is doing -------------------------------------------------------------

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
            speeds=self._meter.speeds,
            wide_steps=self._wide_steps,
            lent=self._lent if self._requests else (),
        )
