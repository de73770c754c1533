"""The file of API keys: what it may say, and how a key gets into it."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lbhost import keys
from lbhost.errors import UsageError

HASH = "sha256:" + "0" * 64


def table(**fields: object) -> str:
    given = {"name": "alice", "hash": HASH, **fields}
    lines = [f"{name} = {value!r}".replace("'", '"') for name, value in given.items()]
    return "\n".join(["[[keys]]", *lines, ""])


def test_a_file_says_what_each_key_may_do(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(
        table(requests_per_minute=60, tokens_per_minute=1000, max_concurrent=2, weight=2)
        + table(name="b.o-b_2", hash=HASH[:-1] + "1", models=["a", "b"], service_tier="flex")
    )
    alice, bob = keys.read(path)
    assert (alice.requests_per_minute, alice.tokens_per_minute) == (60, 1000)
    assert (alice.max_concurrent, alice.weight, alice.models) == (2, 2.0, None)
    assert (bob.name, bob.models, bob.highest_rank) == ("b.o-b_2", ("a", "b"), keys.RANKS["flex"])
    path.write_text("")
    assert keys.read(path) == ()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("key = 1", "key"),
        ("[[keys]", "line 1"),
        ("# " + "." * 99 + "\na" + ".a" * 400_000 + " = 1", "line 2: over 32 dots"),
        (table(rpm=3), "rpm"),
        (table(hash="sk-lbhost-secret"), "keys[0].hash"),
        (table(hash=HASH + "\n"), "keys[0].hash"),
        (table(name="a b"), "key 1"),
        (table(name=""), "key 1"),
        (table(requests_per_minute=0), "requests_per_minute"),
        (table(weight=0), "weight"),
        (table(service_tier="gold"), "service_tier"),
        (table(service_tier="priority", highest_service_tier="flex"), "'alice'"),
        (table() + table(hash=HASH[:-1] + "1"), "'alice'"),
        (table() + table(name="bob"), "hash"),
    ],
)
def test_what_is_not_right_is_refused_in_a_line_without_any_secret(
    tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(content)
    with pytest.raises(UsageError) as refused:
        keys.read(path)
    assert says in refused.value.message
    assert refused.value.message.startswith(f"keys file {path}: ")
    assert "\n" not in refused.value.message
    assert "secret" not in refused.value.message


def test_what_is_no_file_of_sane_size_is_refused_at_once(tmp_path: Path) -> None:
    pipe, long, binary = tmp_path / "pipe", tmp_path / "long", tmp_path / "binary"
    os.mkfifo(pipe)
    long.write_bytes(b"#" * (keys.MAX_FILE_BYTES + 1))
    binary.write_bytes(b"\xff\xfe")
    for path in (pipe, long, binary, tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="keys file"):
            keys.read(path)
    many = "".join(table(name=f"k{i}", hash=f"sha256:{i:064x}") for i in range(keys.MAX_KEYS + 1))
    (tmp_path / "many").write_text(many)
    with pytest.raises(UsageError, match=str(keys.MAX_KEYS)):
        keys.read(tmp_path / "many")


def test_keys_that_are_added_at_once_all_get_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text("# no newline at the end")
    path.chmod(0o600)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: keys.add(path, f"k{i}", f"key {i}"), range(8)))
    assert {key.name: key.hash for key in keys.read(path)} == {
        f"k{i}": keys.hash_of(f"key {i}") for i in range(8)
    }
    before = path.read_bytes()
    for name in ("k3", "a b", ""):
        with pytest.raises(UsageError):
            keys.add(path, name, "another")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        f'keys = [{{name = "alice", hash = "{HASH}"}}]\n',
        table() + "#" * (keys.MAX_FILE_BYTES - 200),
    ],
)
def test_a_key_is_not_added_where_that_would_spoil_the_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"a \[\[keys\]\] table cannot be added"):
        keys.add(path, "bob", "a key")
    assert path.read_text() == content


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    keys.add(path, "alice", "a key")
    assert not keys.is_open_to_others(path)
    path.chmod(0o640)
    assert keys.is_open_to_others(path)


@pytest.mark.parametrize("content", ["keys = []\n", "[other", "#" * (keys.MAX_FILE_BYTES - 10)])
def test_a_file_that_a_key_would_spoil_stays_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match="keys file"):
        keys.add(path, "alice", "a key")
    assert path.read_text() == content


def test_half_a_table_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.toml"
    keys.add(path, "alice", "a key")
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        keys.add(path, "bob", "another key")
    assert path.read_bytes() == before
