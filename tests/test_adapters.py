"""Adapters in settings: what a table or a flag may say, and the one line that refuses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbhost import setting_sources
from lbhost.adapters import MOST_ADAPTERS, Adapter
from lbhost.config import Settings
from lbhost.errors import UsageError
from lbhost.supervisor import changes
from lbhost.supervisor.changes import How

MODEL = """
[[models]]
name = "chat"
aliases = ["gpt"]
path = "starter"
"""
TWO = """
[[models.adapters]]
name = "pirate"
path = "pirate.gguf"
scale = 0.5
[[models.adapters]]
name = "poet"
path = "poet.gguf"
"""
BOTH = (
    Adapter(name="pirate", path="pirate.gguf", scale=0.5),
    Adapter(name="poet", path="poet.gguf"),
)


def load(tmp_path: Path, text: str = "", **flags: str) -> Settings:
    path = tmp_path / "lbhost.toml"
    path.write_text(text)
    return setting_sources.load(flags, {}, path)


def refusal(tmp_path: Path, text: str = "", **flags: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text, **flags)
    assert "\n" not in caught.value.message
    return caught.value.message.replace(f"{tmp_path}/lbhost.toml", "FILE")


def test_a_models_tables_are_its_adapters(tmp_path: Path) -> None:
    text = MODEL + TWO + '[[models]]\nname = "other"\npath = "starter"\n'
    chat, other = load(tmp_path, text).served()
    assert (chat.adapters, other.adapters) == (BOTH, ())


def test_the_single_model_has_them_by_flag_variable_table_or_text(tmp_path: Path) -> None:
    flag = "pirate=pirate.gguf:0.5, poet=poet.gguf"
    assert load(tmp_path, adapters=flag).adapters == BOTH
    assert setting_sources.load({}, {"LBHOST_ADAPTERS": flag}).adapters == BOTH
    assert load(tmp_path, TWO.replace("models.", "")).adapters == BOTH
    assert load(tmp_path, 'adapters = ["pirate=pirate.gguf:.5", "poet=poet.gguf"]').adapters == BOTH


def test_a_colon_that_no_number_follows_is_the_paths(tmp_path: Path) -> None:
    (one,) = load(tmp_path, adapters="x=hf:some/repo:file.gguf").adapters
    assert (one.path, one.scale) == ("hf:some/repo:file.gguf", 1.0)
    (one,) = load(tmp_path, adapters="x=hf:some/repo:file.gguf:-2").adapters
    assert (one.path, one.scale) == ("hf:some/repo:file.gguf", -2.0)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('path = "x.gguf"', "adapters[0].name: missing"),
        ('name = "x"', "adapters[0].path: missing"),
        ('name = ""\npath = "x"', "adapters[0].name: expected str of length >= 1, got ''"),
        ('name = "x "\npath = "x"', "adapters[0].name: expected printable characters"),
        (
            'name = "x"\npath = "x"\nscale = nan',
            "adapters[0].scale: expected a number from -1000 to",
        ),
        (
            'name = "x"\npath = "x"\nscale = inf',
            "adapters[0].scale: expected a number from -1000 to",
        ),
        ('name = "x"\npath = "x"\nscale = "big"', "adapters[0].scale: expected number"),
        ('name = "x"\npath = "x"\nscal = 2', "adapters[0].scal: unknown key; did you mean 'scale'"),
        ('name = "x"\npath = "x"\nworkers = 2', "adapters[0].workers: is the model's: write it ab"),
        ('name = "gpt"\npath = "x"', "adapters[0].name: 'gpt' is a name of models[0] too"),
        ('name = "chat"\npath = "x"', "adapters[0].name: 'chat' is a name of models[0] too"),
    ],
)
def test_a_table_that_is_no_good_is_named_with_its_key(
    tmp_path: Path, table: str, said: str
) -> None:
    message = refusal(tmp_path, f"{MODEL}[[models.adapters]]\n{table}\n")
    assert message.startswith(f"FILE: models[0].{said}")


def test_names_are_of_one_model_or_adapter_only(tmp_path: Path) -> None:
    twice = TWO.replace("poet", "pirate")
    said = (
        "FILE: models[0].adapters[1].name: 'pirate' is the name of FILE: models[0].adapters[0] too"
    )
    assert refusal(tmp_path, MODEL + twice) == said
    other = MODEL + TWO + '[[models]]\nname = "poet"\npath = "starter"\n'
    assert refusal(tmp_path, other) == "FILE: models[1].name: 'poet' is a name of models[0] too"
    clash = refusal(tmp_path, alias="x", adapters="x=a.gguf")
    assert clash == "--adapters: adapters[0].name: 'x' is there already"


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("x.gguf", "--adapters[0]: expected NAME=PATH[:SCALE], got 'x.gguf'"),
        ("a=x.gguf:nan", "--adapters[0].scale: expected a number from -1000 to 1000, got nan"),
        ("a=x:1e30", "--adapters[0].scale: expected a number from -1000 to 1000, got 1e+30"),
        ("=x.gguf", "--adapters[0].name: expected str of length >= 1, got ''"),
        ("a=", "--adapters[0].path: expected str of length >= 1, got ''"),
        ("a=x,a=y", "--adapters[1].name: 'a' is the name of --adapters[0] too"),
        (
            ",".join(f"a{i}=x" for i in range(MOST_ADAPTERS + 1)),
            f"--adapters: expected at most {MOST_ADAPTERS}, got {MOST_ADAPTERS + 1}",
        ),
    ],
)
def test_a_flag_that_is_no_good_is_said_in_a_line(tmp_path: Path, flag: str, said: str) -> None:
    assert refusal(tmp_path, adapters=flag) == said


def test_several_models_have_theirs_in_their_tables_only(tmp_path: Path) -> None:
    message = refusal(tmp_path, MODEL, adapters="a=x.gguf")
    assert message.startswith("--adapters: [[models]] of FILE names the models")


def test_another_adapter_is_a_change_that_a_new_server_brings(tmp_path: Path) -> None:
    before = load(tmp_path, adapters="a=x.gguf")
    after = load(tmp_path, adapters="a=x.gguf:0.5")
    (change,) = changes.plan(before, after).changes
    assert (change.key, change.how) == ("adapters", How.HANDOVER)
    assert str(change) == "adapters: a=x.gguf:1 -> a=x.gguf:0.5 (handover)"
