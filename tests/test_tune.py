"""`lbhost tune` from end to end: real weights are rewritten, judged and measured; serve uses it."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import msgspec
import psutil
import pytest
from rich.console import Console, RenderableType

import tiny_bert
from lbhost import cli, model, setting_sources
from lbhost.config import Settings
from lbhost.errors import TuningError
from lbhost.tuning import command, table, tuned
from lbhost.tuning.shapes import Shape
from lbhost.tuning.tuned import RewrittenFile, Tuned
from lbhost.tuning.tuner import Plan, Tuner
from serving import PATIENCE_S, Server, alive, wait_for

pytestmark = pytest.mark.e2e


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}


def short(environ: dict[str, str], *names: str, max_kl: float) -> Plan:
    """The usual plan with hardly any time for it, and one shape."""
    plan = command.plan(Settings(), environ, max_kl)
    wanted = tuple(format_ for format_ in plan.formats if format_.name in names)
    return msgspec.structs.replace(
        plan, formats=wanted, shapes=plan.shapes[:1], window_s=0.01, rounds=1
    )


def test_formats_are_judged_before_they_are_measured(environ: dict[str, str]) -> None:
    plan = short(environ, "Q8_0", "Q4_0", max_kl=0.05)
    told: list[float] = []
    choice = Tuner(plan, environ, environ, lambda part, _what: told.append(part)).run()
    by_name = {finding.what: finding for finding in choice.findings}
    q8, q4 = by_name["Q8_0"], by_name["Q4_0"]
    assert q8.kl is not None
    assert 0 < q8.kl < 0.02
    assert q8.speeds is not None
    assert q8.gain is not None
    assert q4.kl is not None
    assert q4.kl > 0.1  # measured: 0.27 to 0.36
    assert q4.speeds is None
    assert "loses more" in q4.note
    assert choice.file is None or choice.file.format == "Q8_0"
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert tuned.find(environ, plan.identity) == choice
    kept = {f"{plan.identity.key}.json"} | ({choice.file.name} if choice.file else set())
    assert {path.name for path in tuned.folder(environ).iterdir()} == kept
    text = table.sentence(choice)
    assert ("Q8_0" in text) == (choice.file is not None)


def test_an_embedding_model_is_judged_by_its_vectors(
    environ: dict[str, str], tmp_path: Path
) -> None:
    path = tiny_bert.write(tmp_path / "tiny.gguf")
    plan = command.plan(Settings(model=str(path)), environ, max_kl=1.0)
    plan = msgspec.structs.replace(plan, window_s=0.01, rounds=1)
    assert len(plan.shapes) == 1, "serve has one thread compute vectors"
    choice = Tuner(plan, environ, environ, lambda _part, _what: None).run()
    by_name = {finding.what: finding for finding in choice.findings}
    assert {"as it is", "BF16", "Q8_0"} < set(by_name)
    half = by_name["BF16"]
    assert half.kl is not None
    assert 0 < half.kl < command.MOST_TURNED
    assert half.speeds is not None
    assert half.speeds.prefill > 0
    assert half.speeds.decode is None
    assert tuned.find(environ, plan.identity) == choice
    assert "1 - cos" in _written(table.view(choice))


def test_a_reranking_model_is_refused(environ: dict[str, str], tmp_path: Path) -> None:
    path = tiny_bert.write(tmp_path / "rank.gguf", gguf.PoolingType.RANK)
    with pytest.raises(TuningError, match="chat or embed"):
        command.plan(Settings(model=str(path)), environ, 0.01)


def _written(view: RenderableType) -> str:
    out = Console(width=120, file=io.StringIO())
    out.print(view)
    return str(out.file.getvalue())  # type: ignore[attr-defined]


def test_too_little_memory_or_disk_is_said_before_anything_starts(environ: dict[str, str]) -> None:
    plan = short(environ, "Q8_0", max_kl=0.01)
    poor = msgspec.structs.replace(plan, available_bytes=1 << 20)
    with pytest.raises(TuningError, match=r"tuning needs up to .* of memory"):
        Tuner(poor, environ, {}, lambda _part, _what: None).run()
    huge = msgspec.structs.replace(plan.info, parameters=10**18, weights_bytes=0)
    vast = msgspec.structs.replace(plan, info=huge, available_bytes=None)
    with pytest.raises(TuningError, match="are free"):
        Tuner(vast, environ, {}, lambda _part, _what: None).run()
    assert not list(tuned.folder(environ).iterdir())


def test_one_of_several_models_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "lbhost.toml"
    tables = [
        '[[models]]\nname = "chat"\npath = "starter"\naliases = ["small"]\nslots = 7\n',
        '[[models]]\nname = "vectors"\npath = "/m/v.gguf"\n',
    ]
    config.write_text("".join(tables))
    settings = setting_sources.load({}, {}, config)
    for name in ("chat", "small", "starter"):
        own = command.of_table(settings, name)
        assert (own.model, own.slots, own.models) == ("starter", 7, ())
    for words, said in (
        ((), "tune one of chat, vectors\n"),
        (("other",), "tune one of chat, vectors, not 'other'\n"),
        (("vectors",), "model /m/v.gguf does not exist\n"),
    ):
        assert cli.run(["tune", *words, "--config", str(config)]) != 0
        assert capsys.readouterr().err.endswith(said)
    config.write_text(tables[0])
    assert command.of_table(setting_sources.load({}, {}, config), None).alias == "chat"


def test_ctrl_c_leaves_nothing_behind(environ: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lbhost", "tune"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environ,
    )
    place = tuned.folder(environ)
    try:
        wait_for(lambda: list(place.glob("work-*/*.gguf")), "weights are being rewritten")
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert b"Needs up to" in said
    assert b"Traceback" not in said
    assert not list(place.iterdir())
    wait_for(lambda: not [p for p in below if alive(p.pid)], "its processes are gone")


# --- serve ------------------------------------------------------------------------------


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "mine.gguf"
    shutil.copy2(model.resolve("starter").path, path)
    return path


def choose(environ: dict[str, str], path: Path) -> Tuned:
    """One worker, and another file with the same weights in it."""
    plan = command.plan(Settings(model=str(path)), environ, 0.01)
    with tuned.workroom(environ) as work:
        written = work / "other.gguf"
        shutil.copyfile(path, written)
        stat = written.stat()
        name = f"{plan.identity.key}-Q8_0.gguf"
        file = RewrittenFile(name, "Q8_0", stat.st_size, stat.st_mtime_ns)
        choice = Tuned(plan.identity, str(path), Shape(1, 1), file, False, ())
        tuned.keep(environ, choice, written)
    return choice


def test_serve_uses_the_choice(tmp_path: Path, environ: dict[str, str], original: Path) -> None:
    choice = choose(environ, original)
    assert choice.file is not None
    flags = ("--model", str(original), "--ctx-size", "512", "--workers", "1")
    own = {"LBHOST_TUNED": "1", "XDG_CACHE_HOME": environ["XDG_CACHE_HOME"]}
    with Server(tmp_path / "run", *flags, environ=own) as server:
        log = server.log.read_text()
        assert "lbhost tune --forget" in log
        assert '"weights": "Q8_0"' in log
        assert '"flash_attention": "off"' in log
        assert server.status().model == "mine"
        assert server.complete().status_code == 200


def test_forgetting_is_a_command(
    environ: dict[str, str],
    original: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", environ["XDG_CACHE_HOME"])
    choose(environ, original)
    assert cli.run(["tune", str(original), "--forget"]) == 0
    assert capsys.readouterr().out == "forgotten\n"
    assert not list(tuned.folder(environ).iterdir())
    assert cli.run(["tune", str(original), "--forget"]) == 0
    assert "nothing was chosen" in capsys.readouterr().out
