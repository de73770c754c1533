"""Starts a server and has each environment's clients talk with it. Part of scripts/clients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import tiny_bert
from llama_cpp_vectors import SHARED
from serving import Server

HERE = Path(__file__).parent
KEY = "a-key-of-the-clients"
VECTORS = "vectors"
"""What the server calls its embedding model."""


def config(folder: Path) -> Path:
    """An lbhost.toml with the starter model first, and one that embeds: a real one where it lies
    beside the checkout."""
    embedder = SHARED if SHARED.exists() else tiny_bert.write(folder / "tiny.gguf")
    file = folder / "lbhost.toml"
    file.write_text(
        f"""
api_key = "{KEY}"
ctx_size = 2048
embedding_cache = 0
[[models]]
name = "chat"
path = "starter"
workers = 2
[[models]]
name = "{VECTORS}"
path = {json.dumps(str(embedder))}
workers = 1
ctx_size = 256
"""
    )
    return file


def main(there: Path) -> int:
    """The exit status: 0 when all clients got what they expect."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--config", str(config(Path(folder))), "--no-probe")
        with Server(Path(folder) / "run", *flags) as server:
            environ = {**os.environ, "LBHOST_URL": server.endpoint, "LBHOST_KEY": KEY}
            environ["LBHOST_VECTORS"] = VECTORS
            environ["LLM_USER_PATH"] = folder
            programs = [[str(there / "bin/python"), "-m", "pytest", "-q", "-c", os.devnull]]
            programs[0] += ["-p", "no:cacheprovider", str(HERE / "test_clients.py")]
            if (there / "clients.mjs").exists():
                programs.append(["node", str(there / "clients.mjs")])
            failed = [p for p in programs if subprocess.run(p, env=environ, check=False).returncode]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
