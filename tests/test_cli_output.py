"""What the command line does where it cannot write."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from lbhost import cli
from test_cli import one_line


def test_a_full_disk_under_the_output_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        made = subprocess.run(
            [sys.executable, "-m", "lbhost", "completion", "bash"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert made.returncode == 1
    assert "cannot write the output: No space left on device" in one_line(made.stderr)


def test_printing_fails_neither_for_want_of_an_output_nor_of_a_character(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "run", lambda _: sys.stdout.write("a\u2013b\n") and None)
    in_ascii = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", in_ascii)
    with pytest.raises(SystemExit):
        cli.main([])
    assert in_ascii.buffer.getvalue() == b"a?b\n"
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit):
        cli.main([])
    sys.stdout.close()
    sys.stderr.close()
