"""What a changed configuration takes, by key."""

from __future__ import annotations

from typing import Any

import pytest

from lbhost.config import KEYS, Settings
from lbhost.model_entry import ModelEntry
from lbhost.supervisor import changes
from lbhost.supervisor.changes import HOW, How, plan


def test_every_key_is_in_the_table_and_nothing_else() -> None:
    assert set(HOW) == set(KEYS)
    assert [line.split()[0] for line in changes.table()][:2] == ["--model", "--alias"]


def test_only_what_differs_is_a_change() -> None:
    before = Settings(queue_size=7)
    assert plan(before, before).changes == []
    found = plan(before, Settings(queue_size=8, nice=0))
    assert found.lines == ["queue_size: 7 -> 8 (live)", "nice: 5 -> 0 (rolling)"]
    assert found.keys(How.LIVE) == ["queue_size"]
    assert found.keys(How.LIVE, How.ROLLING) == ["queue_size", "nice"]


def test_a_key_is_never_shown() -> None:
    (line,) = plan(Settings(), Settings(api_key="hush-hush-hush")).lines
    assert line == "api_key: none -> one that is not shown (live)"
    assert "hush" not in str(plan(Settings(api_key="hush-hush-hush"), Settings()).changes)


@pytest.mark.parametrize(
    ("before", "after", "how"),
    [
        ({"workers": 2}, {"workers": 3}, How.SCALING),
        ({"workers": "auto"}, {"workers": 3}, How.HANDOVER),
        ({"workers": 2}, {"workers": "auto"}, How.HANDOVER),
        ({"idle_timeout_s": 60.0}, {"idle_timeout_s": 90.0}, How.LIVE),
        ({"idle_timeout_s": 60.0}, {}, How.HANDOVER),
        ({}, {"idle_timeout_s": 60.0}, How.HANDOVER),
        ({"state_cache": "1G"}, {"state_cache": "auto"}, How.LIVE),
        ({"state_cache": 0}, {"state_cache": "1G"}, How.HANDOVER),
        ({"state_cache": "auto"}, {"state_cache": "0"}, How.HANDOVER),
        ({"keys_file": "/a/one.toml"}, {"keys_file": "/a/two.toml"}, How.LIVE),
        ({"keys_file": "/a/keys.toml"}, {}, How.LIVE),
        ({"keys_file": "/a/keys.toml"}, {"keys_file": "/b/keys.toml"}, How.HANDOVER),
        ({}, {"keys_file": "/b/keys.toml"}, How.HANDOVER),
        ({"port": 1}, {"port": 2}, How.RESTART),
    ],
)
def test_some_changes_depend_on_the_values(
    before: dict[str, Any], after: dict[str, Any], how: How
) -> None:
    (change,) = plan(Settings(**before), Settings(**after)).changes
    assert change.how is how


def test_a_model_file_that_was_replaced_is_a_change_of_the_model() -> None:
    same = Settings(model="m.gguf")
    assert plan(same, same, model_changed=True).lines == [
        "model: m.gguf -> another file (handover)"
    ]
    other = plan(same, Settings(model="n.gguf"), model_changed=True)
    assert other.lines == ["model: m.gguf -> n.gguf (handover)"]


def test_other_tables_of_models_are_named_and_take_a_handover() -> None:
    chat = ModelEntry(name="chat", path="starter")
    found = plan(Settings(models=(chat,)), Settings(models=(chat, ModelEntry(name="b", path="b"))))
    assert found.lines == ["models: chat -> chat,b (handover)"]
    wider = ModelEntry(name="chat", path="starter", max_workers=3, weight=2.0, aliases=("a", "b"))
    found = plan(Settings(models=(chat,)), Settings(models=(wider,)))
    assert found.lines == [
        "models.chat.aliases: '' -> a,b (handover)",
        "models.chat.max_workers: default -> 3 (handover)",
        "models.chat.weight: 1.0 -> 2.0 (handover)",
    ]
    assert found.keys(How.HANDOVER) == ["models"]
