"""A model of Llama 3.2 1B's shape with random weights, for speed and nothing else.

Q4_0 throughout; the vocabulary is that of the starter model. Written once into the cache folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from benchmarks import peers

WIDTH = 2048
LAYERS = 16
HEADS = 32
KV_HEADS = 8
HEAD_WIDTH = WIDTH // HEADS
FFN = 8192
CONTEXT = 8192

_BLOCK = 32
"""Weights that share a scale in Q4_0: two bytes of scale, then half a byte for each."""
_SCALE = 0.0043
"""Four random bits have a deviation of 4.6; times this, the 0.02 that models start out with."""


def llama_1b(starter: Path, say: Callable[[str], None]) -> Path:
    """The file, made now if it was not before (620 MB, half a minute)."""
    made = peers.cache_folder() / "llama-1b-shape-Q4_0.gguf"
    if not made.exists():
        say(f"writing {made}")
        half = made.with_suffix(f".{os.getpid()}")
        try:
            _write(half, starter)
            half.rename(made)
        finally:
            half.unlink(missing_ok=True)
    return made


def _write(path: Path, starter: Path) -> None:
    reader = gguf.GGUFReader(starter)
    vocabulary = len(reader.fields["tokenizer.ggml.tokens"].data)
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    writer.add_name("Llama 3.2 1B's shape, random weights")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_WIDTH)
    writer.add_rope_freq_base(500_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    rng = np.random.default_rng(1)
    for name, rows, columns in _matrices(vocabulary):
        if rows:
            data = _random_q4_0(rng, rows, columns)
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        else:
            writer.add_tensor(name, np.ones(columns, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _matrices(vocabulary: int) -> list[tuple[str, int, int]]:
    """Name, rows and columns of every tensor; no rows: a vector of norms."""
    kv = KV_HEADS * HEAD_WIDTH
    found = [("token_embd.weight", vocabulary, WIDTH), ("output_norm.weight", 0, WIDTH)]
    for layer in range(LAYERS):
        found += [
            (f"blk.{layer}.{name}.weight", rows, columns)
            for name, rows, columns in (
                ("attn_norm", 0, WIDTH),
                ("attn_q", WIDTH, WIDTH),
                ("attn_k", kv, WIDTH),
                ("attn_v", kv, WIDTH),
                ("attn_output", WIDTH, WIDTH),
                ("ffn_norm", 0, WIDTH),
                ("ffn_gate", FFN, WIDTH),
                ("ffn_up", FFN, WIDTH),
                ("ffn_down", WIDTH, FFN),
            )
        ]
    return found


def _random_q4_0(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Rows of blocks of 18 bytes, as a matrix of bytes."""
    blocks = rng.integers(0, 256, (rows, columns // _BLOCK, 18), np.uint8)
    blocks[:, :, :2] = np.array([_SCALE], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)
