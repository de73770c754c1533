"""Models that other programs keep on this box: found, and named as --model takes them."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest

from lbhost import cli, local_models, model
from lbhost.errors import ModelFileError

WEIGHTS = b"GGUF" + bytes(range(256)) * 40


def put(path: Path, data: bytes = WEIGHTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home, and nothing in the environment that points elsewhere."""
    for name in ("HF_HUB_CACHE", "HF_HOME", "OLLAMA_MODELS", "LLAMA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def found(home: Path) -> dict[str, local_models.LocalModel]:
    return {one.spec: one for one in local_models.find({"HOME": str(home)})}


def hub_file(home: Path, repo: str, name: str, revision: str = "abc") -> Path:
    folder = home / ".cache/huggingface/hub" / f"models--{repo.replace('/', '--')}"
    blob = put(folder / "blobs" / hashlib.sha256(WEIGHTS).hexdigest())
    link = folder / "snapshots" / revision / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(blob)
    return link


def test_downloads_from_hugging_face_are_named_by_their_repository(home: Path) -> None:
    link = hub_file(home, "me/tiny-GGUF", "q4/tiny.gguf")
    hub_file(home, "me/tiny-GGUF", "mmproj-tiny.gguf")
    (one,) = found(home).values()
    assert (one.spec, one.where) == ("hf:me/tiny-GGUF:q4/tiny.gguf", "Hugging Face")
    assert (one.path, one.bytes, one.complete) == (str(link), len(WEIGHTS), True)


def test_of_several_revisions_main_is_meant(home: Path) -> None:
    hub_file(home, "me/tiny", "old.gguf", "aaa")
    hub_file(home, "me/tiny", "new.gguf", "bbb")
    repo = home / ".cache/huggingface/hub/models--me--tiny"
    put(repo / "refs/main", b"aaa")
    assert list(found(home)) == ["hf:me/tiny:old.gguf"]


def test_a_split_model_is_one_and_tells_what_it_lacks(home: Path) -> None:
    folder = home / ".lmstudio/models/me/big"
    first = put(folder / "big-00001-of-00002.gguf")
    assert found(home)[str(first)].complete is False
    put(folder / "big-00002-of-00002.gguf")
    (one,) = found(home).values()
    assert (one.bytes, one.complete) == (2 * len(WEIGHTS), True)


def ollama_model(home: Path, name: str, digest: str, manifest: bytes | None = None) -> None:
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "0" * 64},
        {"mediaType": "application/vnd.ollama.image.model", "digest": digest},
    ]
    data = json.dumps({"schemaVersion": 2, "layers": layers}).encode()
    put(home / ".ollama/models/manifests" / name, manifest or data)


def test_ollamas_models_are_named_as_it_names_them(home: Path) -> None:
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    blob = put(home / ".ollama/models/blobs" / f"sha256-{digest}")
    ollama_model(home, "registry.ollama.ai/library/tiny/latest", f"sha256:{digest}")
    ollama_model(home, "registry.ollama.ai/me/mine/1b", f"sha256:{digest}")
    ollama_model(home, "host.example:5000/me/mine/latest", f"sha256:{digest}")
    assert sorted(found(home)) == [
        "ollama:host.example:5000/me/mine:latest",
        "ollama:me/mine:1b",
        "ollama:tiny:latest",
    ]
    assert model.resolve("ollama:host.example:5000/me/mine").path == str(blob)
    assert model.resolve("ollama:tiny") == model.ModelFile(str(blob), "tiny")
    assert model.resolve("ollama:me/mine:1b", "x") == model.ModelFile(str(blob), "x")
    with pytest.raises(ModelFileError, match=r"no model big here; it has: ollama:host.+:1b, "):
        model.resolve("ollama:big")


@pytest.mark.parametrize(
    ("digest", "manifest"),
    [
        ("sha256:../../../etc/passwd", None),
        ("", b"{"),
        ("", b"\xff\xfe"),
        ("", b'{"layers": 3}'),
        ("", b'{"layers": []}'),
    ],
)
def test_a_manifest_that_is_none_is_passed_over(
    home: Path, digest: str, manifest: bytes | None
) -> None:
    ollama_model(home, "registry.ollama.ai/library/tiny/latest", digest, manifest)
    put(home / ".ollama/models/manifests/stray", b"{}")
    assert found(home) == {}


def test_environment_variables_move_the_caches(home: Path, tmp_path: Path) -> None:
    moved = put(tmp_path / "moved/models--me--tiny/snapshots/abc/tiny.gguf")
    cache = put(tmp_path / "llama/other.gguf")
    environ = {
        "HOME": str(home / "none"),
        "HF_HUB_CACHE": str(tmp_path / "moved"),
        "LLAMA_CACHE": str(tmp_path / "llama"),
    }
    assert [one.path for one in local_models.find(environ)] == [str(moved), str(cache)]


def test_the_command_lists_them(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub_file(home, "me/tiny-GGUF", "tiny.gguf")
    assert cli.run(["models"]) == 0
    out = capsys.readouterr().out
    assert "hf:me/tiny-GGUF:tiny.gguf" in out
    assert "starter" in out
    assert cli.run(["models", "--json"]) == 0
    specs = [one["spec"] for one in json.loads(capsys.readouterr().out)]
    assert specs == ["starter", "hf:me/tiny-GGUF:tiny.gguf"]


def test_what_a_server_has_is_marked(home: Path) -> None:
    path = hub_file(home, "me/tiny-GGUF", "tiny.gguf")
    (one,) = found(home).values()
    (marked,) = local_models.marked([one], {"a": str(path.resolve()), "b": one.path, "c": "/x"})
    assert marked.served == ("a", "b")
    assert local_models.marked([one], {}) == [one]


# --- the hub's own client against a hub on the loopback ----------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface-hub asks of a hub: a repository's files, and one file in ranges."""

    protocol_version = "HTTP/1.1"
    weights = WEIGHTS
    etag = hashlib.sha256(WEIGHTS).hexdigest()
    cut_after: int | None = None
    """Bytes after which the connection ends, once."""
    asked: ClassVar[list[str]]

    def log_message(self, *args: object) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub = type(self)
        hub.asked.append(f"{self.command} {self.path} {self.headers.get('range', '')}".strip())
        if self.path.startswith("/api/models/me/tiny/tree/"):
            entry = {"type": "file", "path": "tiny.gguf", "oid": "1" * 40, "size": 1}
            data = json.dumps([entry]).encode()
            self._send(200, data, {"content-type": "application/json"}, body=body)
            return
        if not self.path.startswith("/me/tiny/resolve/"):
            self._send(404, b"{}", {"x-error-code": "RepoNotFound"}, body=body)
            return
        start = int((self.headers.get("range") or "bytes=0-")[6:].split("-")[0])
        data = hub.weights[start:]
        head = {"etag": f'"{hub.etag}"', "x-repo-commit": "a" * 40, "accept-ranges": "bytes"}
        if start:
            head["content-range"] = f"bytes {start}-{len(hub.weights) - 1}/{len(hub.weights)}"
        self._send(206 if start else 200, data, head, body=body)

    def _send(self, status: int, data: bytes, head: dict[str, str], *, body: bool) -> None:
        hub = type(self)
        self.send_response(status)
        for name, value in head.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if not body:
            return
        if hub.cut_after is not None and status == 200 and "etag" in head:
            data, hub.cut_after = data[: hub.cut_after], None
            self.close_connection = True
        self.wfile.write(data)


class Client:
    """The command in a process of its own, with the real huggingface-hub and a hub to ask."""

    def __init__(self, home: Path, hub: type[Hub], port: int) -> None:
        self.hub = hub
        self.port = port
        self._home = home

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        environ = {
            **os.environ,
            "HF_HOME": str(self._home / ".cache/huggingface"),
            "HF_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "HF_HUB_DISABLE_XET": "1",
        }
        command = [sys.executable, "-m", "lbhost", *words]
        return subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=300, check=False
        )

    def pull(self, spec: str) -> Path:
        done = self.run("pull", spec)
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.strip())

    @property
    def downloads(self) -> list[str]:
        return [one for one in self.hub.asked if one.startswith("GET /me/tiny/resolve")]


@pytest.fixture
def client(home: Path) -> Iterator[Client]:
    class Own(Hub):
        asked: ClassVar[list[str]] = []

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield Client(home, Own, server.server_port)
        server.shutdown()
        thread.join()


def test_a_model_is_pulled_once_and_there_when_the_hub_is_gone(client: Client, home: Path) -> None:
    path = client.pull("hf:me/tiny")
    assert path.read_bytes() == WEIGHTS
    assert list(found(home)) == ["hf:me/tiny:tiny.gguf"]
    downloads = client.downloads
    assert client.pull("hf:me/tiny") == path
    assert client.downloads == downloads, "nothing is downloaded again"
    client.port = 9  # nobody listens, and huggingface-hub tries for half a minute
    with ThreadPoolExecutor(3) as pool:
        pulling = pool.submit(client.run, "pull", "hf:me/tiny")
        specs = ("hf:me/tiny", "hf:me/tiny:tiny.gguf")
        examined = [pool.submit(client.run, "doctor", "--model", spec) for spec in specs]
    refused = pulling.result()
    assert refused.returncode == 1
    *tries, said = refused.stderr.splitlines()
    assert len(tries) <= 1, "older clients try once, newer ones six times"
    assert said.startswith("lbhost: hf:me/tiny: the hub cannot be reached: ")
    assert said.endswith("`--model hf:me/tiny:tiny.gguf` serves it all the same")
    for one in examined:
        looked = one.result()
        assert f"{path}: " in looked.stdout + looked.stderr, "found, and no model that can be read"


def test_what_arrives_damaged_is_refused_and_removed(client: Client) -> None:
    client.hub.weights = WEIGHTS[:-1] + b"x"
    refused = client.run("pull", "hf:me/tiny")
    assert refused.returncode == 1
    assert "damaged, its SHA-256 is" in refused.stderr.splitlines()[-1]
    client.hub.weights = WEIGHTS
    assert client.pull("hf:me/tiny").read_bytes() == WEIGHTS


def test_a_download_that_was_cut_short_goes_on(client: Client) -> None:
    weights = WEIGHTS * 2500  # the client writes 10 MB at a time
    client.hub.weights, client.hub.etag = weights, hashlib.sha256(weights).hexdigest()
    client.hub.cut_after = 15_000_000
    client.run("pull", "hf:me/tiny")
    assert client.pull("hf:me/tiny").read_bytes() == weights
    assert len(client.downloads) == 2
    assert "bytes=10" in client.downloads[1]


def test_a_repository_that_is_not_there_is_one_line(client: Client) -> None:
    refused = client.run("pull", "hf:me/gone")
    assert refused.returncode == 1
    assert refused.stderr.startswith("lbhost: hf:me/gone: ")
    assert refused.stderr.count("\n") == 1


def test_only_a_repositorys_models_can_be_pulled(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["pull", "starter"]) == 1
    assert "only hf:REPO[:FILE] can be pulled" in capsys.readouterr().err
