"""LoRA adapters for tests: random low-rank matrices for a model that is there.

Their text means nothing, but it is a real adapter's: another one than the model's own. With much
stronger ones what a model says depends on how a batch is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

RANK = 4


def write(
    path: Path,
    base: Path,
    *,
    seed: int = 1,
    strength: float = 0.3,
    targets: Sequence[str] = ("attn_q.weight", "attn_v.weight", "ffn_down.weight"),
    kind: str = "adapter",
    adapter: str = "lora",
    architecture: str | None = None,
    alpha: float | int = float(RANK),
    widen: int = 0,
) -> Path:
    """An adapter of these tensors of every layer of `base`.

    Args:
        strength: of what it adds, relative to the root mean square of what is there.
        widen: so many numbers too many in the rows of its first matrices: for another model.
    """
    reader = gguf.GGUFReader(base)
    own = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(path, architecture or own, use_temp_file=False)
    writer.add_type(kind)
    writer.add_string("adapter.type", adapter)
    if isinstance(alpha, float):
        writer.add_float32("adapter.lora.alpha", alpha)
    else:
        writer.add_uint32("adapter.lora.alpha", alpha)
    rng = np.random.default_rng(seed)
    for tensor in reader.tensors:
        if not tensor.name.endswith(tuple(targets)):
            continue
        columns, rows = (int(length) for length in tensor.shape)
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        scale = strength * float(np.sqrt(np.mean(weights**2))) / RANK**0.5
        a = rng.normal(0.0, 1.0, (RANK, columns + widen))
        b = rng.normal(0.0, scale, (rows, RANK))
        writer.add_tensor(f"{tensor.name}.lora_a", a.astype(np.float32))
        writer.add_tensor(f"{tensor.name}.lora_b", b.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
