"""[[models]]: what a table may say, what is refused, and what comes out for each model."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbhost import setting_sources
from lbhost.config import Settings
from lbhost.errors import UsageError
from lbhost.model_entry import MOST_MODELS
from lbhost.purpose import KindChoice

TWO = """
slots = 6
[[models]]
name = "chat"
path = "starter"
aliases = ["gpt-4o", "default"]
workers = 2
[[models]]
name = "vectors"
path = "/m/minilm.gguf"
kind = "embedding"
slots = 8
min_workers = 1
max_workers = 3
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "lbhost.toml"
    path.write_text(text)
    return path


def refusal(tmp_path: Path, text: str, flags: dict[str, object] | None = None) -> str:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        setting_sources.load(flags or {}, {}, path)
    assert "\n" not in caught.value.message
    return caught.value.message.replace(f"{path}", "FILE")


def tables(*more: str, first: str = "") -> str:
    """Two good tables, with more lines in the second one or the first."""
    lines = ["[[models]]", 'name = "a"', 'path = "a.gguf"', first]
    return "\n".join([*lines, "[[models]]", 'name = "b"', 'path = "b.gguf"', *more])


def test_each_model_has_the_servers_settings_and_its_own(tmp_path: Path) -> None:
    settings = setting_sources.load({"nice": "7"}, {}, write(tmp_path, TWO))
    chat, vectors = settings.served()
    assert (chat.alias, chat.model, chat.slots, chat.workers) == ("chat", "starter", 6, 2)
    assert (vectors.alias, vectors.model, vectors.slots) == ("vectors", "/m/minilm.gguf", 8)
    assert (vectors.workers, vectors.min_workers, vectors.max_workers) == ("auto", 1, 3)
    assert vectors.kind is KindChoice.EMBEDDING
    assert chat.aliases == ("gpt-4o", "default")
    assert vectors.aliases == ()
    assert chat.nice == vectors.nice == 7
    assert chat.models == vectors.models == ()


def test_without_tables_there_is_the_one_model_of_the_settings() -> None:
    settings = Settings(model="x.gguf", aliases="y, z")
    assert settings.served() == (settings,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (tables("workers = 0"), "FILE: models[1].workers: expected int >= 1 or 'auto', got 0"),
        (tables('workers = "all"'), "models[1].workers: expected int or 'auto', got 'all'"),
        (tables("slots = 100"), "FILE: models[1].slots: expected int <= 64, got 100"),
        (tables('kind = "text"'), "FILE: models[1].kind: expected one of auto, chat, embedding"),
        (tables("worker = 1"), "models[1].worker: unknown key; did you mean 'workers'?"),
        (tables("port = 1"), "models[1].port: is the whole server's: write it above the first"),
        ('[[models]]\nname = "a\\nb"\npath = "x"', "models[0].name: expected printable characters"),
        ('[[models]]\nname = " "\npath = "x"', "no spaces around them, got ' '"),
        (tables('aliases = "b2,\\u001b[1m"'), "models[1].aliases: expected printable characters"),
        (tables(f'aliases = ["{"x" * 999}"]'), "xxx… (1001 characters)"),
        (tables('aliases = ["a"]'), "models[1].aliases: 'a' is a name of models[0] too"),
        (tables(first='aliases = ["b"]'), "models[1].name: 'b' is a name of models[0] too"),
        (tables('memory_limit = "much"'), "models[1]: memory_limit is 'none' or a size"),
        (
            tables("min_workers = 3", "max_workers = 2"),
            "FILE: models[1]: min_workers (3) must not be above max_workers (2)",
        ),
        (tables("workers = 3", "max_workers = 2"), "FILE: models[1]: workers (3) must be from"),
        (tables("weight = 0"), "FILE: models[1].weight: expected number >= 0.01, got 0"),
        ('[[models]]\npath = "x"', "FILE: models[0].name: missing"),
        ('[[models]]\nname = "x"', "FILE: models[0].path: missing"),
        ('[[models]]\nname = ""\npath = "x"', "models[0].name: expected str of length >= 1"),
        ("models = 3", "FILE: models: expected tables, each under a line [[models]]"),
        ("models = []", f"FILE: models: expected 1 to {MOST_MODELS}, got 0"),
        (
            "\n".join(f'[[models]]\nname = "m{i}"\npath = "x"' for i in range(MOST_MODELS + 1)),
            f"FILE: models: expected 1 to {MOST_MODELS}, got {MOST_MODELS + 1}",
        ),
        ('model = "x"\n' + TWO, "FILE: model: [[models]] of FILE names the models"),
    ],
)
def test_a_table_that_is_no_good_is_refused_by_key_and_reason(
    tmp_path: Path, text: str, said: str
) -> None:
    assert said in refusal(tmp_path, text)


@pytest.mark.parametrize("key", ["model", "alias", "aliases", "kind", "pooling"])
def test_what_each_table_says_for_itself_is_no_flag_beside_them(tmp_path: Path, key: str) -> None:
    value = {"kind": "chat", "pooling": "mean"}.get(key, "x")
    message = refusal(tmp_path, TWO, {key: value})
    assert message == f"--{key}: [[models]] of FILE names the models: leave this out"


def test_tables_come_from_a_file_only() -> None:
    with pytest.raises(UsageError, match="LBHOST_MODELS: models are tables"):
        setting_sources.load({}, {"LBHOST_MODELS": "x"})
