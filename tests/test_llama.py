"""Reading model files: what inspect says of good ones, and its one line about bad ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lbhost.errors import ModelFileError
from lbhost.llama import Vocab, inspect
from lbhost.model import resolve

STARTER = Path(resolve("starter").path)


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return Vocab.load(STARTER)


def test_inspect_reads_the_shape_of_a_model() -> None:
    info = inspect(STARTER)
    assert (info.architecture, info.n_ctx_train, info.n_vocab) == ("llama", 8192, 49152)
    assert (info.n_layer, info.n_embd, info.n_head) == (30, 576, 9)
    assert info.kv_bytes_per_token == 30 * 3 * (64 + 64) * 2
    assert 90_000_000 < info.weights_bytes < STARTER.stat().st_size
    assert not info.recurrent


def _first_bytes(count: int, tmp_path: Path) -> Path:
    cut = tmp_path / "cut.gguf"
    with STARTER.open("rb") as whole:
        cut.write_bytes(whole.read(count))
    return cut


@pytest.mark.parametrize("count", [8, 24, 50, 100_000, 3_000_000])
def test_a_truncated_file_is_refused(count: int, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="truncated") as caught:
        inspect(_first_bytes(count, tmp_path))
    assert "\n" not in caught.value.message


def test_a_file_that_lacks_only_its_last_byte_is_refused(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with STARTER.open("rb") as whole:
        cut.write_bytes(whole.read(100_000_000)[:-1])
    with pytest.raises(ModelFileError, match="truncated: 98362431 bytes of at least 98362432"):
        inspect(cut)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such model file"):
        inspect(tmp_path / "none.gguf")
    with pytest.raises(ModelFileError, match="no such model file"):
        Vocab.load(tmp_path / "none.gguf")


def test_a_file_of_another_kind_is_refused() -> None:
    with pytest.raises(ModelFileError, match="not a GGUF file"):
        inspect(__file__)


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    strange = tmp_path / "strange.gguf"
    key = b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0"
    data = STARTER.read_bytes()
    assert key + b"llama" in data[:4096]
    strange.write_bytes(data.replace(key + b"llama", key + b"lxama", 1))
    with pytest.raises(ModelFileError, match="unknown model architecture: 'lxama'"):
        inspect(strange)


def test_a_missing_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"name the first part, m-00001-of-00002\.gguf"):
        inspect(tmp_path / "m-00002-of-00002.gguf")
    first = tmp_path / "m-00001-of-00002.gguf"
    first.symlink_to(STARTER)
    with pytest.raises(ModelFileError, match=r"m-00002-of-00002\.gguf: no such model file"):
        inspect(first)


def test_tokens_join_to_the_text_they_came_from(vocab: Vocab) -> None:
    text = "Zażółć gęślą jaźń 😀 — naïve\n\ttabs"
    tokens = vocab.tokenize(text, add_bos=False, parse_special=False)
    assert b"".join(vocab.piece(t) for t in tokens).decode() == text


def test_special_tokens_are_parsed_only_on_request_and_render_as_nothing(vocab: Vocab) -> None:
    assert vocab.tokenize("<|im_end|>", add_bos=False, parse_special=True) == [vocab.eos]
    assert len(vocab.tokenize("<|im_end|>", add_bos=False, parse_special=False)) > 1
    assert vocab.eos is not None
    assert vocab.piece(vocab.eos) == b""
    assert vocab.is_eog(vocab.eos)
    assert not vocab.is_eog(100)


def test_the_vocabulary_knows_its_model(vocab: Vocab) -> None:
    assert vocab.n_tokens == 49152
    assert (vocab.bos_text, vocab.eos_text) == ("<|im_start|>", "<|im_end|>")
    assert not vocab.add_bos
    assert vocab.chat_template is not None
    assert "im_start" in vocab.chat_template


def test_diskcache_and_numpy_are_never_imported() -> None:
    code = "import sys, lbhost.llama; print({'diskcache', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
