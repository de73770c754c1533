"""A state dir that is taken away under a running server."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from lbhost.config import Settings
from lbhost.supervisor.events import EventLog
from lbhost.supervisor.state_folder import StateFolder


class Watched:
    """A folder, and who looks at it."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.events = EventLog()
        self.folder = StateFolder(Settings(state_dir=str(path), **settings), self.events)

    def look(self) -> None:
        """Once, and at what that has found."""
        for _ in range(2):
            self.folder.look()
            if self.folder._thread is not None:
                self.folder._thread.join()
        self.folder.look()

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(event.level, event.message) for event in self.events.after(0)]


def test_a_state_dir_that_is_removed_is_told_once_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "states"
    path.mkdir()
    watched = Watched(path)
    watched.look()
    assert (watched.told, watched.folder.warnings) == ([], [])
    path.rename(tmp_path / "away")
    watched.look()
    watched.look()
    ((level, text),) = watched.told
    assert level == "warning"
    assert [text] == watched.folder.warnings
    assert str(path) in text
    assert "lost when the server stops" in text
    assert "restart it when convenient" in text


def test_another_folder_of_the_same_name_is_not_the_servers(tmp_path: Path) -> None:
    path, away = tmp_path / "states", tmp_path / "away"
    path.mkdir()
    watched = Watched(path)
    path.rename(away)
    path.mkdir()
    watched.look()
    assert [level for level, _ in watched.told] == ["warning"]
    path.rmdir()
    away.rename(path)
    watched.look()
    assert [level for level, _ in watched.told] == ["warning", "info"]
    assert watched.folder.warnings == []


def test_a_box_without_a_thread_to_spare_is_looked_at_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    path = tmp_path / "states"
    path.mkdir()
    watched = Watched(path)
    path.rmdir()
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", start)
        watched.folder.look()
    assert watched.told == []
    watched.look()
    assert [level for level, _ in watched.told] == ["warning"]


def test_where_no_states_are_kept_on_disk_there_is_nothing_to_tell(tmp_path: Path) -> None:
    for watched in (Watched(tmp_path / "none", state_cache="0"), Watched(tmp_path)):
        watched.look()
        assert watched.told == []
    nowhere = StateFolder(Settings(), EventLog())
    nowhere.look()
    assert nowhere._thread is None
