"""Stand-ins for fork server, worker and gateway that speak the real control links.

fake_gateway.py and fake_fork_server.py run them; the fork server forks workers as the real one
does. What they do wrong is said by files in FAKE_DIR, named after them ("fork_server",
"gateway", "worker-0"), holding one of the words that `mode` lists; no file: nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from lbhost import control
from lbhost.board import Board, GatewayRow, ModelRow, ProgressRow
from lbhost.status import RequestStatus

TICK_S = float(os.environ.get("FAKE_TICK_S", "0.02"))


def load(model: int) -> ModelRow | None:
    """What the gateway says of a model: the fields in a file "load-N"."""
    text = mode(f"load-{model}")
    return msgspec.json.decode(text, type=ModelRow) if text else None


def mode(name: str) -> str:
    """What FAKE_DIR says of this process:

    fail (says Failed and ends), crash (ends at once), mute (never gets ready), slow (gets ready
    later, and reads nothing before), busy (a worker that computes for ever), deaf (ignores Stop),
    barren (a fork server that forks nothing).
    """
    with contextlib.suppress(FileNotFoundError):
        return (Path(os.environ["FAKE_DIR"]) / name).read_text()
    return ""


REQUEST = RequestStatus(
    id="req_1",
    model="fake",
    key="",
    tier="default",
    state="queued",
    workers=[],
    prompt_tokens=9,
    prompt_done=0,
    tokens_out=0,
    tokens_s=None,
    max_tokens=16,
    age_s=0.5,
    starts_in_s=1.25,
    ends_in_s=2.5,
    answers=1,
    stream=False,
)
"""The one that the gateway has."""


def next_message(link: socket.socket) -> control.Control | None:
    """What has come within a tick, if anything. Ends the process when the supervisor is gone."""
    if not select.select([link], [], [], TICK_S)[0]:
        return None
    packet = control.receive(link)
    if packet is None:
        os._exit(1)
    message, fds = packet
    for fd in fds:
        os.close(fd)
    return message


def configured(link: socket.socket) -> tuple[Board, control.Configure | control.Serve]:
    packet = control.receive(link)
    if packet is None:
        os._exit(1)
    message, fds = packet
    assert isinstance(message, control.Configure | control.Serve)
    return Board.attach(fds[0]), message


def misbehave(name: str, link: socket.socket) -> None:
    how = mode(name)
    if how == "fail":
        control.send(link, control.Failed(f"{name} was told to fail"))
        os._exit(1)
    if how == "crash":
        os._exit(3)
    while mode(name) == "mute":
        next_message(link)
    while mode(name) == "slow":
        time.sleep(TICK_S)


def gateway(link: socket.socket) -> None:
    board, serve = configured(link)
    assert isinstance(serve, control.Serve)
    misbehave("gateway", link)
    control.send(link, control.Ready({1: "another file"} if mode("gateway") == "refuse" else {}))
    links = 0
    of_model: Counter[int] = Counter()
    limit = serve.settings.queue_size
    while True:
        message = next_message(link)
        if isinstance(message, control.Link):
            links += 1
            of_model[message.model] += 1
        if isinstance(message, control.Stop | control.Retire) and mode("gateway") != "deaf":
            os._exit(0)
        if isinstance(message, control.Reconfigure):
            limit = message.settings.queue_size
            control.send(link, control.Reconfigured(message.number))
        if isinstance(message, control.AskRequests) and mode("gateway") != "deaf":
            control.send(link, control.ToldRequests(message.number, (REQUEST,), 1, None))
        if isinstance(message, control.CancelRequest):
            count = int(message.request == REQUEST.id)
            control.send(link, control.Cancelled(message.number, count))
        board.gateway.write(
            0,
            GatewayRow(
                pid=os.getpid(),
                heartbeat_ns=time.monotonic_ns(),
                connections=links,
                queue_limit=limit,
            ),
        )
        for model in range(len(serve.models)):
            row = load(model) or ModelRow(in_flight=of_model[model])
            row = msgspec.structs.replace(row, heartbeat_ns=time.monotonic_ns())
            board.models.write(model, row)
            if mode(f"wake-{model}"):
                control.send(link, control.Wake(model))


def fork_server(link: socket.socket) -> None:
    board, first = configured(link)
    assert isinstance(first, control.Configure)
    misbehave("fork_server", link)
    misbehave(f"fork_server-{first.model_alias}", link)
    control.send(link, control.Loaded(0.0, 1, 1))
    while True:
        packet = control.receive(link)
        if packet is None:
            os._exit(1)
        message, fds = packet
        if isinstance(message, control.Stop):
            os._exit(0)
        if isinstance(message, control.Fork):
            if mode("fork_server") != "barren":
                fork(link, board, message, fds)
            for fd in fds:
                os.close(fd)


def fork(link: socket.socket, board: Board, order: control.Fork, fds: Sequence[int]) -> None:
    between = os.fork()
    if between == 0:
        parent = os.getpid()
        if os.fork() == 0:
            link.close()
            for standard in (1, 2):
                os.dup2(fds[1], standard)
            os.close(fds[1])
            while os.getppid() == parent:  # only the supervisor's own child is waitable there
                time.sleep(0.0002)
            worker(socket.socket(fileno=fds[0]), board, order)
        os._exit(0)
    os.waitpid(between, 0)


def worker(link: socket.socket, board: Board, order: control.Fork) -> None:
    name = f"worker-{order.worker}"
    control.send(link, control.Hello(os.getppid() if mode(name) == "lies" else os.getpid()))
    with contextlib.suppress(OSError):  # a generated box has CPUs that this one has not
        os.sched_setaffinity(0, order.placement.cpus)
    misbehave(name, link)
    control.send(link, control.Ready())
    os.write(1, b"process %d of worker %d\n" % (order.epoch, order.worker))
    draining, steps, links, number = False, 0, 0, 0
    while True:
        message = next_message(link)
        links += isinstance(message, control.Link)
        busy = mode(name) == "busy"
        if isinstance(message, control.Drain):
            draining, number = True, message.number
        elif isinstance(message, control.Resume):
            draining = False
        elif isinstance(message, control.Stop) and mode(name) != "deaf":
            os._exit(0)
        if draining and not busy:
            draining = False
            control.send(link, control.Drained(number))
        steps += busy
        row = ProgressRow(
            epoch=order.epoch,
            heartbeat_ns=time.monotonic_ns() if busy else 0,
            steps=steps,
            predicted_step_s=TICK_S,
            slots_busy=int(busy),
            waiting=0,
            kv_total=links,
            steps_s=(0.25, 0.5),
        )
        board.progress.write(order.worker, row)


def gpu_worker(link: socket.socket) -> None:
    """A worker that is spawned: it gets Configure and Fork, and loads for itself."""
    board, _ = configured(link)
    packet = control.receive(link)
    if packet is None or not isinstance(packet[0], control.Fork):
        os._exit(1)
    worker(link, board, packet[0])


def main(role: Callable[[socket.socket], None]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--control-fd", type=int, required=True)
    link = socket.socket(fileno=parser.parse_args().control_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    role(link)
