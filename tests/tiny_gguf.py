"""Vocabulary-only GGUF files: every byte a token, with any pre-tokeniser that llama.cpp knows."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

CONTROL, NORMAL = 3, 1


def byte_texts() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(spare)) for byte in range(256)]


def write(
    path: Path, pre: str, specials: Sequence[str] = ("<s>",), template: str | None = None
) -> Path:
    """A byte-level BPE vocabulary with one merge; the special texts come after the bytes."""
    texts = byte_texts()
    tokens = [*texts, "ab", *specials]
    kinds = [NORMAL] * 257 + [CONTROL] * len(specials)
    pairs = [
        _text("general.architecture", "llama"),
        _text("tokenizer.ggml.model", "gpt2"),
        _text("tokenizer.ggml.pre", pre),
        _texts("tokenizer.ggml.tokens", tokens),
        _numbers("tokenizer.ggml.token_type", kinds),
        _texts("tokenizer.ggml.merges", ["a b"]),
        _number("tokenizer.ggml.bos_token_id", 257),
        _number("tokenizer.ggml.eos_token_id", 257),
    ]
    if template is not None:
        pairs.append(_text("tokenizer.chat_template", template))
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs))
    data = head + b"".join(pairs)
    path.write_bytes(data + bytes(-len(data) % 32))
    return path


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _text(key: str, value: str) -> bytes:
    return _string(key) + struct.pack("<I", 8) + _string(value)


def _number(key: str, value: int) -> bytes:
    return _string(key) + struct.pack("<II", 4, value)


def _texts(key: str, values: Sequence[str]) -> bytes:
    head = _string(key) + struct.pack("<IIQ", 9, 8, len(values))
    return head + b"".join(map(_string, values))


def _numbers(key: str, values: Sequence[int]) -> bytes:
    head = _string(key) + struct.pack("<IIQ", 9, 5, len(values))
    return head + struct.pack(f"<{len(values)}i", *values)
