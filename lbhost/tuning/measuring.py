"""The measuring process: `python -m lbhost.tuning.measuring --control-fd N`.

Loads a model's weights once, then forks workers for every trial that it is asked for. Whoever asks
can end it at any moment, and all of its workers go with it; it touches no file but the model.
"""

from __future__ import annotations

import socket
import sys

import setproctitle

from lbhost.errors import LbhostError, TuningError
from lbhost.linux import die_with_parent
from lbhost.llama import Model
from lbhost.tuning import crew
from lbhost.tuning.trial import Failed, Load, Loaded, Measured, Trial, receive_question, send
from lbhost.weights import unchanged
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
    load = receive_question(link)
    if load is None:
        return 0
    try:
        if not isinstance(load, Load):
            raise TuningError("the first question loads a model")
        model = _load(load)
        default = model.flash_attention
        send(link, Loaded(model.weights_bytes, default))
        while (asked := receive_question(link)) is not None:
            if not isinstance(asked, Trial):
                raise TuningError("a model is loaded once")
            given = asked.flash_attention
            model.flash_attention = default if given is None else given
            send(link, Measured(crew.run(model, asked)))
    except LbhostError as error:
        send(link, Failed(error.message))
        return 1
    return 0


def _load(load: Load) -> Model:
    if load.node is not None:
        settle_on(load.node)
    with unchanged(load.parts):
        return Model(load.path)


if __name__ == "__main__":
    sys.exit(main())
