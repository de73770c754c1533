"""A worker process: the loop between its links, its engine and its row of the board.

One thread: poll (waiting only when idle), take what came, compute one step, send, repeat.
Ends at once when the control link closes, also in the middle of a decode.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

from lbhost import control, log, wire
from lbhost.board import Board, ProgressRow
from lbhost.worker.interfaces import EngineFailureError, EngineLike, Watched
from lbhost.worker.links import DataLink, StatesLink

IDLE_S = 1.0
"""An idle worker wakes up this often, to show that it lives."""

WATCH_S = 0.005
"""Within a decode the links are looked at this often."""

WATCH_FROM_S = 0.06
"""Only steps predicted to take so long are watched: llama.cpp asks after each of the graph's
thousand operations, which costs up to 2 ms, and a short step is over soon anyway."""

FLUSH_S = 1.0
"""How long a worker that stops waits for a gateway to take its last frames."""

_PAGE = os.sysconf("SC_PAGE_SIZE")

Message = tuple[int, wire.ToWorker | None]
"""(link, message); None: the link is gone."""


class Loop:
    """Everything after the context stands. `run` returns the exit code."""

    def __init__(
        self,
        link: socket.socket,
        board: Board,
        fork: control.Fork,
        context: Watched,
        make_engine: Callable[[Callable[[float], None]], EngineLike],
    ) -> None:
        """`make_engine` is given what is to be called with the expected seconds of each step."""
        link.setblocking(False)
        self._control = link
        self._progress = board.progress
        self._worker = fork.worker
        self._epoch = fork.epoch
        self._context = context
        self._engine = make_engine(self._before_step)
        self._keeper = self._engine.keeper
        self._links: dict[int, DataLink] = {}
        self._states: dict[int, StatesLink] = {}
        """By the number of the data link that they came with; the last one's store is kept."""
        self._next_link = 0
        self._poll = select.poll()
        self._poll.register(link, select.POLLIN)
        self._control_inbox: list[tuple[control.Control, list[int]]] = []
        self._inbox: list[Message] = []
        self._draining = False
        self._drained_said = False
        self._drain_number = 0
        self._stopping = False
        self._watching = False
        self._next_watch = 0.0
        self._rss = 0
        self._statm = os.open("/proc/self/statm", os.O_RDONLY)  # later on it may not
        self._next_rss = 0.0

    def run(self) -> int:
        """Serve until told to stop (0), or until decodes keep failing (1)."""
        self._write_row(0.0)
        control.send(self._control, control.Ready())
        try:
            while not self._stopping:
                busy = self._engine.busy or self._keeper.due
                self._receive(self._engine.pause_s() if busy else IDLE_S)
                self._handle()
                if self._engine.busy and not self._engine.pause_s():
                    self._send(self._engine.step())
                self._save()
                if not (self._engine.busy or self._keeper.due):
                    self._rest()
        except EngineFailureError as error:
            log.get().error("worker gives up", reason=str(error))
            self._engine.move_all()
            self._send(self._engine.take())
            self._send_rest()
            return 1
        self._engine.move_all()
        self._send(self._engine.take())
        self._send_rest()
        return 0

    # --- links ------------------------------------------------------------------------

    def _receive(self, timeout_s: float) -> None:
        """Move what has arrived into the inboxes. Ends the process if the supervisor is gone."""
        for fd, events in self._poll.poll(timeout_s * 1000):
            if fd == self._control.fileno():
                self._receive_control()
                continue
            link = next((link for link in self._links.values() if link.fileno() == fd), None)
            if link is None:
                continue
            if events & select.POLLOUT:
                link.flush()
            if events & ~select.POLLOUT:
                self._inbox.extend((link.number, message) for message in link.receive())
            self._settle(link)

    def _receive_control(self) -> None:
        while True:
            try:
                packet = control.receive(self._control)
            except BlockingIOError:
                return
            if packet is None:
                os._exit(0)  # the supervisor is gone, and nothing may outlive it
            self._control_inbox.append(packet)

    def _save(self) -> None:
        """One slot at most: the next step waits for it."""
        self._keeper.save_one(busy=self._engine.busy)
        self._send_states()

    def _send_states(self) -> None:
        out, self._keeper.out = self._keeper.out, []
        for number, message, fd in out:
            link = self._states.get(max(self._states, default=-1) if number is None else number)
            if link is not None:
                link.send(message, fd)
                if all(one.closed for one in self._states.values()):
                    self._keeper.wanted = False
            if fd is not None:
                os.close(fd)

    def _settle(self, link: DataLink) -> None:
        """Poll a link for what it needs next, or forget it once it is closed."""
        if link.closed:
            self._poll.unregister(link)
            link.close()
            del self._links[link.number]
            if link.number in self._states:
                self._states.pop(link.number).close()
                self._keeper.wanted = self._keeper.wanted and bool(self._states)
            self._inbox.append((link.number, None))
        else:
            self._poll.register(link, select.POLLIN | (select.POLLOUT if link.backlogged else 0))

    def _before_step(self, predicted_s: float) -> None:
        self._write_row(predicted_s)
        if self._watching != (predicted_s >= WATCH_FROM_S):
            self._watching = not self._watching
            self._context.watch(self._watch if self._watching else None)

    def _watch(self) -> bool:
        """Within a decode: whether to abort it, because nobody wants its result any more."""
        now = time.monotonic()
        if now < self._next_watch:
            return False
        self._next_watch = now + WATCH_S
        self._receive(0.0)
        if any(isinstance(message, control.Stop) for message, _ in self._control_inbox):
            return True
        if not (self._inbox and self._engine.computing):
            return False
        gone = {link for link, message in self._inbox if message is None}
        cancelled = {
            (link, message.request)
            for link, message in self._inbox
            if isinstance(message, wire.Cancel | wire.Move)
        }
        return all(key in cancelled or key[0] in gone for key in self._engine.computing)

    def _handle(self) -> None:
        """Act on what has arrived, in order."""
        while self._control_inbox:
            message, fds = self._control_inbox.pop(0)
            self._handle_control(message, fds)
        inbox, self._inbox = self._inbox, []
        for link, request in inbox:
            if request is None:
                self._engine.cancel_link(link)
                self._engine.lend(())  # who lent it cannot ask for it back any more
            elif isinstance(request, wire.Lend):
                self._engine.lend(request.cpus)
            elif isinstance(request, wire.Cancel):
                self._engine.cancel(link, request.request)
            elif isinstance(request, wire.Move):
                self._engine.move(link, request.request)
            elif self._draining:
                state = self._state_of(link, request)
                if state is not None:
                    os.close(state)
                self._engine.reject(link, request)
            else:
                self._engine.submit(link, request, self._state_of(link, request))

    def _state_of(self, link: int, request: wire.Submit | wire.Embed) -> int | None:
        """The descriptor of the KV state that came for it."""
        if not (isinstance(request, wire.Submit) and request.state):
            return None
        states = self._states.get(link)
        return states.take(request.state) if states is not None else None

    def _handle_control(self, message: control.Control, fds: list[int]) -> None:
        match message:
            case control.Link():
                link = DataLink(self._next_link, socket.socket(fileno=fds[0]))
                self._next_link += 1
                self._links[link.number] = link
                if len(fds) > 1:
                    self._states[link.number] = StatesLink(socket.socket(fileno=fds[1]))
                    self._keeper.want()
                self._settle(link)
                return
            case control.Drain(number):
                self._draining, self._drained_said = True, False
                self._drain_number = number
            case control.Resume():
                self._draining = False
            case control.Stop():
                self._stopping = True
            case _:
                log.get().warning("unexpected control message", message=type(message).__name__)
        for fd in fds:
            os.close(fd)

    def _send(self, out: Iterable[tuple[int, wire.Delta | wire.Vectors]]) -> None:
        """One Step frame per link for all that a step produced, and one for each request's vectors.

        States go first: whoever is told that a request has moved will look for its state.
        """
        self._send_states()
        frames: defaultdict[int, list[bytes]] = defaultdict(list)
        deltas: defaultdict[int, list[wire.Delta]] = defaultdict(list)
        for number, message in out:
            if isinstance(message, wire.Delta):
                deltas[number].append(message)
            else:
                frames[number].append(wire.encode(message))
        pending = self._engine.prefill_pending if deltas else 0
        for number, some in deltas.items():
            frames[number].append(wire.encode(wire.Step(tuple(some), pending)))
        for number, all_of_them in frames.items():
            link = self._links.get(number)
            if link is not None:
                link.send(b"".join(all_of_them))
                if link.closed or link.backlogged:
                    self._settle(link)

    def _send_rest(self) -> None:
        """Before the process ends: give gateways a moment to take their last frames."""
        deadline = time.monotonic() + FLUSH_S
        while any(link.backlogged for link in self._links.values()):
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._receive(left)

    # --- the row ----------------------------------------------------------------------

    def _rest(self) -> None:
        """Nothing to compute: say so on the board, and to the supervisor when draining."""
        self._write_row(0.0)
        if self._draining and not self._drained_said:
            self._drained_said = True
            control.send(self._control, control.Drained(self._drain_number))

    def _write_row(self, predicted_s: float) -> None:
        now = time.monotonic()
        if now >= self._next_rss:
            self._next_rss = now + 1.0
            self._rss = int(os.pread(self._statm, 256, 0).split()[1]) * _PAGE
        load = self._engine.load()
        speeds = load.speeds
        row = ProgressRow(
            epoch=self._epoch,
            heartbeat_ns=time.monotonic_ns(),
            steps=load.steps,
            predicted_step_s=predicted_s,
            slots_busy=load.slots_busy,
            waiting=load.waiting,
            prefill_pending=load.prefill_pending,
            kv_used=load.kv_used,
            kv_total=load.kv_total,
            prefill_tok_s=speeds.prefill_tok_s,
            step_base_s=speeds.step_base_s,
            step_seq_s=speeds.step_seq_s,
            steps_s=speeds.steps_s,
            rss_bytes=self._rss,
            tokens_out=load.tokens_out,
            prompt_tokens=load.prompt_tokens,
            wide_steps=load.wide_steps,
            lent=load.lent,
            adapter_switches=load.adapter_switches,
        )
        self._progress.write(self._worker, row)
