"""A GPU worker: `python -m lbhost.worker --control-fd N`, one process per GPU.

It loads the weights for itself, because CUDA does not survive a fork. The supervisor lets
it see one GPU only.
"""

from __future__ import annotations

import os
import sys

from lbhost import control
from lbhost.board import Board
from lbhost.errors import LbhostError
from lbhost.guidance import Constraints
from lbhost.llama import Model
from lbhost.weights import unchanged
from lbhost.worker import start


def main() -> int:
    """Take Configure and Fork from the control link, load, and serve."""
    link = start.take_link("lbhost.worker")
    first, second = control.receive(link), control.receive(link)
    if first is None or second is None:
        return 0
    (configure, fds), (fork, _) = first, second
    if not isinstance(configure, control.Configure) or not isinstance(fork, control.Fork):
        raise LbhostError("expected Configure, then Fork")
    settings = configure.settings
    start.configure_log(settings, fork)
    control.send(link, control.Hello(os.getpid()))
    try:
        with unchanged(configure.files):
            model = Model(configure.model_path, gpu=True, adapters=configure.adapters)
    except LbhostError as error:
        control.send(link, control.Failed(error.message))
        return 1
    constraints = Constraints(model.vocab) if configure.purpose.generates else None
    return start.serve(link, Board.attach(fds[0]), configure, fork, model, constraints)


if __name__ == "__main__":
    sys.exit(main())
