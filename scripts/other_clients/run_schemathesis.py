"""Has Schemathesis try every endpoint of /openapi.json. Part of scripts/clients.

Three servers, one after the other, for what each kind of model answers. All of them are tiny: what
is looked at is that no request is a server error and that every answer is what the document says.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import small_model

import tiny_bert
from lbhost.model import resolve
from serving import Server

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
_GENERATED = re.compile(r"(\d+) generated")


def main(there: Path, cases: int) -> int:
    """The exit status: 0 when all was in order, and no fewer cases were tried than that."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = small_model.write(folder / "text.gguf", resolve("starter").path)
        vectors = tiny_bert.write(folder / "vectors.gguf")
        ranks = tiny_bert.write(folder / "ranks.gguf", gguf.PoolingType.RANK)
        each = max(4, cases // 16)
        tried = [
            _try(there, folder / "text", text, each, "--ctx-size", "128"),
            _try(there, folder / "vectors", vectors, each, path="/v1/embeddings"),
            _try(there, folder / "ranks", ranks, each, path="/v1/rerank"),
        ]
    count = sum(count for _, count in tried)
    print(f"schemathesis: {count} cases")
    return max([*(status for status, _ in tried), 1 if count < cases else 0])


def _try(
    there: Path, folder: Path, model: Path, each: int, *flags: str, path: str = ""
) -> tuple[int, int]:
    """Schemathesis' exit status, and how many cases there were."""
    folder.mkdir()
    usual = ("--workers", "2", "--no-probe", "--embedding-cache", "0", "--model", str(model))
    with Server(folder / "run", *usual, *flags) as server:
        command = [str(there / "bin/schemathesis"), "run", f"{server.endpoint}/openapi.json"]
        command += ["--phases", "coverage,fuzzing", "--checks", ",".join(CHECKS), "--seed", "1"]
        command += ["--max-examples", str(each), "--continue-on-failure", "--no-color"]
        command += ["--request-timeout", "60", "--suppress-health-check", "all"]
        command += ["--include-path", path] if path else []
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    return done.returncode, sum(map(int, _GENERATED.findall(done.stdout)))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), int(sys.argv[2])))
