"""`python -m board_writer FD SECONDS`: writes one row of a board as fast as it can.

All columns of a row come from one counter, so that a reader sees a torn one. Ends with its
parent, and after SECONDS at the latest.
"""

from __future__ import annotations

import os
import sys
import time

from lbhost.board import Board, ProgressRow


def row(n: int) -> ProgressRow:
    """The n-th row."""
    return ProgressRow(
        epoch=n,
        heartbeat_ns=n * 3,
        steps=n,
        predicted_step_s=float(n),
        slots_busy=n,
        waiting=n,
        prefill_pending=n,
        kv_used=n,
        kv_total=n,
        prefill_tok_s=None if n % 2 else float(n),
        step_base_s=float(n),
        step_seq_s=float(n),
        rss_bytes=n,
        tokens_out=n,
    )


def main() -> None:
    board = Board.attach(int(sys.argv[1]))
    parent, end = os.getppid(), time.monotonic() + float(sys.argv[2])
    n = 0
    while os.getppid() == parent and time.monotonic() < end:
        for _ in range(100):
            n += 1
            board.progress.write(0, row(n))


if __name__ == "__main__":
    main()
