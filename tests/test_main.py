"""From the start to a running server: what stops it on the way."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from serving import PATIENCE_S

pytestmark = pytest.mark.e2e

STOPPED_WITHIN_A_CALLBACK = """
import ctypes, os, signal, sys
from lbhost import inspection
from lbhost.cli import main

real = inspection.inspect

@ctypes.CFUNCTYPE(None)
def called_by_c():
    os.kill(os.getpid(), int(sys.argv[2]))

def inspect(path, *more):
    called_by_c()
    return real(path, *more)

inspection.inspect = inspect
sys.exit(main(["serve", "--port", "0", "--workers", "1", "--runtime-dir", sys.argv[1]]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_within_a_callback_of_c_code_is_not_lost(
    tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", STOPPED_WITHIN_A_CALLBACK, str(run), str(int(number))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 0
    assert "starts at" not in ended.stdout
    assert not run.exists()
