"""Adapters that do not fit their model are found before llama.cpp has to believe them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

import tiny_lora
from lbhost import inspection, model
from lbhost.adapter_fit import Header, problem
from lbhost.errors import AdapterFileError
from lbhost.gguf import Tensor

GOOD = Header("adapter", "lora", "llama", 8.0, says_alpha=True, activated=False)
MODEL = {b"q.weight": (64, 32), b"token_embd.weight": (64, 1000), b"experts.weight": (64, 32, 4)}


def pair(name: bytes, a: tuple[int, ...], b: tuple[int, ...], kind: int = 0) -> list[Tensor]:
    return [Tensor(name + b".lora_a", a, kind, 0), Tensor(name + b".lora_b", b, kind, 0)]


Q = pair(b"q.weight", (64, 8), (8, 32))


@pytest.mark.parametrize(
    "tensors",
    [
        Q,
        [*Q, Tensor(b"attn_norm.weight", (64,), 0, 0)],
        pair(b"q.weight", (64, 8), (8, 32), kind=1),
        pair(b"token_embd.weight", (8, 1000), (8, 64)),
        pair(b"experts.weight", (64, 8, 4), (8, 32, 4)),
    ],
)
def test_what_llama_cpp_can_compute_with_fits(tensors: list[Tensor]) -> None:
    assert problem(GOOD, tensors, "llama", MODEL) is None
    quiet = msgspec.structs.replace(GOOD, alpha=None, says_alpha=False)
    assert problem(quiet, tensors, "llama", MODEL) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "model"}, "it is no LoRA adapter: general.type is 'model'"),
        ({"kind": None}, "it is no LoRA adapter: general.type is None"),
        (
            {"adapter": "cvec"},
            "it is no LoRA adapter: general.type is 'adapter', adapter.type 'cvec'",
        ),
        ({"architecture": "qwen2"}, "it is for another model: for 'qwen2', and this is 'llama'"),
        ({"alpha": None}, "adapter.lora.alpha is no finite float32"),
        ({"alpha": float("nan")}, "adapter.lora.alpha is no finite float32"),
        ({"activated": True}, "it is an activated one (aLoRA), which is not supported"),
    ],
)
def test_a_header_of_something_else_is_refused(changes: dict[str, Any], said: str) -> None:
    header = msgspec.structs.replace(GOOD, **changes)
    assert problem(header, Q, "llama", MODEL) == said


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ([], "it changes nothing"),
        ([Tensor(b"attn_norm.weight", (64,), 0, 0)], "it changes nothing"),
        (Q[:1], "half of its pair for q.weight is missing"),
        ([*Q, Tensor(b"q.weight", (64, 32), 0, 0)], "its tensor q.weight is no part of a LoRA"),
        (
            pair(b"q.weight", (64, 8), (8, 32), kind=26),
            "its tensor q.weight.lora_a is in none of F32",
        ),
        (pair(b"k.weight", (64, 8), (8, 32)), "it is for another model: this one has no tensor k"),
        (pair(b"q.weight", (32, 8), (8, 32)), "it is for another model: q.weight is 64 x 32 here"),
        (pair(b"q.weight", (64, 8), (8, 64)), "it is for another model: q.weight is 64 x 32 here"),
        (pair(b"q.weight", (64, 8), (4, 32)), "it is for another model: q.weight is 64 x 32 here"),
        (pair(b"q.weight", (64, 8, 2), (8, 32, 2)), "it is for another model: q.weight is 64 x 32"),
        (pair(b"token_embd.weight", (4, 1000), (8, 64)), "it is for another model: token_embd"),
        (pair(b"token_embd.weight", (64, 8), (8, 1000)), "it is for another model: token_embd"),
        (
            pair(b"experts.weight", (64, 8), (8, 32)),
            "it is for another model: experts.weight is 64",
        ),
    ],
)
def test_tensors_that_the_model_cannot_be_changed_by_are_refused(
    tensors: list[Tensor], said: str
) -> None:
    found = problem(GOOD, tensors, "llama", MODEL)
    assert found is not None
    assert found.startswith(said)


def test_files_are_checked_by_a_process_that_says_which_is_no_good(tmp_path: Path) -> None:
    base = Path(model.resolve("starter").path)
    good = str(tiny_lora.write(tmp_path / "good.gguf", base))
    inspection.inspect_adapters(base, [good, good])
    wide = tiny_lora.write(tmp_path / "wide.gguf", base, widen=64)
    typed = tiny_lora.write(tmp_path / "typed.gguf", base, alpha=4)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(Path(good).read_bytes()[:-4096])
    for bad, said in (
        (wide, "it is for another model: blk.0.attn_q.weight is 576 x 576 here"),
        (typed, "adapter.lora.alpha is no finite float32"),
        (cut, "truncated"),
        (base, "it is no LoRA adapter"),
        (tmp_path / "none.gguf", "no such model file"),
    ):
        with pytest.raises(AdapterFileError) as caught:
            inspection.inspect_adapters(base, [good, str(bad), good])
        assert caught.value.place == 1
        assert caught.value.message.startswith(f"{bad}: ")
        assert said in caught.value.message
