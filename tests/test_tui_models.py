"""The dashboard of a server with several models: a line for each above its workers."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from fake_admin import FakeAdmin, model, status, worker
from lbhost.status import AdapterStatus, Event, Status
from lbhost_tui import actions, eventlog, header, models, typed
from lbhost_tui.fold import fold
from lbhost_tui.paint import Parts, Role, crop, width_of
from tui_driver import dashboard

pytestmark = pytest.mark.anyio


def plain(parts: Parts) -> str:
    return "".join(text for text, _ in parts)


def picture() -> Status:
    workers = [worker(number, model="chat" if number < 2 else "vectors") for number in range(3)]
    served = [
        model(
            "chat",
            aliases=["small"],
            queue_depth=3,
            oldest_wait_s=41.0,
            tokens_s=88.0,
            min_workers=1,
            max_workers=4,
            scaling="auto",
            adapters=[
                AdapterStatus(name=n, path=f"/{n}.gguf", scale=1) for n in ("pirate", "poet")
            ],
        ),
        model("vectors", kind="embedding", workers=1, workers_up=1),
        model("broken", state="failed", workers_up=0, failure="the file is gone"),
    ]
    return msgspec.structs.replace(status(3), workers=workers, models=served)


@pytest.fixture
async def fake(folder: Path) -> AsyncIterator[FakeAdmin]:
    async with FakeAdmin(folder / "admin.sock", picture()) as server:
        yield server


@pytest.mark.parametrize("width", [30, 60, 100, 160])
def test_a_models_line_says_the_worst_first_and_fits(width: int) -> None:
    chat, _, broken = picture().models
    line = models.Heading(chat).line(width)
    assert width_of(line) == width
    assert "chat" in plain(line)
    assert width < 60 or "queue 3, oldest 41s" in plain(line)
    assert width < 100 or "up 2/2 by load 1-4" in plain(line)
    assert width < 160 or plain(line).rstrip().endswith("LoRA pirate, poet")
    assert "the file" in plain(models.Heading(broken).line(width))


def test_a_line_is_cut_into_the_columns_it_stands_across() -> None:
    line: Parts = (("ab", Role.TEXT), ("模型cd", Role.STRONG))
    assert "".join(plain(crop(line, at, 3)) for at in (0, 3, 6)) == "ab  型cd "
    assert width_of(crop(line, 6, 5)) == 5
    assert plain(crop(line, 40, 2)) == "  "


def test_a_restart_is_one_line_with_several_models_too() -> None:
    names = ("ready", "draining", "stopping", "stopped", "starting", "ready")
    story = [
        Event(
            seq=place,
            time=place / 10,
            level="info",
            kind="worker_state",
            worker=3,
            message=f"worker 3 (chat (small)): {before} -> {after}",
        )
        for place, (before, after) in enumerate(itertools.pairwise(names))
    ]
    (line,) = fold(story)
    assert line.message == "up again after 0.4 s"
    shown = plain(eventlog.lines_of(story[0], 80)[0])
    assert "worker 3  ready -> draining" in shown


def test_scaling_means_one_model() -> None:
    fewer = actions.scale(picture(), -1, "chat")
    assert fewer is not None
    assert fewer.body == {"workers": 1, "model": "chat"}
    assert fewer.question == "Scale chat down from 2 to 1 worker?"
    assert "Worker 1 finishes" in fewer.consequence
    assert actions.scale(picture(), -1, "vectors") is None
    last = actions.drain(picture(), picture().workers[2])
    assert "No other worker of vectors is ready" in last.consequence


async def test_a_model_that_sleeps_says_so(fake: FakeAdmin) -> None:
    one = model("chat", state="sleeping", workers=0, workers_up=0)
    fake.status = msgspec.structs.replace(status(0), model="chat", models=[one])
    async with dashboard(fake, 80, 24) as tui:
        await tui.sees("chat sleeps; its next request wakes it")
        chat, vectors, _ = picture().models
        asleep = msgspec.structs.replace(vectors, state="sleeping", workers=0, workers_up=0)
        fake.status = msgspec.structs.replace(picture(), models=[chat, asleep])
        await tui.sees("vectors embedding ◦ sleeping")


@pytest.mark.parametrize("width", [80, 120, 200])
async def test_workers_stand_under_their_models(fake: FakeAdmin, width: int) -> None:
    async with dashboard(fake, width, 40) as tui:
        await tui.sees("3 models: chat, vectors, broken", "the file is gone", "97%")
        places = [
            next(y for y, line in enumerate(tui.lines) if line.startswith(word))
            if isinstance(word, str)
            else tui.lines.index(tui.row(word))
            for word in (" chat ", 0, 1, " vectors embedding ", 2, " broken ")
        ]
        assert places == list(range(places[0], places[0] + 6))


async def test_the_selection_skips_the_models_lines(fake: FakeAdmin) -> None:
    async with dashboard(fake, 120, 40) as tui:
        await tui.until(lambda: tui.row(0).startswith("▸"))
        await tui.press("down", "down")
        await tui.until(lambda: tui.row(2).startswith("▸"))
        await tui.press("down")
        await tui.press("up")
        await tui.until(lambda: tui.row(1).startswith("▸"))
        await tui.press("home", "up")
        await tui.until(lambda: tui.row(0).startswith("▸"))
        await tui.press("end", "plus")
        await tui.until(lambda: fake.orders == [("/scale", {"workers": 2, "model": "vectors"})])


def test_who_says_how_many_workers_there_are_is_shown() -> None:
    chat, vectors, _ = picture().models
    pinned = msgspec.structs.replace(chat, scaling="pinned")
    assert "up 2/2 pinned 1-4" in plain(models.Heading(pinned).line(120))
    assert "up 1/1  " in plain(models.Heading(vectors).line(120))
    alone = msgspec.structs.replace(status(2), model="chat", models=[pinned])
    assert " chat  pinned 1-4" in plain(header.title(alone, 100))


@pytest.mark.parametrize(
    ("words", "body"),
    [
        ("scale chat 2", {"workers": 2, "model": "chat"}),
        ("scale 2 --model chat", {"workers": 2, "model": "chat"}),
        ("lbhost scale --model=Chat 2", {"workers": 2, "model": "chat"}),
        (":scale small auto", {"workers": "auto", "model": "chat"}),
        ("scale auto --model chat", {"workers": "auto", "model": "chat"}),
        ("scale 2", None),
        ("scale nobody 2", None),
        ("scale chat many", None),
        ("scale chat 0", None),
        ("scale chat 9999", None),
        ("scale 2 --model", None),
        ("scale", None),
        ("", None),
    ],
)
def test_typed_words_are_the_clis(words: str, body: dict[str, int | str] | None) -> None:
    action = typed.order(typed.plain(words), picture())
    assert (None if action is None else dict(action.body)) == body


def test_one_model_need_not_be_named() -> None:
    alone = msgspec.structs.replace(status(2), models=[model("chat")])
    for words in ("scale auto", "scale auto --model chat", "scale chat auto"):
        action = typed.order(words, alone)
        assert action is not None, words
        assert dict(action.body) == {"workers": "auto"}
    action = typed.order("drain 1 --timeout 5", alone)
    assert action is not None
    assert (action.path, dict(action.body)) == ("/workers/1/drain", {"timeout_s": 5})
    assert typed.order("drain 7 --timeout 5", alone) is None


async def test_a_pinned_model_is_given_back_to_the_load(fake: FakeAdmin) -> None:
    async with dashboard(fake, 120, 40) as tui:
        await tui.sees("● ready")
        await tui.press("colon", *"scale", "space", *"auto")
        await tui.sees("scale auto --model chat")
        await tui.press("enter")
        await tui.until(lambda: fake.orders == [("/scale", {"workers": "auto", "model": "chat"})])


async def test_a_command_names_the_model(fake: FakeAdmin) -> None:
    async with dashboard(fake, 120, 40) as tui:
        await tui.sees("● ready")
        await tui.press("colon", *"scale", "space", *"chat", "space", "5")
        await tui.until(lambda: "scale chat 5" in "\n".join(tui.lines[4:]))
        await tui.press("enter")
        await tui.until(lambda: fake.orders == [("/scale", {"workers": 5, "model": "chat"})])
