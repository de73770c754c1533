"""Models as lbhost needs them: what a file says of itself, vocabularies, weights.

Gateway (vocabulary), supervisor (`inspect`), fork server and workers use it. Owns loaded models;
starts no thread and makes no context (worker/context.py does).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from lbhost import amx, flash, hyperparameters, weights
from lbhost.adapters import AdapterFile, distinct
from lbhost.errors import ModelDamagedError, ModelFileError
from lbhost.gguf_file import GgufFile
from lbhost.llamacpp import api as api  # re-exported for tools that need more of llama.h
from lbhost.llamacpp import collect_errors, reason_of
from lbhost.purpose import Facts, KindChoice, PoolingChoice, Purpose, judge


def system_info() -> str:
    """llama.cpp's line about its build ("AVX2 = 1 | …"), and what that leaves out."""
    line: str = api.llama_print_system_info().decode()
    return line + f"AVX512_FP16 = {flash.uses_fp16_vectors():d} | "


def supports_gpu() -> bool:
    """Whether llama_cpp was built with a GPU backend and finds it usable."""
    return bool(api.llama_supports_gpu_offload())


class ModelInfo(msgspec.Struct, frozen=True):
    """What a GGUF file says about itself."""

    path: str
    name: str
    architecture: str
    weights_bytes: int
    n_ctx_train: int
    n_vocab: int
    n_layer: int
    n_embd: int
    n_head: int
    kv_bytes_per_token: int
    """Of an f16 KV cache, all layers; an upper bound for models with sliding windows."""
    recurrent: bool
    """Whether any layer keeps a state that cannot be cut at a position (Mamba, RWKV, hybrids)."""
    parameters: int = 0
    format_number: int = -1
    """The weights' format, one of llama.cpp's `llama_ftype`; -1 if the file does not say."""
    purpose: Purpose = Purpose()


def inspect(
    path: str | Path,
    kind: KindChoice = KindChoice.AUTO,
    pooling: PoolingChoice = PoolingChoice.AUTO,
) -> ModelInfo:
    """Read a GGUF's header and vocabulary, and check that the file holds all its tensors.

    Costs some 100 ms; no weights are read.

    Raises:
        ModelFileError: missing, not GGUF, truncated, an unknown architecture, or a model that
            cannot be served (as that kind). One line.
    """
    path = Path(path)
    with collect_errors() as errors:
        files = [GgufFile(part, errors) for part in weights.parts(path)]
    header = files[0]
    arch = header.text("general.architecture") or "?"
    if (why := hyperparameters.problem(header, arch)) is not None:
        raise ModelDamagedError(f"{path}: damaged: {why}, which cannot be")
    with _vocab_only(path) as model:
        recurrent = bool(api.llama_model_is_recurrent(model) or api.llama_model_is_hybrid(model))
        facts = _facts(model, files, arch)
        n_vocab = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(model)))
    n_layer = header.number(f"{arch}.block_count") or 0
    n_embd = header.number(f"{arch}.embedding_length") or 0
    heads = header.numbers(f"{arch}.attention.head_count", n_layer) or [1] * n_layer
    n_head = max(heads, default=1) or 1
    kv_heads = header.numbers(f"{arch}.attention.head_count_kv", n_layer) or heads
    key = header.number(f"{arch}.attention.key_length") or n_embd // n_head
    value = header.number(f"{arch}.attention.value_length") or n_embd // n_head
    number = header.number("general.file_type")
    info = ModelInfo(
        path=str(path),
        name=header.text("general.name") or path.stem,
        architecture=arch,
        weights_bytes=sum(part.tensor_bytes for part in files),
        n_ctx_train=header.number(f"{arch}.context_length") or 0,
        n_vocab=n_vocab,
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head,
        kv_bytes_per_token=sum(kv_heads) * (key + value) * 2 if facts.causal else 0,
        recurrent=recurrent,
        parameters=sum(part.parameters for part in files),
        format_number=-1 if number is None else number,
    )
    for part in files:
        part.close()
    return msgspec.structs.replace(info, purpose=judge(path, facts, kind, pooling))


def _facts(model: Any, files: list[GgufFile], arch: str) -> Facts:
    header = files[0]
    return Facts(
        architecture=arch,
        pooling=header.number(f"{arch}.pooling_type"),
        causal=header.number(f"{arch}.attention.causal") != 0,
        has_classifier=any(part.has_tensor(f"cls{of}.weight") for part in files for of in _HEADS),
        has_encoder=bool(api.llama_model_has_encoder(model)),
        has_decoder=bool(api.llama_model_has_decoder(model)),
        is_diffusion=bool(api.llama_model_is_diffusion(model)),
        width=header.number(f"{arch}.embedding_length_out")
        or header.number(f"{arch}.embedding_length")
        or 0,
    )


_HEADS = ("", ".output")
"""The tensors of a classification head; a model has one or both."""


@contextlib.contextmanager
def _vocab_only(path: Path) -> Iterator[Any]:
    model = _load(path, vocab_only=True)
    try:
        yield model
    finally:
        api.llama_model_free(model)


def _load(path: Path, *, vocab_only: bool = False, gpu: bool = False) -> Any:
    """A llama_model pointer. Raises ModelFileError."""
    if not path.is_file():
        raise ModelFileError(f"{path}: no such model file")
    params = api.llama_model_default_params()
    params.vocab_only = vocab_only
    # Read, not mapped: a file that is overwritten later would change or end every worker.
    params.load_mode = api.LLAMA_LOAD_MODE_NONE
    params.use_extra_bufts = not vocab_only
    params.n_gpu_layers = 999 if gpu else 0
    no_devices = (ctypes.c_void_p * 1)(None)
    if not gpu:
        params.devices = ctypes.addressof(no_devices)
    with collect_errors() as errors:
        model = api.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ModelFileError(f"{path}: llama.cpp cannot load it{reason_of(errors)}")
    return model


class Vocab:
    """A model's tokens. `load` reads nothing else of the file; `Model.vocab` shares its model."""

    def __init__(self, model: Any, *, owned: bool) -> None:
        self._model = model
        self._owned = owned
        self.handle: Any = api.llama_model_get_vocab(model)
        self.n_tokens = int(api.llama_vocab_n_tokens(self.handle))
        self.add_bos = bool(api.llama_vocab_get_add_bos(self.handle))
        self.bos = _token(api.llama_vocab_bos(self.handle))
        self.eos = _token(api.llama_vocab_eos(self.handle))
        self.bos_text = self.special_text(self.bos)
        self.eos_text = self.special_text(self.eos)
        self.chat_template = _template(model, None)
        self.rerank_template = _template(model, b"rerank")
        self.uses_regex = _splits_with_regex(model, self.handle)
        """Whether llama.cpp may go deep into its stack for a long text (std::regex)."""
        self._buffer = ctypes.create_string_buffer(256)

    @classmethod
    def load(cls, path: str | Path) -> Vocab:
        """Only the vocabulary of a GGUF, in some 100 ms.

        Raises:
            ModelFileError: llama.cpp cannot load it.
        """
        return cls(_load(Path(path), vocab_only=True), owned=True)

    def close(self) -> None:
        """Free the model, if this vocabulary owns it. The object is unusable after."""
        if self._owned:
            api.llama_model_free(self._model)
            self._owned = False

    def tokenize(self, text: str, *, add_bos: bool, parse_special: bool) -> list[int]:
        """Token ids of a text; `parse_special` reads "<|im_end|>" as that token, not as text.

        `add_bos` asks for what the model wants at the start: a BOS only where its file says so.
        """
        data = text.encode()
        room = len(data) + 2
        for _ in range(2):
            tokens = (ctypes.c_int32 * room)()
            count = api.llama_tokenize(
                self.handle, data, len(data), tokens, room, add_bos, parse_special
            )
            if count >= 0:
                return list(tokens[:count])
            room = -count
        raise ValueError("llama_tokenize cannot settle on a size")

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """A token's bytes, maybe an incomplete UTF-8 sequence.

        Control tokens are b"", or with `special` as they are written ("<|im_end|>").
        """
        size = api.llama_token_to_piece(
            self.handle, token, self._buffer, len(self._buffer), 0, special
        )
        if size < 0:
            self._buffer = ctypes.create_string_buffer(-size)
            return self.piece(token, special=special)
        return self._buffer.raw[:size]

    @functools.cached_property
    def pair_marks(self) -> tuple[list[int], list[int], list[int]]:
        """What a reranker wants before a query, between that and a document, and at the end."""
        sep = _token(api.llama_vocab_sep(self.handle))
        eos = self.eos if self.eos is not None else sep
        close = [eos] if eos is not None and api.llama_vocab_get_add_eos(self.handle) else []
        apart = [sep] if sep is not None and api.llama_vocab_get_add_sep(self.handle) else []
        begin = [self.bos] if self.bos is not None and self.add_bos else []
        return begin, close + apart, close or apart

    @functools.cached_property
    def infill_tokens(self) -> tuple[int, int, int] | None:
        """What comes before the prefix, the suffix and the middle; None where it is not known."""
        found = (
            _token(api.llama_vocab_fim_pre(self.handle)),
            _token(api.llama_vocab_fim_suf(self.handle)),
            _token(api.llama_vocab_fim_mid(self.handle)),
        )
        prefix, suffix, middle = found
        if prefix is None or suffix is None or middle is None:
            return None
        return prefix, suffix, middle

    @functools.cached_property
    def special_texts(self) -> tuple[str, ...]:
        """Texts that only `parse_special` reads as tokens ("<|im_end|>"), longest first.

        One look at every token: some 20 ms for 50,000, then kept.
        """
        mask = api.LLAMA_TOKEN_ATTR_CONTROL | api.LLAMA_TOKEN_ATTR_UNKNOWN
        attributes = api.llama_vocab_get_attr
        found = {
            self.special_text(token)
            for token in range(self.n_tokens)
            if attributes(self.handle, token) & mask
        }
        return tuple(sorted((text for text in found if text), key=len, reverse=True))

    @functools.cached_property
    def eog_tokens(self) -> tuple[int, ...]:
        """All tokens that end generation."""
        return tuple(t for t in range(self.n_tokens) if self.is_eog(t))

    def is_eog(self, token: int) -> bool:
        """Whether generation ends with this token (EOS, EOT, EOM, …)."""
        return bool(api.llama_vocab_is_eog(self.handle, token))

    def special_text(self, token: int | None) -> str | None:
        """A token as the vocabulary writes it ("<|im_end|>")."""
        if token is None:
            return None
        text = api.llama_vocab_get_text(self.handle, token)
        return text.decode(errors="replace") if text else None


OWN_SPLITTERS = frozenset(
    {
        *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2"),
        *("smaug-bpe", "dbrx", "gpt-2", "phi-2", "mpt", "olmo", "starcoder", "refact"),
        *("command-r", "smollm", "codeshell", "exaone", "exaone4", "qwen2"),
        *("deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"),
    }
)
"""Values of tokenizer.ggml.pre whose patterns llama.cpp has written out by hand, or that match one
character at a time; tests/test_pretokenizers.py holds them to it."""


def _splits_with_regex(model: Any, vocab: Any) -> bool:
    if api.llama_vocab_type(vocab) != api.LLAMA_VOCAB_TYPE_BPE:
        return False
    return not (
        _metadata(model, "tokenizer.ggml.model") == "gpt2"
        and _metadata(model, "tokenizer.ggml.pre") in OWN_SPLITTERS
    )


def _metadata(model: Any, key: str) -> str:
    """A value of the GGUF's header as text, "" when it has none."""
    text = ctypes.create_string_buffer(64)
    api.llama_model_meta_val_str(model, key.encode(), text, len(text))
    return text.value.decode(errors="replace")


def _template(model: Any, name: bytes | None) -> str | None:
    template = api.llama_model_chat_template(model, name)
    return template.decode(errors="replace") if template else None


def _token(token: int) -> int | None:
    return None if token < 0 else int(token)


class Model:
    """A model's weights in memory. Repacks them for the CPU where llama.cpp can.

    Loading starts no thread, so that the fork server may fork afterwards.

    Raises:
        ModelFileError: llama.cpp cannot load it.
    """

    def __init__(
        self, path: str | Path, *, gpu: bool = False, adapters: Sequence[AdapterFile] = ()
    ) -> None:
        """`adapters`: LoRA adapters to load beside it."""
        self.path = str(path)
        self.gpu = gpu
        amx.settle()
        self.handle: Any = _load(Path(path), gpu=gpu)
        self.vocab = Vocab(self.handle, owned=False)
        self.n_ctx_train = int(api.llama_model_n_ctx_train(self.handle))
        self.n_swa = int(api.llama_model_n_swa(self.handle))
        self.weights_bytes = int(api.llama_model_size(self.handle))
        self.n_embd_out = int(api.llama_model_n_embd_out(self.handle))
        self.n_cls_out = int(api.llama_model_n_cls_out(self.handle))
        head_size = self._head_size()
        self.flash_attention = gpu or flash.pays(head_size)
        """Whether contexts should use it where the backend can."""
        self.kv_bytes_per_token = (
            4  # K and V, two bytes each
            * int(api.llama_model_n_layer(self.handle))
            * int(api.llama_model_n_head_kv(self.handle))
            * head_size
        )
        """An estimate, good for judging what a copy costs; ModelInfo's is exact."""
        self.recurrent = bool(
            api.llama_model_is_recurrent(self.handle) or api.llama_model_is_hybrid(self.handle)
        )
        # Before any context is made: its graph has room for those that there are by then.
        loaded = {file: self._adapter(file.path) for file in {one.file: None for one in adapters}}
        self.adapters = [(loaded[one.file], one.scale) for one in distinct(adapters)]
        """llama_adapter_lora pointers, and the scale of each; they go with the model."""

    def _adapter(self, path: str) -> Any:
        with collect_errors() as errors:
            adapter = api.llama_adapter_lora_init(self.handle, os.fsencode(path))
        if not adapter:
            raise ModelFileError(f"{path}: llama.cpp cannot load this adapter{reason_of(errors)}")
        return adapter

    def _head_size(self) -> int:
        """Numbers in one head's key."""
        arch = _metadata(self.handle, "general.architecture")
        key_length = _metadata(self.handle, f"{arch}.attention.key_length")
        if key_length.isdigit():
            return int(key_length)
        heads = max(1, int(api.llama_model_n_head(self.handle)))
        return int(api.llama_model_n_embd(self.handle)) // heads

    def close(self) -> None:
        """Free the weights; contexts made from them must be gone."""
        api.llama_model_free(self.handle)
        self.handle = None
