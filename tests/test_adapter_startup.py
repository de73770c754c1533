"""What is settled of adapters before anything starts, and the one line that refuses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny_bert
import tiny_lora
from lbhost import model
from lbhost.adapters import Adapter
from lbhost.config import Settings
from lbhost.doctor import checkup
from lbhost.doctor.findings import Level
from lbhost.errors import LbhostError, ModelChangedError
from lbhost.machine import topology
from lbhost.model_entry import ModelEntry
from lbhost.supervisor import model_startup
from lbhost.supervisor.model_startup import Found
from lbhost.weights import unchanged
from supervising import write_box


@pytest.fixture
def found(tmp_path: Path) -> Found:
    roots = write_box(tmp_path, 2)
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    return Found(environ, roots, topology.discover(roots, {0, 1}), (), gpu_capable=False)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return tiny_lora.write(tmp_path / "good.gguf", base(), targets=("0.attn_q.weight",))


def base() -> Path:
    return Path(model.resolve("starter").path)


def chat(*adapters: Adapter, **values: Any) -> ModelEntry:
    return ModelEntry(**{"name": "chat", "path": "starter", "adapters": adapters, **values})


def refusal(box: Found, **settings: Any) -> str:
    with pytest.raises(LbhostError) as caught:
        model_startup.find(Settings(probe=False, **settings), box, ())
    assert "\n" not in caught.value.message
    return caught.value.message


def test_adapters_are_found_checked_and_counted_as_weights(found: Found, good: Path) -> None:
    wanted = (Adapter(name="a", path=str(good), scale=0.5), Adapter(name="b", path=str(good)))
    settings = Settings(probe=False, models=(chat(*wanted), chat(name="plain")))
    made, plain = model_startup.find(settings, found, ())
    assert [(one.name, one.scale, one.file.path) for one in made.adapters] == [
        ("a", 0.5, str(good)),
        ("b", 1.0, str(good)),
    ]
    assert made.weights_bytes == plain.weights_bytes + good.stat().st_size, "one file, loaded once"
    assert plain.adapters == ()
    good.write_bytes(good.read_bytes())
    with pytest.raises(ModelChangedError, match="lbhost reload"), unchanged(made.files):
        pass


def test_one_that_cannot_be_is_refused_by_its_table_and_name(
    found: Found, good: Path, tmp_path: Path
) -> None:
    other = tiny_lora.write(tmp_path / "o.gguf", base(), architecture="qwen2")
    fine = Adapter(name="fine", path=str(good))
    for path, said in (
        ("/nowhere/x.gguf", "model /nowhere/x.gguf does not exist"),
        (str(base()), "it is no LoRA adapter: general.type is "),
        (str(other), "it is for another model: for 'qwen2', and this is 'llama'"),
    ):
        bad = Adapter(name="bad", path=path)
        message = refusal(found, models=(chat(), chat(fine, bad, name="two")))
        assert message.startswith("models[1].adapters: 'bad': ")
        assert said in message


def test_the_doctor_checks_and_counts_them(good: Path, tmp_path: Path) -> None:
    environ = {
        "XDG_CACHE_HOME": str(tmp_path),
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(tmp_path),
    }
    wanted = tuple(Adapter(name=name, path=str(good)) for name in ("pirate", "buccaneer"))
    plain, with_them, missing = (
        checkup.examine(Settings(probe=False, ctx_size=64, adapters=some), environ)
        for some in ((), wanted, (Adapter(name="poet", path="/nowhere/x.gguf"),))
    )
    assert plain.need_bytes is not None
    assert with_them.need_bytes == plain.need_bytes + good.stat().st_size
    assert "with the LoRA adapters pirate, buccaneer" in with_them.start[-1]
    (problem,) = (one for one in missing.findings if one.level is Level.PROBLEM)
    assert problem.text == "--adapters 'poet': model /nowhere/x.gguf does not exist"


def test_an_adapter_is_not_called_like_the_single_models_file(found: Found, good: Path) -> None:
    alias = model.resolve("starter").alias
    message = refusal(found, adapters=(Adapter(name=alias, path=str(good)),))
    assert message == f"--adapters {alias!r}: the model itself is called so"


def test_only_models_that_generate_text_have_adapters(
    found: Found, good: Path, tmp_path: Path
) -> None:
    vectors = tiny_bert.write(tmp_path / "bert.gguf")
    one = chat(Adapter(name="a", path=str(good)), path=str(vectors))
    assert refusal(found, models=(one,)) == (
        "models[0].adapters: 'a': only models that generate text can have adapters"
    )
