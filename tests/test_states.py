"""KV states over the real model: what is restored goes on as if it had never been away."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import numpy
import pytest
from numpy.typing import NDArray

from lbhost import state_file
from lbhost.errors import StateError
from lbhost.llama import Model
from lbhost.model import resolve
from lbhost.state_file import Header
from lbhost.wire import pack_tokens
from lbhost.worker.context import Context, Decoded
from lbhost.worker.states import States, identity_of

pytestmark = pytest.mark.e2e

SLOTS = 3
TOKENS = list(range(40, 140))


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    loaded = Model(resolve("starter").path)
    yield loaded
    loaded.close()


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    made = Context(model, slots=SLOTS, n_ctx=256, threads=1)
    yield made
    made.close()


@pytest.fixture
def states(context: Context) -> States:
    return States(context, identity_of(context.model, (), SLOTS))


def decode(context: Context, slot: int, at: int, tokens: list[int]) -> NDArray[numpy.float32]:
    context.clear()
    index = context.add(slot, at, pack_tokens(tokens), output=True)
    assert context.decode() is Decoded.OK
    logits: NDArray[numpy.float32] = context.logits(index).copy()
    return logits


@pytest.fixture
def saved(context: Context, states: States) -> Iterator[int]:
    """A state of TOKENS, computed in slot 0."""
    decode(context, 0, 0, TOKENS)
    fd, size = states.save(0, pack_tokens(TOKENS), scope=5)
    assert os.fstat(fd).st_size == size
    yield fd
    os.close(fd)


def test_the_logits_after_a_restored_sequence_are_the_same_bits(
    context: Context, states: States, saved: int
) -> None:
    expected = decode(context, 0, len(TOKENS), [7])
    states.load(2, saved, states.read(saved, 5))
    assert numpy.array_equal(decode(context, 2, len(TOKENS), [7]), expected)


def test_a_restored_sequence_can_be_cut_and_go_on_otherwise(
    context: Context, states: States, saved: int
) -> None:
    assert context.truncate(0, 60)
    expected = decode(context, 0, 60, [7, 8, 9])
    decode(context, 1, 0, [1, 2, 3])
    states.load(1, saved, states.read(saved, 5))
    assert context.truncate(1, 60)
    assert numpy.array_equal(decode(context, 1, 60, [7, 8, 9]), expected)


def test_another_context_of_the_same_shape_takes_it_over(
    model: Model, context: Context, states: States, saved: int
) -> None:
    expected = decode(context, 0, len(TOKENS), [7])
    other = Context(model, slots=SLOTS, n_ctx=512, threads=1)
    try:
        theirs = States(other, identity_of(model, (), SLOTS))
        theirs.load(0, saved, theirs.read(saved, 5))
        assert numpy.array_equal(decode(other, 0, len(TOKENS), [7]), expected)
    finally:
        other.close()


def test_a_state_says_what_it_holds_and_cannot_be_changed(states: States, saved: int) -> None:
    header = states.read(saved, 5)
    assert (header.tokens, header.scope) == (pack_tokens(TOKENS), 5)
    with pytest.raises(PermissionError):
        os.pwrite(saved, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(saved, 0)


def test_a_state_of_another_scope_or_shape_is_refused(
    model: Model, context: Context, states: States, saved: int
) -> None:
    with pytest.raises(StateError, match="scope"):
        states.read(saved, 6)
    with pytest.raises(StateError, match="another model"):
        States(context, identity_of(model, (), SLOTS + 1)).read(saved, 5)


def forged(header: Header, payload: bytes, *, cut: int = 0, seals: int = state_file.SEALS) -> int:
    """A file that claims to be this state."""
    fd = os.memfd_create("forged", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, header.size - cut)
    os.pwrite(fd, state_file.pack(header), 0)
    os.pwrite(fd, payload, header.payload_at)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_one_wrong_byte_of_the_payload_is_noticed(
    context: Context, states: States, saved: int
) -> None:
    header = states.read(saved, 5)
    payload = bytearray(os.pread(saved, header.payload_bytes, header.payload_at))
    payload[len(payload) // 2] ^= 1
    fd = forged(header, bytes(payload))
    try:
        with pytest.raises(StateError, match="damaged"):
            states.load(1, fd, states.read(fd, 5))
    finally:
        os.close(fd)
    decode(context, 1, 0, [1, 2, 3])  # the slot is empty, and works


def test_what_llama_cpp_refuses_leaves_the_slot_empty(context: Context) -> None:
    decode(context, 0, 0, TOKENS)
    size = context.state_bytes(0)
    buffer = numpy.zeros(size, dtype=numpy.uint8)
    assert context.save(0, buffer.ctypes.data, size)
    buffer[0] ^= 1  # the number of streams
    decode(context, 1, 0, [1, 2, 3])
    assert not context.load(1, buffer.ctypes.data, size)
    decode(context, 1, 0, [1, 2, 3])  # the slot is empty, and works


def test_the_test_at_the_start_passes_and_leaves_no_trace(context: Context, states: States) -> None:
    states.test(1)
    assert states.movable
    decode(context, 1, 0, [1, 2, 3])
