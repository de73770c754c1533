"""Vectors computed ahead."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lbhost import setting_sources
from lbhost.cli.app import RuntimeDir, app
from lbhost.cli.talk import server_url

JSON_ENDINGS = (".jsonl", ".ndjson")


@app.command
def embed(
    file: Annotated[Path, Parameter(help="A text per line, or JSON lines.")],
    /,
    *,
    out: Annotated[
        Path | None,
        Parameter(help="Write the vectors here, as JSON lines.", show_default=False),
    ] = None,
    field: Annotated[str, Parameter(help="What holds the text in lines of JSON.")] = "text",
    form: Annotated[
        Literal["auto", "lines", "jsonl"],
        Parameter(name="--format", help="Of the file; auto: by its ending."),
    ] = "auto",
    url: Annotated[
        str | None,
        Parameter(help="The server; default: the one on the runtime dir.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        Parameter(help="Whose vectors, where there are several.", show_default=False),
    ] = None,
    runtime_dir: RuntimeDir = None,
) -> int:
    """Have a running server embed the texts of a file: its cache then knows them.

    May be stopped at any time; run again it goes on where it was. LBHOST_API_KEY holds the key, if
    the server asks for one.
    """
    from contextlib import ExitStack, nullcontext

    from lbhost import embed_file

    json_lines = form == "jsonl" or (form == "auto" and file.suffix in JSON_ENDINGS)
    given = embed_file.texts(file, field=field, json_lines=json_lines)
    key = setting_sources.load({}, os.environ).api_key
    screen = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        console=screen,
        disable=not screen.is_terminal,
    )
    began = time.monotonic()
    done = embed_file.Progress()

    def tell(progress: embed_file.Progress) -> None:
        nonlocal done
        done = progress
        bar.start()  # not before the server has answered: an error stands alone then
        bar.update(task, completed=progress.bytes, description=f"{progress.texts} texts")

    where = server_url(url, runtime_dir)
    try:
        with (
            ExitStack() as at_end,
            embed_file.Embedder(where, key=key, model=model) as embedder,
            nullcontext() if out is None else embed_file.VectorFile(out) as vectors,
        ):
            at_end.callback(bar.stop)
            size = file.stat().st_size if file.is_file() else None
            task = bar.add_task("0 texts", total=size)
            embedder.run(given, vectors, tell)
    except KeyboardInterrupt:
        print(f"stopped after {done.texts} texts; run it again to go on", file=sys.stderr)
        return 130
    seconds = time.monotonic() - began
    print(f"{done.texts} texts in {seconds:.1f} s, {done.cached} of them from the cache")
    return 0
