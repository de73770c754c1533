"""What is settled of several models before anything starts, and the one line that refuses them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

import tiny_bert
from lbhost import inspection, log, model
from lbhost.board import Board, HostRow
from lbhost.config import Settings
from lbhost.errors import LbhostError, StartupError
from lbhost.machine import topology
from lbhost.model_entry import ModelEntry
from lbhost.placement.placement import Placement
from lbhost.purpose import KindChoice, ModelKind, Pooling, PoolingChoice, Purpose
from lbhost.supervisor import model_startup
from lbhost.supervisor.model_startup import EMBEDDING_SLOTS, Found, PreparedModel, Reading
from lbhost.supervisor.succession import Context
from lbhost.tuning import remembered
from lbhost.tuning.remembered import Start
from supervising import INFO, write_box

GIB = 1 << 30
VECTORS = Purpose(ModelKind.EMBEDDING, Pooling.MEAN, 64)


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Found:
    """A box of two cores, where a model is what its file's name begins with."""

    def inspect(path: str, kind: KindChoice, pooling: PoolingChoice) -> Any:
        purpose = VECTORS if Path(path).name.startswith("vectors") else Purpose()
        return msgspec.structs.replace(INFO, path=path, purpose=purpose)

    monkeypatch.setattr(inspection, "inspect", inspect)
    return box_of_two(tmp_path)


def box_of_two(tmp_path: Path) -> Found:
    roots = write_box(tmp_path, 2)
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    return Found(environ, roots, topology.discover(roots, {0, 1}), (), gpu_capable=False)


def entry(tmp_path: Path, name: str, **values: Any) -> ModelEntry:
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(b"GGUF")
    return ModelEntry(name=name, **{"path": str(path), **values})


def find(
    box: Found, *entries: ModelEntry, contexts: Sequence[Context] = (), **settings: Any
) -> list[PreparedModel]:
    made = Settings(models=entries, probe=False, **settings)
    return model_startup.find(made, box, contexts)


def refusal(box: Found, *entries: ModelEntry) -> str:
    with pytest.raises(LbhostError) as caught:
        find(box, *entries)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_every_model_is_placed_over_the_whole_box(tmp_path: Path, found: Found) -> None:
    chat, vectors = find(
        found, entry(tmp_path, "chat"), entry(tmp_path, "vectors", max_workers=1), slots=6
    )
    assert [place.cpus for place in chat.placements] == [(0,), (1,)]
    assert [place.cpus for place in vectors.placements] == [(0,)]
    assert (chat.settings.slots, vectors.settings.slots) == (6, EMBEDDING_SLOTS)
    assert (chat.name, vectors.name) == ("chat", "vectors")
    assert vectors.info.purpose is VECTORS


def test_models_that_have_room_on_cores_of_their_own_get_them(tmp_path: Path, found: Found) -> None:
    made = [entry(tmp_path, name, workers=1) for name in ("chat", "more", "vectors")]
    assert [one.placements[0].cpus for one in find(found, *made)] == [(0,), (1,), (0,)]


@pytest.mark.parametrize(
    ("values", "most", "first"),
    [
        ({}, 2, 2),
        ({"workers": 1}, 1, 1),
        ({"max_workers": 2}, 2, 1),
        ({"max_workers": 9}, 2, 1),
        ({"workers": 1, "max_workers": 2}, 2, 1),
        ({"min_workers": 2}, 2, 2),
        ({"idle_timeout_s": 60.0}, 2, 1),
        ({"idle_timeout_s": 60.0, "workers": 1}, 1, 1),
    ],
)
def test_memory_is_for_as_many_workers_as_there_may_be_and_the_least_begin(
    tmp_path: Path, found: Found, values: dict[str, Any], most: int, first: int
) -> None:
    (made,) = find(found, entry(tmp_path, "m", **values))
    assert (len(made.placements), made.workers) == (most, first)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"path": "/nowhere/x.gguf"}, "models[1].path: model /nowhere/x.gguf does not exist"),
        ({"workers": 3}, "models[1].workers: 3 is too many, at most 2 fit here: the machine has"),
        ({"threads_per_worker": 3}, "models[1].threads_per_worker: 3 is more than this process"),
        ({"min_workers": 3}, "models[1].min_workers: 3 is too many, at most 2 fit here"),
        ({"ctx_size": 4096}, "models[1].ctx_size: 4096 is more than the model was trained for"),
    ],
)
def test_a_model_that_cannot_be_is_refused_by_its_table(
    tmp_path: Path, found: Found, values: dict[str, Any], said: str
) -> None:
    message = refusal(found, entry(tmp_path, "a"), entry(tmp_path, "b", **values))
    assert message.startswith(said)
    assert "--" not in message, "keys, not flags"


def test_a_file_of_another_kind_is_refused_by_its_table(tmp_path: Path) -> None:
    path = tiny_bert.write(tmp_path / "bert.gguf")
    box = box_of_two(tmp_path)
    wrong = ModelEntry(name="b", path=str(path), kind=KindChoice.CHAT)
    message = refusal(box, wrong)
    assert message.startswith(f"models[0].kind: {path}: ")
    assert message.endswith("does not generate text left to right")
    assert find(box, ModelEntry(name="b", path=str(path)))[0].info.purpose.kind == "embedding"


def test_the_contexts_of_a_server_before_are_kept(tmp_path: Path, found: Found) -> None:
    chat = entry(tmp_path, "chat")
    twin = msgspec.structs.replace(chat, name="twin")
    before = [Context("twin", chat.path, 512), Context("chat", chat.path, 256)]
    assert [made.settings.ctx_size for made in find(found, chat, twin, contexts=before)] == [
        256,
        512,
    ]
    grown = [Context("chat", chat.path, 256, workers=2, pinned=True)]
    for values, workers, pinned in (
        ({"max_workers": 2}, 2, True),
        ({"max_workers": 1}, 1, True),
        ({"workers": 1}, 1, False),
    ):
        (again,) = find(found, msgspec.structs.replace(chat, **values), contexts=grown)
        assert (again.workers, again.pinned) == (workers, pinned)
    (asleep,) = find(
        found,
        msgspec.structs.replace(chat, max_workers=2),
        contexts=[Context("chat", chat.path, 256, workers=0)],
    )
    assert asleep.workers == 1
    for sleeps, workers in ((False, 1), (True, 2)):
        context = Context("chat", chat.path, 256, asleep=sleeps, down=(Placement((1,), 1),))
        bounds = msgspec.structs.replace(chat, max_workers=2)
        (down,) = find(found, bounds, contexts=[context])
        assert down.workers == workers
        assert down.down(down.placements) == {1}, "that on the same core"
        assert down.down(down.placements[:1]) == ({0} if not sleeps else set()), "or as many"
    fewer = Context("chat", chat.path, 256, workers=2, down=tuple(down.placements))
    (left,) = find(found, msgspec.structs.replace(chat, workers=2), contexts=[fewer])
    assert left.down(left.placements) == {1}, "two of four ran: not all of two are down"
    (renamed,) = find(found, msgspec.structs.replace(chat, name="new"), contexts=before)
    assert renamed.settings.ctx_size == 512
    (other,) = find(found, entry(tmp_path, "other"), contexts=before)
    assert other.settings.ctx_size is None


def with_contexts(models: list[PreparedModel], available: int) -> list[int]:
    board = Board.create(workers=1, cores=2, gpus=0)
    try:
        board.host.write(0, HostRow(memory_available=float(available)))
        return [made.n_ctx for made in model_startup.with_contexts(models, board)]
    finally:
        board.close()


def test_all_models_share_the_memory(tmp_path: Path, found: Found) -> None:
    heavy = msgspec.structs.replace(INFO, kv_bytes_per_token=100_000, n_ctx_train=8192)
    models = [
        msgspec.structs.replace(made, info=heavy)
        for made in find(found, entry(tmp_path, "a"), entry(tmp_path, "b", ctx_size=1024))
    ]
    assert with_contexts(models, 64 * GIB) == [4096, 1024]
    # Half of 6 GiB holds 256 MiB of buffers, 1024 tokens for b's 8 slots, and 2,560 for a's.
    assert with_contexts(models, 6 * GIB) == [2560, 1024]
    with pytest.raises(StartupError, match=r"the models need .*a 323 MiB, b 909 MiB"):
        with_contexts(models, GIB)


def test_no_pin_is_dropped_where_memory_is_short(tmp_path: Path, found: Found) -> None:
    heavy = msgspec.structs.replace(INFO, kv_bytes_per_token=100_000, n_ctx_train=8192)
    chat = entry(tmp_path, "chat", max_workers=2)
    grown = [Context("chat", chat.path, 1024, workers=2, pinned=True)]
    (made,) = find(found, chat, contexts=grown)
    made = msgspec.structs.replace(made, info=heavy)
    least = 2 * (100_000 * 1024 * made.sequences) + made.weights_bytes
    outcomes: set[object] = set()
    for available in range(least, 4 * least, least // 20):
        board = Board.create(workers=1, cores=2, gpus=0)
        try:
            board.host.write(0, HostRow(memory_available=float(available)))
            (fitted,) = model_startup.with_contexts([made], board)
        except StartupError:
            outcomes.add("refused")
        else:
            outcomes.add((fitted.workers, fitted.pinned))
        finally:
            board.close()
    assert outcomes == {"refused", (2, True)}


class Told:
    """Stands in for the log."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str, **_: object) -> None:
        self.lines.append(text)


@pytest.mark.parametrize("tells", [True, False])
def test_what_was_tuned_is_told_by_who_uses_it(
    tmp_path: Path, found: Found, monkeypatch: pytest.MonkeyPatch, *, tells: bool
) -> None:
    def as_tuned(start: Start, *_: object) -> Start:
        return msgspec.structs.replace(start, tuned={"weights": "Q8_0"})

    told = Told()
    monkeypatch.setattr(remembered, "as_tuned", as_tuned)
    monkeypatch.setattr(log, "get", lambda: told)
    inspects = (inspection.inspect, inspection.inspect_adapters)
    reading = Reading(model.resolve, *inspects, tells=tells)
    settings = Settings(models=(entry(tmp_path, "chat"),), probe=False)
    model_startup.find(settings, found, (), reading)
    assert [line.partition(" (")[0] for line in told.lines] == [
        "using what `lbhost tune` chose"
    ] * tells
