"""scripts/chaos: how answers are judged, and a minute of the real thing."""

from __future__ import annotations

import asyncio
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from faults import breaking, episode, kills
from faults.__main__ import main, parse, table
from faults.answers import (
    Answer,
    Choice,
    Reference,
    Verdict,
    choices,
    open_at,
    parted,
    recoveries,
    verdict,
)
from faults.catalogue import FAULTS
from faults.clock import Clock, compiler
from faults.scene import Scene
from faults.traffic import Client, Traffic, most_open

SCRIPTS = Path(__file__).parent.parent / "scripts"
CHOICES = (Choice(0, 3.0, "it"), Choice(2, 2.0, " be"), Choice(5, 0.1, " was"))
"""Of "so it is": three tokens."""


def answer(**more: Any) -> Answer:
    fields: dict[str, Any] = {
        "question": 0,
        "stream": True,
        "sent": 10.0,
        "status": 200,
        "text": "so it is",
        "finish": "length",
        "done": True,
        "ended": 20.0,
        **more,
    }
    return Answer(**fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Verdict.COMPLETED),
        ({"text": "so it was"}, Verdict.DIFFERENT),
        ({"done": False}, Verdict.TRUNCATED),
        ({"finish": None}, Verdict.TRUNCATED),
        ({"text": "so", "error": "the worker died"}, Verdict.FAILED),
        ({"cut": True}, Verdict.FAILED),
        ({"status": 500, "error": "oh"}, Verdict.FAILED),
        ({"status": None, "cut": True, "text": ""}, Verdict.FAILED),
        ({"status": 503, "error": "full", "text": ""}, Verdict.REFUSED),
        ({"status": 429, "error": "full", "text": ""}, Verdict.REFUSED),
    ],
)
def test_every_answer_has_one_verdict(fields: dict[str, Any], expected: Verdict) -> None:
    assert verdict(answer(**fields), Reference("so it is")) is expected


def test_another_text_from_a_near_tie_on_is_told_apart() -> None:
    reference = Reference("so it is", CHOICES)
    assert verdict(answer(text="so it was"), reference) is Verdict.NEAR_TIE
    assert verdict(answer(text="so be it"), reference) is Verdict.DIFFERENT


def test_a_text_leaves_another_one_at_the_token_that_was_replaced() -> None:
    """Which begins before the first character that differs where both tokens begin alike."""
    near, far = Choice(0, 0.1, "rivers"), Choice(0, 2.0, "rivers")
    for first, tie in ((near, True), (far, False)):
        reference = Reference("river, and", (first, Choice(5, 4.0, "."), Choice(6, 5.0)))
        assert reference.is_near_tie("rivers flow") is tie
        assert not reference.is_near_tie("river. No")


def test_a_margin_is_to_the_next_best_that_might_have_been_taken() -> None:
    found = choices(
        {
            "tokens": ["so", " it", "!"],
            "token_logprobs": [-0.5, -1.0, -0.1],
            "text_offset": [0, 2, 5],
            "top_logprobs": [
                {"so": -0.5, "<end>": -0.75, " we": -1.5},
                {"<end>": -0.25, " it": -1.0, " be": -1.125},
                {"!": -0.1},
            ],
        }
    )
    assert found == (Choice(0, 1.0, " we"), Choice(2, 0.125, " be"), Choice(5, math.inf))


def test_texts_part_where_they_differ() -> None:
    assert parted("abc", "abd") == 2
    assert parted("ab", "abc") == 2


def test_a_request_is_excused_only_by_a_fault_while_it_was_open() -> None:
    assert open_at(answer(), [15.0], 1.0)
    assert open_at(answer(), [9.5], 1.0)  # it came a moment after
    assert not open_at(answer(), [8.0, 21.0], 1.0)


def test_recovery_is_from_the_stroke_to_the_next_text() -> None:
    hit = answer(worker=1, texts=[11.0, 12.0, 14.5, 15.0])
    assert recoveries([hit], [(12.5, 1)], 1.0) == [2.0]


def test_recovery_counts_the_first_stroke_and_only_streams_that_it_hit() -> None:
    hit = answer(worker=1, texts=[11.0, 12.0, 14.5, 15.0])
    elsewhere = answer(worker=0, texts=[11.0, 12.0, 14.5])
    waiting = answer(worker=1, texts=[11.0, 19.0])
    assert recoveries([hit, elsewhere, waiting], [(14.7, 1), (12.5, 1)], 1.0) == [2.0]


def judged(answers: list[Answer], **scene: Any) -> episode.Result:
    seen = Scene.__new__(Scene)
    seen.struck, seen.moments, seen.away, seen.broken, seen.others = [], [], [], [], 0
    client = Client("http://127.0.0.1", ())
    seen.traffic = Traffic(client, 1.0, random.Random(1), (0,))
    for name, value in scene.items():
        setattr(seen, name, value)
    return episode.judge([FAULTS["kill-worker"]], answers, {0: Reference("so it is")}, seen, [])


class Late(Client):
    """Whose answers come all at once."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1", ())
        self.now = asyncio.Event()

    async def ask(self, question: int, *, stream: bool, **more: Any) -> Answer:
        await self.now.wait()
        return answer()


@pytest.mark.anyio
async def test_a_box_that_has_become_slow_is_not_sent_more_than_it_gets_through() -> None:
    client = Late()
    traffic = Traffic(client, 5.0, random.Random(1), (0,))
    await traffic.burst(most_open(5.0))
    traffic.start()
    async with asyncio.timeout(60):
        while not traffic.skipped:
            await asyncio.sleep(0.01)
    assert traffic.open == most_open(5.0) == 100
    await traffic.burst(3)
    assert traffic.open == 103  # who bursts means it
    client.now.set()
    await traffic.stop()
    assert len(traffic.answers) >= 103
    await client.close()


def test_few_or_many_may_be_open_whatever_the_rate() -> None:
    assert (most_open(0.1), most_open(1000.0)) == (24, 256)


def test_all_promises_kept() -> None:
    result = judged([answer(), answer(status=503, error="full", text="")])
    assert not result.broken
    assert result.counts["completed"] == result.counts["refused"] == 1


@pytest.mark.parametrize(
    "fields",
    [{"text": "no"}, {"done": False}, {"error": "gone"}, {"status": None, "cut": True}],
)
def test_each_kind_of_loss_is_a_broken_promise(fields: dict[str, Any]) -> None:
    assert len(judged([answer(), answer(**fields)]).broken) == 1


def test_what_was_open_when_the_service_went_may_fail_but_not_be_wrong() -> None:
    cut = answer(cut=True, error="reset")
    assert not judged([answer(), cut], moments=[15.0]).broken
    assert judged([answer(), cut], moments=[25.0]).broken
    assert not judged([answer(), cut], moments=[25.0], away=[15.0]).broken
    assert judged([answer(), answer(text="no")], moments=[15.0]).broken


def test_a_server_that_answers_nothing_has_broken_its_promise() -> None:
    assert judged([answer(status=503, error="full", text="")]).broken


class Ended:
    """A box whose server ends and starts as it is told; then the scene is over."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.scene: Scene | None = None

    async def status(self) -> None:
        pass

    async def killed(self) -> None:
        await asyncio.sleep(0.01)

    async def start(self) -> None:
        await asyncio.sleep(0.01)
        assert self.scene is not None
        self.scene.until = 0.0

    def orphans(self) -> list[str]:
        return []


async def _no_pause(_seconds: float = 0.0) -> None:
    pass


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["end-group", "kill-supervisor"])
async def test_who_comes_while_there_is_no_server_on_purpose_is_excused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaking, "ORPHANS_S", 0.0)
    client = Late()
    client.now.set()
    traffic = Traffic(client, 1.0, random.Random(1), (0,))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as server:
        box: Any = Ended(server.pid)
        scene = box.scene = Scene(box, traffic, random.Random(1), math.inf, Path())
        monkeypatch.setattr(scene, "pause", _no_pause)
        await FAULTS[name].run(scene)
    await traffic.stop()
    await client.close()
    began, back = scene.moments
    assert scene.away
    assert all(began <= moment <= back for moment in scene.away)


def test_the_table_has_a_line_for_each_episode() -> None:
    lines = table([judged([answer()]), judged([answer(text="no")])]).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("kill-worker")


def test_three_are_mixed_of_those_that_can_be() -> None:
    mix = episode.mixed(list(FAULTS.values()), random.Random(1))
    assert len(mix) == 3
    assert all(fault.mixable for fault in mix)


@pytest.mark.skipif(compiler() is None, reason="the clock is built with a C compiler")
def test_a_clock_that_is_stepped_moves_the_time_of_day_and_nothing_else(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock")
    clock.step(-3600)
    tell = "import time, datetime as d; print(time.time(), d.datetime.now().timestamp())"
    tell += "; print(time.clock_gettime(time.CLOCK_REALTIME), time.monotonic())"
    command = [sys.executable, "-c", tell]
    ran = subprocess.run(command, env=clock.environ, capture_output=True, text=True, check=True)
    *walls, steady = map(float, ran.stdout.split())
    assert all(3000 < time.time() - wall < 3660 for wall in walls)
    assert 0 <= time.monotonic() - steady < 60


def test_faults_that_this_machine_cannot_have_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FAULTS["kill-worker"].missing is None
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "root" in (FAULTS["disk"].missing or "")


@pytest.mark.parametrize("argv", [["no-such"], ["--minutes", "0"], ["--load", "0"]])
def test_a_wrong_command_line_is_refused(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(argv)
    assert refused.value.code == 2


def test_answers_that_kills_disturbed_are_counted_apart_and_said_where_they_part() -> None:
    known = {0: Reference("so it is", CHOICES)}
    calm = [answer(sent=1.0, ended=2.0)]
    hit = answer(worker=1, text="so it was", texts=[12.0, 13.5])
    beside = answer(worker=0)
    later = answer(worker=1, sent=21.0, ended=22.0)
    found = kills.judge(calm, [hit, beside, later], known, [(12.5, 1)])
    assert (found.kills, found.hit) == (1, 1)
    assert found.disturbed == kills.Part(2, 1, 1, {})
    assert (found.calm.rate, found.disturbed.rate, found.between.answers) == (1.0, 0.5, 1)
    assert found.turned == [kills.Turned(0, 6, 0.1, "is", "was", 1)]
    assert found.recovered_s == [1.0]
    assert not found.broken
    assert "margin 0.100" in kills.report(found)


def test_a_lost_answer_under_kills_is_a_broken_promise() -> None:
    found = kills.judge([], [answer(done=False)], {0: Reference("so it is")}, [(12.5, 1)])
    assert found.broken == ["1 of the disturbed answers: truncated"]


def test_faults_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert "kill-worker" in capsys.readouterr().out


@pytest.mark.e2e
@pytest.mark.xdist_group("servers")
def test_no_promise_is_broken_in_a_minute() -> None:
    """Workers killed and stopped, operators' storms, bad clients, a gateway killed."""
    faults = ["kill-worker", "stop-worker", "operate", "vanish", "kill-gateway"]
    run = subprocess.run(
        [sys.executable, "-m", "faults", *faults, "--minutes", "1", "--load", "0.3"],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
