"""Frames and control packets: whatever comes, the answer is a message or a WireError."""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbhost import control, wire
from lbhost.config import Settings
from lbhost.errors import WireError
from lbhost.gateway.api import parameters
from lbhost.placement.placement import Placement

MESSAGES: list[Any] = [
    wire.Submit(1, wire.pack_tokens([1, 2, 3]), 10, wire.Sampling(), ("x",), ignore_eos=True),
    wire.Submit(2, b"", 1, wire.Sampling(seed=5, logit_bias=((1, -100.0), (2, 0.5)))),
    wire.Submit(3, b"1234", 9, wire.Sampling(), rank=2, done=wire.pack_tokens([7, 8])),
    wire.Embed(4, wire.pack_tokens([1, 2, 3]), (1, 2), 2),
    wire.Cancel(2**40),
    wire.Move(2**40),
    wire.Lend((1, 2)),
]
STEPS: list[Any] = [
    wire.Step((), 0),
    wire.Vectors(3, bytes(range(16)), wire.Finish(wire.FinishReason.STOP, 4)),
    wire.Step((wire.Delta(1, (5, 6), "ab"), wire.Delta(2, (), "")), 17),
    wire.Step((wire.Delta(1, (), "", wire.Finish(wire.FinishReason.MOVED, 3, 1, 2)),), 0),
    wire.Step((wire.Delta(1, (), "é", wire.Finish(wire.FinishReason.ERROR, error="no room")),), 0),
]


def test_messages_survive_the_way_there_and_back() -> None:
    for message in MESSAGES:
        (body,) = wire.Frames().feed(wire.encode(message))
        assert wire.decode_to_worker(body) == message
    for step in STEPS:
        (body,) = wire.Frames().feed(wire.encode(step))
        assert wire.decode_from_worker(body) == step


def test_the_longest_prompt_and_output_fit_beside_the_longest_everything_else() -> None:
    biases = tuple((999_999_999, -99.5) for _ in range(1024))
    stops = ("\U0001f600" * 512,) * parameters.MAX_STOPS
    prompt = bytes(4 * wire.MAX_PROMPT_TOKENS)
    sampling = wire.Sampling(logit_bias=biases)
    submit = wire.Submit(2**60, prompt, 1 << 30, sampling, stops, done=prompt)
    assert len(wire.encode(submit)) > wire.MAX_FRAME - 512 * 1024


@given(st.lists(st.sampled_from(MESSAGES), max_size=8), st.lists(st.integers(1, 40)))
def test_frames_come_out_whole_however_the_stream_is_cut(
    messages: list[Any], cuts: list[int]
) -> None:
    stream = b"".join(wire.encode(message) for message in messages)
    frames = wire.Frames()
    bodies: list[bytes] = []
    for cut in cuts:
        bodies += frames.feed(stream[:cut])
        stream = stream[cut:]
    bodies += frames.feed(stream)
    assert [wire.decode_to_worker(body) for body in bodies] == messages


@given(st.binary(max_size=200))
def test_any_body_decodes_or_is_a_wire_error(body: bytes) -> None:
    for decode in (wire.decode_to_worker, wire.decode_from_worker):
        with contextlib.suppress(WireError):
            decode(body)


@given(st.sampled_from(MESSAGES + STEPS), st.data())
def test_a_damaged_message_decodes_or_is_a_wire_error(message: Any, data: st.DataObject) -> None:
    body = bytearray(wire.encode(message)[4:])
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] ^= data.draw(st.integers(1, 255))
    for decode in (wire.decode_to_worker, wire.decode_from_worker):
        with contextlib.suppress(WireError):
            decode(bytes(body))


@given(st.binary(max_size=100))
def test_any_stream_makes_frames_or_is_a_wire_error(stream: bytes) -> None:
    with contextlib.suppress(WireError):
        assert all(len(body) <= len(stream) for body in wire.Frames().feed(stream))


def test_deep_nesting_is_a_wire_error() -> None:
    for opening in (b"\x91", b"\x81\xa1a"):
        with pytest.raises(WireError):
            wire.decode_to_worker(opening * 100_000)


def test_a_frame_over_the_cap_is_refused_at_both_ends() -> None:
    with pytest.raises(WireError):
        wire.encode(wire.Submit(1, bytes(wire.MAX_FRAME), 1, wire.Sampling()))
    with pytest.raises(WireError):
        wire.Frames().feed(struct.pack("<I", wire.MAX_FRAME + 1))


def test_the_widest_answer_to_an_embed_fits_its_frames() -> None:
    values = bytes(range(256)) * (2048 * 4 * 8192 // 256)
    finish = wire.Finish(wire.FinishReason.STOP, 4)
    frames = wire.Frames()
    got: list[Any] = []
    for part in wire.vectors(3, values, finish):
        got += map(wire.decode_from_worker, frames.feed(wire.encode(part)))
    assert b"".join(part.values for part in got) == values
    assert [part.finish for part in got] == [None] * (len(got) - 1) + [finish]
    assert [part.finish for part in wire.vectors(3, b"", finish)] == [finish]


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_tokens_survive_packing(tokens: list[int]) -> None:
    assert wire.unpack_tokens(wire.pack_tokens(tokens)) == tokens


def test_half_tokens_are_a_wire_error() -> None:
    with pytest.raises(WireError):
        wire.unpack_tokens(b"12345")


# --- control packets --------------------------------------------------------------------

CONTROL: list[control.Control] = [
    control.Configure(Settings(), "/m.gguf", "m", 2048),
    control.Serve(Settings(), (control.Configure(Settings(), "/m.gguf", "m", 2048),)),
    control.Fork(1, 2, Placement((0, 1), 2)),
    control.Loaded(0.5, 10, 20),
    control.Hello(5),
    control.Ready(),
    control.Failed("why"),
    control.Link(1, 2),
    control.Drain(),
    control.Drained(),
    control.Resume(),
    control.Stop(3.5),
    control.Leaving(1, 2),
    control.Ended(1, 2, by_its_work=True),
]


def test_control_messages_survive_the_way() -> None:
    ours, theirs = control.socketpair()
    with ours, theirs:
        for message in CONTROL:
            control.send(ours, message)
            assert control.receive(theirs) == (message, [])
        ours.close()
        assert control.receive(theirs) is None


@given(st.binary(min_size=1, max_size=200))
def test_any_control_packet_is_a_message_or_a_wire_error(packet: bytes) -> None:
    ours, theirs = control.socketpair()
    with ours, theirs:
        ours.send(packet)
        with contextlib.suppress(WireError):
            assert control.receive(theirs) is not None


def test_a_packet_that_is_refused_leaves_no_descriptor_behind() -> None:
    ours, theirs = control.socketpair()
    with ours, theirs:
        before = len(list(Path("/proc/self/fd").iterdir()))
        socket.send_fds(ours, [b"rubbish"], [ours.fileno()])
        with pytest.raises(WireError):
            control.receive(theirs)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
