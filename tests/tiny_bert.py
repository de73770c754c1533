"""A BERT of random weights, small enough to be written and loaded in a blink.

Its vectors mean nothing, but they are a real model's: they depend on every token, on its place and
on nothing else.
"""

from __future__ import annotations

import string
from pathlib import Path

import gguf
import numpy as np

WIDTH = 64
LAYERS = 2
HEADS = 2
FFN = 128
CONTEXT = 256

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LETTERS = string.ascii_lowercase + string.digits + ".,!?-"
TOKENS = (*_SPECIAL, *(f"\u2581{one}" for one in _LETTERS), *_LETTERS)
CLS, SEP = 2, 3


def write(path: Path, pooling: gguf.PoolingType = gguf.PoolingType.MEAN) -> Path:
    """The model's file; with PoolingType.RANK it has a head that ranks."""
    writer = gguf.GGUFWriter(path, "bert", use_temp_file=False)
    writer.add_name("tiny BERT, random weights")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(list(TOKENS))
    writer.add_token_types([3] * len(_SPECIAL) + [1] * (len(TOKENS) - len(_SPECIAL)))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(CLS)
    writer.add_sep_token_id(SEP)
    writer.add_mask_token_id(4)
    rng = np.random.default_rng(7)
    for name, shape in _tensors(rank=pooling is gguf.PoolingType.RANK):
        if "norm.weight" in name:
            data = np.ones(shape)
        else:
            data = rng.normal(0.0, 0.3 if len(shape) > 1 else 0.05, shape)
        writer.add_tensor(name, data.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(*, rank: bool) -> list[tuple[str, tuple[int, ...]]]:
    found: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (len(TOKENS), WIDTH)),
        ("token_types.weight", (2, WIDTH)),
        ("position_embd.weight", (CONTEXT, WIDTH)),
        *_with_bias("token_embd_norm", (WIDTH,)),
    ]
    for layer in range(LAYERS):
        for name, shape in (
            ("attn_q", (WIDTH, WIDTH)),
            ("attn_k", (WIDTH, WIDTH)),
            ("attn_v", (WIDTH, WIDTH)),
            ("attn_output", (WIDTH, WIDTH)),
            ("attn_output_norm", (WIDTH,)),
            ("ffn_up", (FFN, WIDTH)),
            ("ffn_down", (WIDTH, FFN)),
            ("layer_output_norm", (WIDTH,)),
        ):
            found += _with_bias(f"blk.{layer}.{name}", shape)
    if rank:
        found += _with_bias("cls", (WIDTH, WIDTH))
        found += _with_bias("cls.output", (1, WIDTH))
    return found


def _with_bias(name: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    return [(f"{name}.weight", shape), (f"{name}.bias", shape[:1])]
