"""Template and workers as processes: this test plays supervisor and gateway over real links."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lbhost import control, state_link, wire
from lbhost.board import Board
from lbhost.config import Settings
from lbhost.linux import become_subreaper
from lbhost.llama import Vocab
from lbhost.model import resolve
from lbhost.placement.placement import Placement
from lbhost.state_link import State
from lbhost.wire import FinishReason
from lbhost.worker import fork_server
from worker_harness import DEADLINE_S, Answer, Template, Worker, receive, template

pytestmark = pytest.mark.e2e

MODEL = resolve("starter").path


@pytest.fixture(scope="module")
def forks() -> Iterator[Template]:
    with template(Settings(slots=2), n_ctx=2048) as made:
        assert isinstance(made.first, control.Loaded)
        yield made


@pytest.fixture
def worker(forks: Template) -> Iterator[Worker]:
    made = forks.fork(0)
    yield made
    made.close()


def _packed(text: str) -> bytes:
    vocab = Vocab.load(MODEL)
    tokens = vocab.tokenize(text, add_bos=True, parse_special=True)
    vocab.close()
    return wire.pack_tokens(tokens)


@pytest.fixture(scope="module")
def prompt() -> bytes:
    return _packed(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.fixture(scope="module")
def counting() -> bytes:
    """What follows has no near-ties: wherever it is computed again, as an attention tile or token
    by token, it says the same."""
    numbers = " ".join(f"The number {i} is followed by {i + 1}." for i in range(16))
    return _packed(f"Once there was a thief. {numbers}")


LONG = wire.pack_tokens([300 + i % 20_000 for i in range(1900)])
"""Seconds of prefill."""


def submit(request: int, prompt: bytes, max_tokens: int = 16, **more: object) -> wire.Submit:
    return wire.Submit(request, prompt, max_tokens, wire.Sampling(temperature=0.0), **more)  # type: ignore[arg-type]


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_the_template_says_what_it_loaded(forks: Template) -> None:
    loaded = forks.first
    assert isinstance(loaded, control.Loaded)
    assert loaded.n_ctx_train == 8192
    assert loaded.weights_bytes > 90_000_000
    threads = list(Path(f"/proc/{forks.process.pid}/task").iterdir())
    assert len(threads) == 1, "a fork would lose the others"


def test_a_fork_that_the_kernel_refuses_costs_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refused)
    ours, theirs = control.socketpair()
    with ours:
        fork_server._fork_worker(theirs, theirs, lambda _link: 0)
        assert receive(ours) is None, "the supervisor learns of it by the end of the link"


def test_a_worker_speaks_once_it_is_the_supervisors_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before that nobody could wait for it, and its exit code would be lost."""
    become_subreaper()
    leave, send = os._exit, control.send

    def later(code: int) -> None:  # the process between the two forks takes its time
        time.sleep(0.2)
        leave(code)

    def whose(link: socket.socket, _hello: control.Control) -> None:
        send(link, control.Hello(os.getppid()))
        send(link, control.Hello(os.getpid()))

    monkeypatch.setattr(os, "_exit", later)
    monkeypatch.setattr(control, "send", whose)
    ours, theirs = control.socketpair()
    link, kept = control.socketpair()
    with ours, link, kept:
        fork_server._fork_worker(link, theirs, lambda _link: 5)
        hello = receive(ours)
        assert isinstance(hello, control.Hello)
        assert hello.pid == os.getpid(), "whose child it was when it spoke"
        worker = receive(ours)
        assert isinstance(worker, control.Hello)
        assert os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1]) == 5


def test_a_worker_answers_and_writes_its_row(worker: Worker, prompt: bytes) -> None:
    worker.send(submit(1, prompt))
    answer = worker.answer(1)
    assert answer.text == "The capital of France is Paris."
    assert answer.finish is not None
    assert answer.finish.reason is FinishReason.STOP
    wait(lambda: worker.row().slots_busy == 0, "the row never said idle")
    row = worker.row()
    assert (row.epoch, row.kv_total, row.tokens_out) == (1, 4096, len(answer.tokens))
    assert row.steps == row.tokens_out
    assert row.prefill_tok_s is not None
    assert row.prefill_tok_s > 1
    assert row.step_seq_s is not None
    assert row.step_seq_s > 0
    assert row.rss_bytes > 10_000_000


def test_two_requests_share_the_steps(worker: Worker, prompt: bytes) -> None:
    both = [wire.encode(submit(request, prompt, 12, ignore_eos=True)) for request in (1, 2)]
    worker.data.sendall(b"".join(both))  # at once, however slow the box is
    answers = [worker.answer(request) for request in (1, 2)]
    assert len(answers[0].tokens) == len(answers[1].tokens) == 12
    assert worker.row().steps < 24


def test_a_worker_is_this_processs_child_pinned_and_named(worker: Worker) -> None:
    fields = Path(f"/proc/{worker.pid}/stat").read_text().rsplit(") ", 1)[1].split()
    parent, nice = fields[1], fields[16]
    assert int(parent) == os.getpid()
    assert int(nice) == os.nice(0) + Settings().nice
    assert os.getsid(worker.pid) == worker.pid  # its cores' scheduler sees it apart from all others
    assert os.sched_getaffinity(worker.pid) == {min(os.sched_getaffinity(0))}
    cmdline = Path(f"/proc/{worker.pid}/cmdline").read_bytes()
    assert cmdline.rstrip(b"\0").decode() == "lbhost worker 0"


def test_a_cancel_reaches_into_a_long_prefill(worker: Worker, prompt: bytes) -> None:
    worker.send(submit(1, LONG))
    wait(lambda: worker.row().prefill_pending > 0, "the prefill never began")
    worker.send(wire.Cancel(1))
    finish = worker.answer(1).finish
    assert finish is not None
    assert finish.reason is FinishReason.CANCELLED
    worker.send(submit(2, prompt))
    assert worker.answer(2).text == "The capital of France is Paris."


def test_a_short_request_overtakes_a_long_prefill(worker: Worker, prompt: bytes) -> None:
    worker.send(submit(1, LONG, 1))
    wait(lambda: worker.row().prefill_pending > 0, "the prefill never began")
    worker.send(submit(2, prompt))
    worker.answer(2)
    assert 1 not in worker.answers
    assert worker.row().prefill_pending > 0


def test_a_draining_worker_ends_what_runs_and_refuses_the_rest(
    worker: Worker, prompt: bytes
) -> None:
    worker.send(submit(1, prompt, 40, ignore_eos=True))
    worker.read()
    control.send(worker.control, control.Drain())
    worker.send(submit(2, prompt))
    refused = worker.answer(2).finish
    assert refused is not None
    assert refused.reason is FinishReason.REJECTED
    assert len(worker.answer(1).tokens) == 40
    assert isinstance(receive(worker.control), control.Drained)
    control.send(worker.control, control.Resume())
    control.send(worker.control, control.Drain())
    assert isinstance(receive(worker.control), control.Drained)
    control.send(worker.control, control.Resume())
    worker.send(submit(3, prompt))
    assert worker.answer(3).text == "The capital of France is Paris."


def test_a_draining_worker_lets_go_of_the_state_that_came_with_what_it_refuses(
    worker: Worker, prompt: bytes
) -> None:
    states, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    data, data_theirs = socket.socketpair()
    with theirs, data_theirs:
        ends = [data_theirs.fileno(), theirs.fileno()]
        control.send(worker.control, control.Link(worker.number, 1), ends)
    worker.data.close()
    worker.data = data
    control.send(worker.control, control.Drain())
    assert isinstance(receive(worker.control), control.Drained)
    state = os.memfd_create("came-for-nothing")
    with states:
        assert state_link.send(states, State(7), state)
        os.close(state)
        worker.send(submit(1, prompt, state=7))
        finish = worker.answer(1).finish
        assert finish is not None
        assert finish.reason is FinishReason.REJECTED
        unread = fcntl.ioctl(states, termios.TIOCOUTQ, bytes(4))
        assert unread == bytes(4), "it lies in the link"
        assert not any("came-for-nothing" in str(fd.readlink()) for fd in descriptors(worker.pid))


def descriptors(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/fd").iterdir())


def test_a_moved_request_goes_on_with_its_text_whole(worker: Worker, counting: bytes) -> None:
    more: dict[str, object] = {"ignore_eos": True, "stop": ("\n\n\n",)}
    worker.send(submit(1, counting, 160, **more))
    whole = worker.answer(1)
    worker.send(submit(2, counting, 160, **more))
    while len(worker.answers.setdefault(2, Answer()).tokens) < 20:
        worker.read()
    worker.send(wire.Move(2))
    part = worker.answer(2)
    assert part.finish is not None
    assert part.finish.reason is FinishReason.MOVED
    assert 20 <= len(part.tokens) < 160
    worker.send(submit(3, counting, 160, done=wire.pack_tokens(part.tokens), **more))
    rest = worker.answer(3)
    assert part.tokens + rest.tokens == whole.tokens
    assert part.text + rest.text == whole.text
    assert rest.finish is not None
    assert rest.finish.completion_tokens == 160


def test_stop_gives_back_what_runs_and_exits_zero(worker: Worker) -> None:
    worker.send(submit(1, LONG))
    wait(lambda: worker.row().prefill_pending > 0, "the prefill never began")
    control.send(worker.control, control.Stop())
    finish = worker.answer(1).finish
    assert finish is not None
    assert finish.reason is FinishReason.MOVED
    assert worker.wait_gone() == 0


def test_a_worker_without_a_supervisor_ends_in_the_middle_of_a_decode(worker: Worker) -> None:
    worker.send(submit(1, LONG))
    wait(lambda: worker.row().prefill_pending > 0, "the prefill never began")
    worker.control.shutdown(socket.SHUT_RDWR)
    assert worker.wait_gone() == 0


def test_a_new_link_replaces_a_lost_one(worker: Worker, prompt: bytes) -> None:
    worker.send(submit(1, LONG))
    wait(lambda: worker.row().prefill_pending > 0, "the prefill never began")
    worker.data.close()
    wait(lambda: worker.row().slots_busy == 0, "the lost link's request went on")
    worker.data = worker.new_link()
    worker.send(submit(1, prompt))
    assert worker.answer(1).text == "The capital of France is Paris."


def test_garbage_on_a_link_costs_only_the_link(worker: Worker, prompt: bytes) -> None:
    worker.data.sendall(b"\x05\0\0\0hello")
    assert select.select([worker.data], [], [], DEADLINE_S)[0]
    assert worker.data.recv(1) == b""
    worker.data.close()
    worker.data = worker.new_link()
    worker.send(submit(1, prompt))
    assert worker.answer(1).finish is not None


def test_a_terminals_ctrl_c_is_not_the_workers_to_act_on(worker: Worker, prompt: bytes) -> None:
    os.kill(worker.pid, signal.SIGINT)
    worker.send(submit(1, prompt))
    assert worker.answer(1).finish is not None


def test_a_killed_workers_successor_is_forked(forks: Template, prompt: bytes) -> None:
    first = forks.fork(1)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait_gone() == -signal.SIGKILL
    second = forks.fork(1)
    second.send(submit(1, prompt))
    assert second.answer(1).text == "The capital of France is Paris."
    first.close()
    second.close()


def test_an_idle_worker_uses_next_to_no_cpu(worker: Worker) -> None:
    clock = (~worker.pid << 3) | 2
    began, used = worker.row().heartbeat_ns, time.clock_gettime(clock)
    wait(lambda: worker.row().heartbeat_ns > began + 2_000_000_000, "no heartbeat")
    assert time.clock_gettime(clock) - used < 0.02


def test_a_worker_that_cannot_be_pinned_says_so(forks: Template) -> None:
    ours, theirs = control.socketpair()
    placement = Placement(cpus=(5000,), threads=1)
    control.send(forks.control, control.Fork(3, 1, placement), [theirs.fileno()])
    theirs.close()
    assert isinstance(receive(ours), control.Hello)
    failed = receive(ours)
    assert isinstance(failed, control.Failed)
    assert failed.message.startswith("cannot pin to CPU 5000")
    assert receive(ours) is None
    ours.close()


def test_workers_outlive_the_template(prompt: bytes) -> None:
    with template(Settings(slots=1), n_ctx=256) as made:
        worker = made.fork(0)
        made.process.kill()
        made.process.wait(DEADLINE_S)
        worker.send(submit(1, prompt))
        assert worker.answer(1).text == "The capital of France is Paris."
        worker.close()


def test_a_model_that_cannot_be_loaded_is_one_clear_line(tmp_path: Path) -> None:
    with template(model_path=str(tmp_path / "none.gguf")) as made:
        assert isinstance(made.first, control.Failed)
        assert made.first.message.endswith("none.gguf: no such model file")
        assert made.process.wait(DEADLINE_S) == 1


def test_a_gpu_workers_process_serves_like_any_other(prompt: bytes) -> None:
    board = Board.create(workers=1, cores=1, gpus=1)
    ours, theirs = control.socketpair()
    command = [sys.executable, "-m", "lbhost.worker", "--control-fd", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()
    configure = control.Configure(Settings(slots=1), MODEL, "test", 256)
    control.send(ours, configure, [board.fd])
    placement = Placement(cpus=(min(os.sched_getaffinity(0)),), threads=1, gpu=0)
    control.send(ours, control.Fork(0, 1, placement))
    hello, ready = receive(ours), receive(ours)
    assert isinstance(hello, control.Hello)
    assert hello.pid == process.pid
    assert isinstance(ready, control.Ready), ready
    worker = Worker(board, 0, ours, hello.pid)
    worker.send(submit(1, prompt))
    assert worker.answer(1).text == "The capital of France is Paris."
    control.send(worker.control, control.Stop())
    assert process.wait(DEADLINE_S) == 0
    worker.control.close()
    worker.data.close()
