"""The measuring process: `python -m lbhost.tuning.measuring --control-fd N`.

Loads a model's weights once, then forks workers for every trial that it is asked for; or rewrites a
model. Whoever asks can end it at any moment, and all of its workers go with it. Writes no file but
those that it is told to.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from pathlib import Path

import msgspec
import setproctitle

from lbhost.errors import LbhostError, TuningError
from lbhost.linux import die_with_parent
from lbhost.llama import Model, api
from lbhost.llamacpp import collect_errors, reason_of
from lbhost.sandbox import profiles
from lbhost.tuning import quality, trial_workers, vector_quality
from lbhost.tuning.trial import (
    Failed,
    Judge,
    Judged,
    Load,
    Loaded,
    Measured,
    Rewrite,
    Rewritten,
    Trial,
    receive_question,
    send,
)
from lbhost.weights import parts, unchanged
from lbhost.worker import start
from lbhost.worker.fork_server import settle_on


def main() -> int:
    """Answer until there are no more questions."""
    link = start.take_link("lbhost.tuning.measuring")
    die_with_parent()
    setproctitle.setproctitle("lbhost measuring")
    try:
        return _serve(link)
    except BrokenPipeError:
        return 0  # nobody wants to know any more


def _serve(link: socket.socket) -> int:
    room = _Room()
    while (asked := receive_question(link)) is not None:
        try:
            answer = room.answer(asked)
        except LbhostError as error:
            answer = Failed(error.message)
        except OSError as error:
            answer = Failed(f"{error.strerror}: {error.filename}")
        send(link, answer)
    return 0


class _Room:
    """What is loaded, and what it is asked."""

    def __init__(self) -> None:
        self._model: Model | None = None

    def answer(self, asked: msgspec.Struct) -> msgspec.Struct:
        match asked:
            case Load():
                return self._load(asked)
            case Rewrite():
                return _rewrite(asked)
            case Trial():
                model = self._loaded()
                usual = model.flash_attention
                if asked.flash_attention is not None:
                    model.flash_attention = asked.flash_attention
                try:
                    return Measured(trial_workers.run(model, asked))
                finally:
                    model.flash_attention = usual
            case Judge():
                return _judge(self._loaded(), asked)
            case _:
                raise TuningError(f"unexpected question {type(asked).__name__}")

    def _load(self, load: Load) -> Loaded:
        if self._model is not None:
            raise TuningError("a model is loaded once")
        if load.node is not None:
            settle_on(load.node)
        writes = [] if load.folder is None else [load.folder]
        profiles.reader(parts(Path(load.path)), os.environ, writes=writes)
        with unchanged(load.parts):
            model = self._model = Model(load.path)
        return Loaded(
            weights_bytes=model.weights_bytes,
            flash_attention=model.flash_attention,
        )

    def _loaded(self) -> Model:
        if self._model is None:
            raise TuningError("no model is loaded")
        return self._model


def _rewrite(task: Rewrite) -> Rewritten:
    folder = Path(task.target).parent
    profiles.reader(parts(Path(task.source)), os.environ, writes=[folder])
    params = api.llama_model_quantize_default_params()
    params.ftype = task.format_number
    params.nthread = task.threads
    params.allow_requantize = True
    with collect_errors() as errors:
        code = api.llama_model_quantize(
            os.fsencode(task.source), os.fsencode(task.target), ctypes.byref(params)
        )
    if code != 0:
        raise TuningError(f"llama.cpp cannot rewrite {task.source}{reason_of(errors)}")
    return Rewritten()


def _judge(model: Model, task: Judge) -> Judged:
    path, pooling = Path(task.answers), task.pooling
    if not path.exists():
        if pooling is None:
            quality.keep(model, path)
        else:
            vector_quality.keep(model, pooling, path)
        return Judged(kl=0.0, agreement=1.0)
    if pooling is None:
        return Judged(*quality.compare(model, path))
    return Judged(*vector_quality.compare(model, pooling, path))


if __name__ == "__main__":
    sys.exit(main())
