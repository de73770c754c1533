"""A model of the starter's vocabulary and random weights that computes a token in a millisecond.

What it says means nothing: it is for trying many requests. Part of scripts/clients.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH = 64
HEADS = 2
FFN = 128
CONTEXT = 512


def write(path: Path, starter: Path) -> Path:
    """The file; `starter` is the model whose vocabulary and chat template it gets."""
    reader = gguf.GGUFReader(starter)
    vocabulary = len(reader.fields["tokenizer.ggml.tokens"].data)
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    writer.add_name("small, random weights")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    rng = np.random.default_rng(1)
    writer.add_tensor("token_embd.weight", _random(rng, vocabulary, WIDTH))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", _random(rng, WIDTH, WIDTH))
    for name in ("ffn_gate", "ffn_up"):
        writer.add_tensor(f"blk.0.{name}.weight", _random(rng, FFN, WIDTH))
    writer.add_tensor("blk.0.ffn_down.weight", _random(rng, WIDTH, FFN))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _random(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return rng.normal(0, 0.3, (rows, columns)).astype(np.float32)
