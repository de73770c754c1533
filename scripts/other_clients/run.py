"""Starts a server and has each environment's clients talk with it. Part of scripts/clients."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from serving import Server

HERE = Path(__file__).parent
KEY = "a-key-of-the-clients"


def main(there: Path) -> int:
    """The exit status: 0 when all clients got what they expect."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--workers", "2", "--ctx-size", "2048", "--api-key", KEY, "--no-probe")
        with Server(Path(folder) / "run", *flags) as server:
            environ = {**os.environ, "LBHOST_URL": server.endpoint, "LBHOST_KEY": KEY}
            environ["LLM_USER_PATH"] = folder
            programs = [[str(there / "bin/python"), "-m", "pytest", "-q", "-c", os.devnull]]
            programs[0] += ["-p", "no:cacheprovider", str(HERE / "test_clients.py")]
            if (there / "clients.mjs").exists():
                programs.append(["node", str(there / "clients.mjs")])
            failed = [p for p in programs if subprocess.run(p, env=environ, check=False).returncode]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
