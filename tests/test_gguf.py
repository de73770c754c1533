"""Broken model files: every one is refused by a line that says what is wrong with it."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny_gguf
from lbhost import gguf, inspection
from lbhost.errors import ModelDamagedError, ModelFileError
from lbhost.llamacpp import ggml
from lbhost.model import resolve
from lbhost.purpose import KindChoice, PoolingChoice
from lbhost.sandbox.environment import scrubbed
from lbhost.side_process import SideProcess

STARTER = Path(resolve("starter").path)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def number(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


def tensor(
    name: str,
    shape: Sequence[int] = (32, 2),
    kind: int = 8,
    offset: int = 0,
    dims: int | None = None,
) -> bytes:
    head = text(name) + struct.pack("<I", len(shape) if dims is None else dims)
    return head + struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")


def made(
    pairs: Sequence[bytes] = (ARCHITECTURE,),
    tensors: Sequence[bytes] = (tensor("a"), tensor("b", offset=96)),
    *,
    data: int = 164,
    version: int = 3,
    n_tensors: int | None = None,
    n_pairs: int | None = None,
) -> bytes:
    """A file; Q8_0 rows of 32 numbers take 34 bytes."""
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join([*pairs, *tensors])
    return head + bytes(-len(head) % 32) + bytes(data)


def test_a_whole_file_passes() -> None:
    gguf.verify(made())
    gguf.verify(made([ARCHITECTURE, number("general.alignment", 64)], [tensor("a")], data=132))
    gguf.verify(STARTER.read_bytes())


HUGE = (1 << 63) - 1
LONG = struct.pack("<Q", HUGE)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a GGUF file"),
        (b"GGML" + bytes(100), "not a GGUF file"),
        (b"GGUF", "version at byte 4 has 4 bytes, and the file ends at 4"),
        (made(version=99), "GGUF version 99 is not known"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(99), "big-endian"),
        (made(n_tensors=HUGE), f"claims {HUGE} tensors"),
        (made(n_pairs=HUGE), f"claims {HUGE} keys"),
        (made(n_tensors=1000), "damaged: "),
        (made([LONG + b"key"]), f"key 0 claims {HUGE} bytes"),
        (made([text("k") + struct.pack("<I", 8) + LONG]), f"k at byte 45 has {HUGE} bytes"),
        (made([text("k") + struct.pack("<I", 77)]), "k is of the unknown type 77"),
        (made([text("k") + struct.pack("<II", 9, 5) + LONG]), f"has {4 * HUGE} bytes"),
        (made([text("k") + struct.pack("<II", 9, 8) + LONG]), f"claims {HUGE} texts"),
        (made([text("k") + struct.pack("<IIQ", 9, 8, 2) + LONG + LONG]), "goes on beyond the end"),
        (made([text("k") + struct.pack("<IIQ", 9, 9, 1)]), "an array of the unknown type 9"),
        (made([ARCHITECTURE, ARCHITECTURE]), "the key general.architecture is there twice"),
        (made([number("general.alignment", 0)]), "general.alignment is 0"),
        (made([number("general.alignment", 48)]), "general.alignment is 48"),
        (made(tensors=[tensor("x" * 64)]), "the name of tensor 0 claims 64 bytes"),
        (made(tensors=[tensor("a", dims=5)]), "the tensor a has 5 dimensions"),
        (made(tensors=[tensor("a", dims=0xFFFFFFFF)]), "has 4294967295 dimensions"),
        (made(tensors=[tensor("a", (32, 0))]), r"impossible shape \[32, 0\]"),
        (made(tensors=[tensor("a", (1 << 32, 1 << 32))]), "impossible shape"),
        (made(tensors=[tensor("a", (1 << 63,))]), "impossible shape"),
        (made(tensors=[tensor("a", (33,))]), "rows of 33 numbers, which are no whole blocks of 32"),
        (made(tensors=[tensor("a", offset=8)]), "begins at 8, which is no multiple of 32"),
        (made(tensors=[tensor("a", offset=1 << 40)]), "truncated: "),
        (made(tensors=[tensor("a", offset=(1 << 64) - 32)]), "truncated: "),
        (made(tensors=[tensor("a"), tensor("a")]), "the tensor a is there twice"),
        (made(data=163), r"truncated: \d+ bytes of at least \d+; download it again"),
        (made(tensors=[tensor("\x1b[31m", dims=9)]), r"the tensor \?\[31m has"),
    ],
)
def test_what_cannot_be_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(gguf.GgufError, match=reason) as caught:
        gguf.verify(data)
    assert str(caught.value).isprintable()


WHOLE = made([ARCHITECTURE, text("k") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")])
EDGES = st.sampled_from([0, 1, 255, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, (1 << 64) - 1])


def refusal(data: bytes) -> str | None:
    """Why a file is refused; None: it passes."""
    try:
        gguf.verify(data)
    except gguf.GgufError as error:
        return str(error)
    return None


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The small file with some numbers overwritten, bytes flipped, and maybe an end cut off."""
    data = bytearray(WHOLE)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(4, len(data) - 8))
        width = draw(st.sampled_from([1, 4, 8]))
        data[at : at + width] = draw(EDGES).to_bytes(8, "little")[:width]
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@given(mutated())
def test_whatever_is_broken_is_one_line_or_fits_in_the_file(data: bytes) -> None:
    reason = refusal(data)
    assert reason is None or (reason and reason.isprintable())
    if reason is None:  # then what it claims is there
        assert data[:4] == gguf.MAGIC
        assert struct.unpack_from("<Q", data, 8)[0] <= len(data) // 24


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(gguf.GgufError):
        gguf.verify(b"GGUF\x03\0\0\0" + (HUGE).to_bytes(8, "little") + noise)


def test_sizes_of_tensors_are_llama_cpps() -> None:
    numbers = ggml("ggml_blck_size", ctypes.c_int64, ctypes.c_int)
    size = ggml("ggml_type_size", ctypes.c_size_t, ctypes.c_int)
    assert {kind: (numbers(kind), size(kind)) for kind in gguf.BLOCKS} == gguf.BLOCKS


# --- in the process of its own ------------------------------------------------------------


def test_a_good_model_is_read_beside_this_process() -> None:
    assert inspection.inspect(STARTER).n_vocab == 49152


def test_what_llama_cpp_stumbles_over_ends_the_reading_process_only(
    tmp_path: Path,
) -> None:
    """Whole as a file; so many layers are nonsense, for which llama.cpp ends the process."""
    path = odd(tmp_path, number("llama.block_count", 0xFFFFFFFF))
    with pytest.raises(ModelFileError, match=str(path)) as caught:
        inspection.inspect(path)
    assert caught.value.message.isprintable()


def odd(folder: Path, *pairs: bytes) -> Path:
    """A model's file that says more than it should."""
    path = folder / "odd.gguf"
    whole = tiny_gguf.write(path, "gpt-2").read_bytes()
    count = struct.unpack_from("<Q", whole, 16)[0] + len(pairs)
    data = b"".join([whole[:16], struct.pack("<Q", count), *pairs, whole[24:]])
    path.write_bytes(data + bytes(-len(data) % 32))
    return path


def test_a_number_that_cannot_be_is_named_before_llama_cpp_sees_it(tmp_path: Path) -> None:
    """Which numbers: tests/test_hyperparameters.py."""
    path = odd(tmp_path, text("llama.rope.freq_base") + struct.pack("<If", 6, math.nan))
    with pytest.raises(ModelDamagedError) as caught:
        inspection.inspect(path)
    why = "damaged: llama.rope.freq_base is nan, which cannot be"
    assert caught.value.message == f"{path}: {why}"


class _TakenOver:
    """A process that says what the file has made it say."""

    said = b""

    def __init__(self, *_: object) -> None:
        self.link, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def __enter__(self) -> socket.socket:
        self._theirs.send(self.said)
        return self.link

    def __exit__(self, *_: object) -> None:
        self.link.close()
        self._theirs.close()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"\xc1 nonsense", "says nonsense"),
        (b"\x91" * 10_000, "says nonsense"),
        (
            msgspec.msgpack.encode(inspection.Refused("bad\x1b]52;c;cm0=\x07" + "x" * 999, True)),
            "bad.]52;c;cm0=",
        ),
    ],
)
def test_a_reading_process_that_was_taken_over_reaches_no_terminal(
    monkeypatch: pytest.MonkeyPatch, said: bytes, shown: str
) -> None:
    monkeypatch.setattr(_TakenOver, "said", said)
    monkeypatch.setattr(inspection, "SideProcess", _TakenOver)
    with pytest.raises(ModelDamagedError, match=shown) as caught:
        inspection.inspect("some.gguf")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000


def test_signals_to_every_process_do_not_end_the_one_that_reads_the_model(tmp_path: Path) -> None:
    process = SideProcess(inspection.MODULE, scrubbed(os.environ))
    with process as link:
        link.settimeout(60.0)
        reader = process._process
        assert reader is not None
        for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            reader.send_signal(number)
        asked = inspection.Ask(str(tmp_path / "none.gguf"), KindChoice.AUTO, PoolingChoice.AUTO)
        link.send(msgspec.msgpack.encode(asked))
        assert b"no such model file" in link.recv(inspection.MAX_PACKET)


def test_a_part_that_is_a_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2))
    first.write_bytes(made())
    os.mkfifo(second)
    with pytest.raises(ModelFileError, match=r"00002-of-00002\.gguf: not a regular"):
        inspection.inspect(first)


def test_a_missing_file_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such model file") as caught:
        inspection.inspect(tmp_path / "none.gguf")
    assert not isinstance(caught.value, ModelDamagedError)


@pytest.mark.parametrize("command", ["serve", "tune"])
def test_a_broken_file_ends_the_command_with_2_and_one_line(tmp_path: Path, command: str) -> None:
    path, run = tmp_path / "broken.gguf", tmp_path / "run"
    path.write_bytes(made(n_tensors=HUGE))
    more = ["--port", "0", "--runtime-dir", str(run)] if command == "serve" else []
    ended = subprocess.run(
        [sys.executable, "-m", "lbhost", command, *(["--model"] if more else []), str(path), *more],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    assert (
        ended.stderr == f"lbhost: {path}: damaged: it claims {HUGE} tensors; 1048576 is the most\n"
    )
    assert not run.exists()
