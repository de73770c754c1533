"""A real server with LoRA adapters, one worker: each answer is what llama.cpp itself says with that
adapter, whoever else computes there, and whatever becomes of the worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

import llama_cpp_greedy
import tiny_lora
from faults.answers import Reference
from greedy import check_stream, undisturbed
from lbhost import model
from lbhost.adapters import AdapterFile
from lbhost.llama import Model
from lbhost.status import Status
from lbhost.weights import identify
from serving import PATIENCE_S, Server, alive, wait_for

pytestmark = pytest.mark.e2e

BASE, PIRATE, POET, LATE = "starter", "pirate", "poet", "late"
SCALES = {PIRATE: 1.0, POET: 0.7}
PROMPT = "The history of Rome begins"
TOKENS = 60
FIELDS = {"max_tokens": TOKENS, "ignore_eos": True}


class Box:
    """The server, its lbhost.toml, and what each of its variants says undisturbed."""

    def __init__(self, server: Server, config: Path, files: dict[str, Path]) -> None:
        self.server = server
        self.config = config
        self.files = files
        self.whole = {
            name: undisturbed(server, PROMPT, model=name, **FIELDS) for name in (BASE, *SCALES)
        }


def write_config(path: Path, files: dict[str, Path], scales: dict[str, float]) -> None:
    tables = [
        f'[[adapters]]\nname = "{name}"\npath = "{files[name]}"\nscale = {scale}\n'
        for name, scale in scales.items()
    ]
    path.write_text(f'alias = "{BASE}"\nctx_size = 512\nworkers = 1\n{"".join(tables)}')


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("adapters")
    base = Path(model.resolve("starter").path)
    files = {
        name: tiny_lora.write(folder / f"{name}.gguf", base, seed=seed)
        for seed, name in enumerate((PIRATE, POET, LATE))
    }
    config = folder / "lbhost.toml"
    write_config(config, files, SCALES)
    with Server(folder / "run", "--config", str(config)) as server:
        yield Box(server, config, files)


def computed(status: Status) -> int:
    return sum(worker.slots_busy for worker in status.workers)


def listed(server: Server) -> list[str]:
    """The names of what is served, asked for over a connection of its own."""
    answer = httpx2.get(f"{server.endpoint}/v1/models", timeout=PATIENCE_S)
    return [one["id"] for one in answer.json()["data"]]


def same(text: str, whole: Reference) -> None:
    """From a near-tie on it may be another one: batches of other sizes are rounded otherwise."""
    assert text == whole.text or whole.is_near_tie(text), (text, whole.text)


def test_every_answer_is_what_llama_cpp_says_with_that_adapter(shared: Box) -> None:
    path = model.resolve("starter").path
    plain = Model(path)
    same(llama_cpp_greedy.text(plain, PROMPT, TOKENS), shared.whole[BASE])
    plain.close()
    found = [
        AdapterFile(name, scale, *identify([shared.files[name]])) for name, scale in SCALES.items()
    ]
    adapted = Model(path, adapters=found)
    for number, name in enumerate(SCALES):
        same(llama_cpp_greedy.text(adapted, PROMPT, TOKENS, number), shared.whole[name])
    adapted.close()
    texts = {name: whole.text for name, whole in shared.whole.items()}
    assert len(set(texts.values())) == len(texts), texts


def test_all_at_once_on_one_worker_each_says_what_it_says_alone(shared: Box) -> None:
    server = shared.server
    streams = {
        name: server.later(server.stream, PROMPT, model=name, **FIELDS) for name in shared.whole
    }
    server.wait(lambda status: computed(status) == len(streams), "all of them run there")
    for name, stream in streams.items():
        events = stream.result(PATIENCE_S)
        check_stream(events, shared.whole[name])
        assert {event["model"] for event in events if "model" in event} == {name}
    text = server.http.get("/metrics").text
    assert f'lbhost_adapter_answers_total{{adapter="{POET}"}}' in text
    switches = next(line for line in text.splitlines() if "adapter_switches_total{" in line)
    assert float(switches.split()[-1]) > len(streams)


def test_what_one_has_computed_of_a_prompt_is_no_others(shared: Box) -> None:
    prompt = " ".join(f"seven {i}" for i in range(60))

    def cached(name: str) -> int:
        usage = shared.server.complete(prompt, model=name, max_tokens=1).json()["usage"]
        found: int = usage["prompt_tokens_details"]["cached_tokens"]
        return found

    assert [cached(name) for name in (BASE, PIRATE, POET)] == [0, 0, 0]
    assert all(cached(name) > 60 for name in (BASE, PIRATE, POET))


def test_streams_of_a_killed_worker_go_on_with_their_adapters(shared: Box) -> None:
    server = shared.server
    streams = {
        name: server.later(server.stream, PROMPT, model=name, **FIELDS) for name in shared.whole
    }
    server.wait(lambda s: computed(s) == len(streams) and s.workers[0].tokens_out, "they run")
    (before,) = server.status().workers
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    for name, stream in streams.items():
        check_stream(stream.result(PATIENCE_S), shared.whole[name])
    (after,) = server.status().workers
    assert after.epoch > before.epoch


def test_a_reload_brings_an_adapter_and_what_was_computed_goes_along(shared: Box) -> None:
    server, prompt = shared.server, " ".join(f"eight {i}" for i in range(90))
    server.complete(prompt, model=PIRATE, max_tokens=1)
    old = server.status().gateway.pid
    write_config(shared.config, shared.files, {**SCALES, LATE: 1.0})
    said = server.cli("reload")
    assert said.returncode == 0, said.stderr
    assert old is not None
    wait_for(lambda: not alive(old), "the old gateway answers on no connection that was kept open")
    status = server.status()
    assert [one.name for one in status.models[0].adapters] == [*SCALES, LATE]
    assert "LoRA adapters: pirate, poet (x0.7), late" in server.cli("status").stdout
    wait_for(lambda: listed(server) == [BASE, *SCALES, LATE], "the new server answers")
    late = server.complete(PROMPT, model=LATE, **FIELDS).json()["choices"][0]["text"]
    assert late not in {whole.text for whole in shared.whole.values()}
    same(undisturbed(server, PROMPT, model=PIRATE, **FIELDS).text, shared.whole[PIRATE])
    usage = server.complete(prompt, model=PIRATE, max_tokens=1).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 60


def test_a_reload_to_an_adapter_that_does_not_fit_changes_nothing(shared: Box) -> None:
    server = shared.server
    before = server.status().models[0].adapters
    base = Path(model.resolve("starter").path)
    wide = tiny_lora.write(shared.config.with_name("wide.gguf"), base, widen=64)
    write_config(shared.config, {**shared.files, LATE: wide}, {**SCALES, LATE: 1.0})
    said = server.cli("reload")
    assert said.returncode != 0
    assert f"--adapters '{LATE}': {wide}: it is for another model" in said.stderr
    assert server.status().models[0].adapters == before
    assert server.complete(PROMPT, model=PIRATE).status_code == 200
