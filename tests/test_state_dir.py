"""KV states outlive a real server: the next one goes on from them, but from no damaged one."""

from __future__ import annotations

import signal
from pathlib import Path

from lbhost.worker.saving import LEAST, Doing
from serving import KV_BYTES, PATIENCE_S, Server, wait_for

PROMPT = " ".join(f"The {n}th river of the land is longer than the one before." for n in range(30))


def total(server: Server, name: str) -> float:
    lines = server.http.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith(f"lbhost_state_{name}")]
    return float(found[0].split()[1])


def ask(server: Server) -> tuple[str, int]:
    answer = server.complete(PROMPT, max_tokens=8).json()
    return answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]


def stop(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0


def test_a_restarted_server_is_warm_and_damaged_files_are_not_used(tmp_path: Path) -> None:
    states = tmp_path / "states"
    flags = ("--state-dir", str(states), "--workers", "1", "--ctx-size", "1024")

    with Server(tmp_path / "run", *flags) as server:
        text, count = ask(server)
        # The first state may be one that was saved while the prompt was being computed; then what
        # has come since may be too little for a save of its own.
        worth = (count - LEAST[Doing.NOTHING]) * KV_BYTES
        wait_for(lambda: total(server, "bytes") >= worth, "nearly all of it is saved")
        stop(server)
    kept = list(states.rglob("*.state"))
    assert kept
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in kept)

    with Server(tmp_path / "run", *flags) as server:
        wait_for(lambda: total(server, "restores_total") >= 1, "the state is read")
        assert ask(server)[0] == text
        wait_for(lambda: total(server, "hits_total") >= 1, "a worker went on from it")
        assert total(server, "tokens_total") > count / 2
        stop(server)

    for path in states.rglob("*.state"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    with Server(tmp_path / "run", *flags) as server:
        assert ask(server)[0] == text
        assert total(server, "restores_total") == 0
        assert total(server, "hits_total") == 0
