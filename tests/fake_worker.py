"""A worker without a model, on the real wire: a data link, a board row, scripted answers.

`FakeWorker` is a thread behind a real socketpair. By default it answers `Script.answer` one
piece a step; a test holds and releases it, lets it fail, refuse, fall silent or die, and
reads what it was sent. It also plays the supervisor's part for its board row (`set_state`).
"""

from __future__ import annotations

import array
import contextlib
import math
import select
import socket
import threading
import time
from collections.abc import Callable

import msgspec

from lbhost import board, wire
from lbhost.board import WorkerState
from lbhost.machine import cpulist


def five_words(submit: wire.Submit) -> list[str]:
    """The default answer."""
    return ["one", " two", " three", " four", " five"]


def always_seven(submit: wire.Submit, place: int) -> int:
    """The default tokens."""
    return 7


def _score(submit: wire.Submit, token: int) -> wire.TokenLogprob:
    """A token's log-probability here is a hundredth of it, less one for the seed's last digit."""
    logprob = -token / 100 - submit.sampling.seed % 10
    others = range(97, 97 + (submit.logprobs or 0))
    return wire.TokenLogprob(token, logprob, tuple((other, -other / 10) for other in others))


class Script(msgspec.Struct):
    """How a fake worker behaves. May be changed while it runs."""

    answer: Callable[[wire.Submit], list[str]] = five_words
    """Pieces of text, a token each. Cut at max_tokens; with ignore_eos repeated up to it."""
    token: Callable[[wire.Submit, int], int] = always_seven
    """The token that a piece is said to be; from the request and the piece's place."""
    prefill_s: float = 0.0
    """Before the first token."""
    step_s: float = 0.0
    """Between two steps."""
    fail: str | None = None
    """End every request with this error."""
    fail_as: wire.FinishReason = wire.FinishReason.ERROR
    breaks: Callable[[wire.Submit], bool] | None = None
    """Whether the decodes that a request is in fail, for all that are in them."""
    reject: bool = False
    """Refuse every request, as a draining worker does."""
    cached_tokens: int = 0
    speeds: tuple[float, float, float] | None = None
    """Prefill tokens/s, step_base_s and step_seq_s that it says it has measured."""


FIRST_STEP_S = 0.02
"""What it says that the step of a first token took."""


class _Sequence:
    def __init__(self, submit: wire.Submit, script: Script) -> None:
        self.submit = submit
        self.pieces = script.answer(submit)
        if submit.ignore_eos:
            self.pieces = (self.pieces * submit.max_tokens)[: submit.max_tokens]
        self.sent = len(submit.done) // 4
        self.begun = False
        self.starts = time.monotonic() + script.prefill_s


def vector_of(tokens: list[int]) -> list[float]:
    """What it takes for an input's vector: four numbers, of length 1."""
    vector = [1.0, len(tokens), sum(tokens) / 100, tokens[0] / 10]
    length = math.hypot(*vector)
    return [number / length for number in vector]


def _vectors(embed: wire.Embed) -> list[wire.Vectors]:
    tokens = iter(wire.unpack_tokens(embed.tokens))
    values = array.array("f")
    for length in embed.lengths:
        values.extend(vector_of([next(tokens) for _ in range(length)]))
    finish = wire.Finish(wire.FinishReason.STOP, prompt_tokens=sum(embed.lengths), prefill_s=0.001)
    return wire.vectors(embed.request, values.tobytes(), finish)


class FakeWorker:
    """One process's worth of a worker. `fd` is the gateway's end of its data link."""

    def __init__(
        self,
        page: board.Board,
        worker: int = 0,
        *,
        epoch: int = 1,
        slots: int = 4,
        n_ctx: int = 2048,
        script: Script | None = None,
        state: WorkerState = WorkerState.READY,
        model: int = 0,
    ) -> None:
        """`model`: the number of the model that it computes."""
        self.worker = worker
        self.model = model
        self.epoch = epoch
        self.slots = slots
        self.n_ctx = n_ctx
        self.script = script or Script()
        self.submits: list[wire.Submit] = []
        self.embeds: list[wire.Embed] = []
        self.cancels: list[int] = []
        self.moves: list[int] = []
        self.lent: list[tuple[int, ...]] = []
        self.most_busy = 0
        self.gone = threading.Event()
        """Set when the gateway has closed the link, or it died."""
        self._page = page
        self._sequences: dict[int, _Sequence] = {}
        self._embeds: dict[int, wire.Embed] = {}
        self._steps = 0
        self._tokens_out = 0
        self._prompt_tokens = 0
        self._free = threading.Event()
        self._free.set()
        self._hung = False
        self._dying = False
        ours, theirs = socket.socketpair()
        self.fd = theirs.detach()
        self._socket = ours
        self._woken, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name=f"fake worker {worker}")
        self._progress()
        self.set_state(state)
        self._thread.start()

    # --- what tests do to it ----------------------------------------------------------

    @property
    def busy(self) -> int:
        """Requests that it has."""
        return len(self._sequences)

    def set_state(
        self, state: WorkerState, wanted: board.Wanted = board.Wanted.UP, cpus: str = "0"
    ) -> None:
        """Write its identity row, as the supervisor would."""
        self._page.identity.write(
            self.worker,
            board.IdentityRow(
                present=True,
                epoch=self.epoch,
                state=state,
                wanted=wanted,
                pid=1,
                cpus=tuple(sorted(cpulist.parse(cpus) or ())),
                slots=self.slots,
                n_ctx=self.n_ctx,
                started_ns=1,
                model=self.model,
            ),
        )

    def hold(self) -> None:
        """Take requests and cancels, but compute nothing until `release`."""
        self._free.clear()

    def release(self) -> None:
        self._free.set()
        self._wake()

    def hang(self) -> None:
        """Fall silent: read nothing, write nothing, like a stopped process."""
        self._hung = True
        self._wake()

    def drain(self) -> None:
        """Refuse what comes from now on."""
        self.script.reject = True

    def die(self) -> None:
        """Close the link at once, as a killed process does. Returns when that has happened."""
        self._dying = True
        self._wake()
        self._thread.join(30)

    close = die

    # --- the thread ------------------------------------------------------------------

    def _wake(self) -> None:
        if not self.gone.is_set():
            # Its thread may end, and close this, at this very moment.
            with contextlib.suppress(OSError):
                self._waker.send(b"x")

    def _run(self) -> None:
        frames = wire.Frames()
        try:
            while not self._dying:
                if self._hung:
                    self._woken.recv(64)
                    continue
                if not self._listen(frames):
                    return
                if self._free.is_set():
                    self._step()
        except OSError:
            return  # The gateway closed its end in the middle of a write.
        finally:
            self.gone.set()
            for sock in (self._socket, self._woken, self._waker):
                sock.close()

    def _listen(self, frames: wire.Frames) -> bool:
        """Take in what has come; False at end of file. Blocks when there is nothing to do."""
        ready, _, _ = select.select([self._socket, self._woken], [], [], self._patience())
        if self._woken in ready:
            self._woken.recv(64)
        if self._socket in ready:
            data = self._socket.recv(1 << 20)
            if not data:
                return False
            for body in frames.feed(data):
                self._take(wire.decode_to_worker(body))
        return True

    def _patience(self) -> float | None:
        if self._embeds and self._free.is_set():
            return 0.0
        if not self._sequences or not self._free.is_set():
            return None
        now = time.monotonic()
        waits = [max(0.0, s.starts - now) for s in self._sequences.values()]
        return max(min(waits), self.script.step_s)

    def _take(self, message: wire.ToWorker) -> None:
        if isinstance(message, wire.Cancel):
            self.cancels.append(message.request)
            sequence = self._sequences.pop(message.request, None)
            embed = self._embeds.pop(message.request, None)
            if sequence is not None or embed is not None:
                self._finish(message.request, wire.FinishReason.CANCELLED, sequence)
        elif isinstance(message, wire.Move):
            self.moves.append(message.request)
            sequence = self._sequences.pop(message.request, None)
            if sequence is not None:
                self._finish(message.request, wire.FinishReason.MOVED, sequence)
        elif isinstance(message, wire.Lend):
            self.lent.append(message.cpus)
        elif self.script.reject:
            self._finish(message.request, wire.FinishReason.REJECTED)
        elif isinstance(message, wire.Embed):
            self.embeds.append(message)
            self._embeds[message.request] = message
        else:
            self.submits.append(message)
            self._sequences[message.request] = _Sequence(message, self.script)
            self.most_busy = max(self.most_busy, self.busy)
        self._progress()

    def _step(self) -> None:
        while self._embeds:
            _, embed = self._embeds.popitem()
            for part in _vectors(embed):
                self._socket.sendall(wire.encode(part))
        now = time.monotonic()
        computed = {
            request: sequence
            for request, sequence in self._sequences.items()
            if sequence.starts <= now
        }
        breaks = self.script.breaks
        if breaks is not None and any(breaks(sequence.submit) for sequence in computed.values()):
            self._fail(computed)
            return
        deltas = [self._advance(request, sequence) for request, sequence in computed.items()]
        if deltas:
            self._steps += 1
            self._tokens_out += sum(len(delta.tokens) for delta in deltas)
            self._progress()
            self._send(deltas)

    def _fail(self, sequences: dict[int, _Sequence]) -> None:
        deltas: list[wire.Delta] = []
        for request, sequence in sequences.items():
            del self._sequences[request]
            finish = self._ended(wire.FinishReason.FAILED, sequence, "the decode failed")
            finish = msgspec.structs.replace(finish, alone=len(sequences) == 1)
            deltas.append(wire.Delta(request, (), "", finish))
        self._progress()
        self._send(deltas)

    def _advance(self, request: int, sequence: _Sequence) -> wire.Delta:
        if self.script.fail is not None:
            del self._sequences[request]
            finish = self._ended(self.script.fail_as, sequence, self.script.fail)
            return wire.Delta(request, (), "", finish)
        submit = sequence.submit
        scored: tuple[wire.TokenLogprob, ...] = ()
        if not sequence.sent and submit.prompt_logprobs:
            scored = tuple(_score(submit, token) for token in wire.unpack_tokens(submit.prompt)[1:])
        if not submit.max_tokens:
            del self._sequences[request]
            over = self._ended(wire.FinishReason.LENGTH, sequence)
            return wire.Delta(request, (), "", over, prompt_logprobs=scored)
        if not sequence.sent:
            self._prompt_tokens += len(sequence.submit.prompt) // 4 - self.script.cached_tokens
        text = sequence.pieces[sequence.sent]
        sequence.sent += 1
        reason = None
        if any(stop in text for stop in sequence.submit.stop):
            text, reason = "", wire.FinishReason.STOP
        elif sequence.sent == sequence.submit.max_tokens:
            reason = wire.FinishReason.LENGTH
        elif sequence.sent == len(sequence.pieces):
            reason = wire.FinishReason.STOP
        ended = None if reason is None else self._ended(reason, sequence)
        if ended is not None:
            del self._sequences[request]
        token = self.script.token(submit, sequence.sent - 1)
        logprobs = (_score(submit, token),) if submit.logprobs is not None else ()
        cached = None if sequence.begun else self.script.cached_tokens
        took_s = None if sequence.begun else FIRST_STEP_S
        sequence.begun = True
        return wire.Delta(request, (token,), text, ended, logprobs, scored, cached, took_s)

    def _finish(
        self, request: int, reason: wire.FinishReason, sequence: _Sequence | None = None
    ) -> None:
        self._send([wire.Delta(request, (), "", self._ended(reason, sequence))])

    def _ended(
        self, reason: wire.FinishReason, sequence: _Sequence | None, error: str | None = None
    ) -> wire.Finish:
        return wire.Finish(
            reason,
            prompt_tokens=len(sequence.submit.prompt) // 4 if sequence else 0,
            cached_tokens=self.script.cached_tokens,
            completion_tokens=sequence.sent if sequence else 0,
            error=error,
        )

    def _send(self, deltas: list[wire.Delta]) -> None:
        self._socket.sendall(wire.encode(wire.Step(tuple(deltas), self._pending())))

    def _pending(self) -> int:
        return sum(len(s.submit.prompt) // 4 for s in self._sequences.values() if not s.sent)

    def _progress(self) -> None:
        prefill, base, seq = self.script.speeds or (None, None, None)
        self._page.progress.write(
            self.worker,
            board.ProgressRow(
                epoch=self.epoch,
                heartbeat_ns=time.monotonic_ns(),
                steps=self._steps,
                slots_busy=len(self._sequences),
                prefill_pending=self._pending(),
                prefill_tok_s=prefill,
                step_base_s=base,
                step_seq_s=seq,
                kv_total=self.slots * self.n_ctx,
                tokens_out=self._tokens_out,
                prompt_tokens=self._prompt_tokens,
            ),
        )
