"""The runtime dir: one server each, closed to others, clean afterwards."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lbhost.errors import StartupError
from lbhost.supervisor import runtime
from lbhost.supervisor.runtime import RuntimeDir


def refusal(path: Path) -> str:
    with pytest.raises(StartupError) as caught:
        RuntimeDir.claim(path)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_it_is_made_for_us_alone_and_removed_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    claimed = RuntimeDir.claim(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    with claimed.listen():
        assert stat.S_IMODE(claimed.socket_path.stat().st_mode) == 0o600
    claimed.release()
    assert not path.exists()


def test_what_others_put_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "run"
    claimed = RuntimeDir.claim(path)
    (path / "notes").write_text("mine")
    claimed.release()
    assert os.listdir(path) == ["notes"]  # noqa: PTH208


def test_a_second_claim_names_the_first(tmp_path: Path) -> None:
    path = tmp_path / "run"
    claimed = RuntimeDir.claim(path)
    assert f"pid {os.getpid()} already runs" in refusal(path)
    claimed.announce("http://127.0.0.1:8080")
    assert f"pid {os.getpid()} at http://127.0.0.1:8080" in refusal(path)
    claimed.release()
    RuntimeDir.claim(path).release()


def test_what_a_killed_server_left_behind_is_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir(mode=0o700)
    (path / runtime.LOCK_NAME).write_text('{"pid": 1, "endpoint": "http://x"}')
    (path / runtime.SOCKET_NAME).write_text("stale")
    claimed = RuntimeDir.claim(path)
    claimed.listen().close()
    claimed.release()


def test_a_garbled_lock_file_still_refuses(tmp_path: Path) -> None:
    path = tmp_path / "run"
    claimed = RuntimeDir.claim(path)
    (path / runtime.LOCK_NAME).write_text("garbage")
    assert "another server" in refusal(path)
    claimed.release()


def test_a_folder_whose_files_were_deleted_is_still_taken(tmp_path: Path) -> None:
    path = tmp_path / "run"
    claimed = RuntimeDir.claim(path)
    with claimed.listen():
        claimed.socket_path.unlink()
        (path / runtime.LOCK_NAME).unlink()
        assert "another server already runs" in refusal(path)
        with pytest.raises(StartupError, match="another server already runs"):
            runtime.require_free(path)
    claimed.release()
    assert not path.exists()


def who_claims_it_next_keeps_it(path: Path, first: RuntimeDir) -> None:
    """Whatever the server that had the folder does at its end."""
    second = RuntimeDir.claim(path)
    with second.listen():
        first.release()
        assert second.socket_path.exists()
        assert f"pid {os.getpid()} already runs" in refusal(path)
    second.release()
    assert not path.exists()


def test_another_servers_folder_of_the_same_name_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = RuntimeDir.claim(path)
    path.rename(tmp_path / "taken away")
    who_claims_it_next_keeps_it(path, first)


def test_a_folder_open_to_others_or_not_ours_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    path.mkdir(mode=0o755)
    path.chmod(0o750)
    assert "mode 750" in refusal(path)
    path.chmod(0o700)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert "belongs to another user" in refusal(path)


def test_links_and_files_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert "is a link: name the folder itself with --runtime-dir" in refusal(tmp_path / "link")
    (tmp_path / "nowhere").symlink_to(tmp_path / "no folder")
    assert "is a link: name the folder itself" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "is not a folder: move it away, or choose another" in refusal(tmp_path / "file")
    assert "cannot make the runtime dir" in refusal(tmp_path / "file" / "below")


def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 100)
    assert "shorter --runtime-dir" in refusal(path)
    assert not path.exists()


_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from lbhost import stream
from lbhost.errors import StartupError
from lbhost.supervisor.runtime import RuntimeDir
stream.protect()
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file takes a byte any more
claimed = RuntimeDir.claim(Path(sys.argv[1]))
claimed.announce("http://127.0.0.1:8080")
with claimed.listen():
    try:
        RuntimeDir.claim(Path(sys.argv[1]))
    except StartupError as error:
        print(error.message)
claimed.release()
"""


def test_a_full_disk_hinders_no_start_and_a_second_server_is_still_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    command = [sys.executable, "-c", _ON_A_FULL_DISK, str(path)]
    done = subprocess.run(command, timeout=60, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "another server already runs" in done.stdout
    assert not path.exists()


def test_a_folder_that_was_cleaned_away_is_the_next_servers(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = RuntimeDir.claim(path)
    first.listen().close()
    shutil.rmtree(path)
    who_claims_it_next_keeps_it(path, first)


def test_a_socket_path_that_cannot_be_cleared_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run"
    (path / runtime.SOCKET_NAME).mkdir(parents=True)
    path.chmod(0o700)
    assert "cannot remove" in refusal(path)
    assert not (path / runtime.LOCK_NAME).exists()
