"""How soon the kernel ends which process, when memory runs out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import subprocess, sys
from pathlib import Path
from lbhost import linux

had, score, read = sys.argv[1], int(sys.argv[2]), ["cat", "/proc/self/oom_score_adj"]
own = Path("/proc/self/oom_score_adj")
own.write_text(had)
with linux.oom_score().at(score):
    print(subprocess.check_output(read, text=True).strip())
print(own.read_text().strip())
linux.end_sooner(score)
print(own.read_text().strip())
"""


@pytest.mark.parametrize(
    ("had", "score", "child", "then"), [("700", 800, "800", "800"), ("900", 500, "900", "900")]
)
def test_a_score_is_raised_and_never_lowered(had: str, score: int, child: str, then: str) -> None:
    """A container's processes may not go below what it was given: trying raised."""
    if int(Path("/proc/self/oom_score_adj").read_text()) > int(had):
        pytest.skip(f"this run may not have {had}: it was given more itself")
    command = [sys.executable, "-c", PROGRAM, had, str(score)]
    said = subprocess.check_output(command, text=True).split()
    assert said == [child, had, then]
