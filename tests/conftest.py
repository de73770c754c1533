"""Fixtures that every test file shares, and what no test may leave behind."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest
import structlog
import uvloop
from hypothesis import HealthCheck, settings

from fake_admin import FakeAdmin
from lbhost import linux
from left_behind import Possessions
from serving import Server

os.environ["LBHOST_PROBE"] = os.environ["LBHOST_TUNED"] = os.environ["LBHOST_EMBEDDING_CACHE"] = "0"
"""No server of a test measures its box first, is as somebody tuned it, or keeps vectors in the
user's cache, but those that say so."""

for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    # A shell has what it runs in the background ignore these, and every server of ours with it:
    # each would be waited for in vain for minutes.
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# The machines that run the tests are shared: a slow example says nothing of the code.
settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("patient")

_FAILED = pytest.StashKey[bool]()
_KEEPING = {"shared", "forks", "fuzzed"}
"""A module's fixtures that keep what a test has made with them (connections, threads, processes):
they answer for it at the module's end."""

_told: set[str] = set()
"""What a test has failed for already: its module need not fail for it again."""


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The supervisor and the TUI run on asyncio's own loop, the gateway on uvloop."""
    return "asyncio", {"use_uvloop": request.node.get_closest_marker("uvloop") is not None}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="lbhost-") as name:
        yield Path(name)


@pytest.fixture
async def fake(folder: Path) -> AsyncIterator[FakeAdmin]:
    """What a dashboard or client talks with, instead of a server."""
    async with FakeAdmin(folder / "admin.sock") as server:
        yield server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-leftovers",
        action="store_false",
        dest="leftovers",
        help="do not fail tests that leave descriptors, processes, threads or settings behind",
    )


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """How pytest-xdist may share out the tests (scripts/test says when it does).

    A file's stay together, for its fixtures' sake. All that start real servers go one after the
    other: two at once would be on each other's cores.
    """
    for item in items:
        if item.get_closest_marker("xdist_group"):
            continue
        starts_servers = getattr(item.module, "Server", None) is Server
        group = "servers" if starts_servers else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish() -> None:
    """What imports have made stays: garbage is looked for only among what tests make."""
    uvloop.new_event_loop().close()  # libuv keeps a pipe for signals, once and for all loops
    linux.oom_score()  # and this one file is kept open for the life of a process
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note who has failed: the traceback holds what the test had open."""
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
        if (module := item.getparent(pytest.Module)) is not None:
            module.stash[_FAILED] = True
    return report


def _left(before: Possessions) -> None:
    left = [what for what in before.leftovers() if what not in _told]
    _told.update(left)
    assert not left, "left behind: " + "; ".join(left)


def _ended(request: pytest.FixtureRequest) -> bool:
    """Whether a test has ended as it should; lets go of what its fixtures have let go.

    A test that failed keeps it in its traceback. So does one that Ctrl-C has interrupted, and
    pytest has taken its arguments away by then.
    """
    if _FAILED in request.node.stash or request.node.funcargs is None:
        return False
    request.node.funcargs.clear()
    return True


@pytest.fixture(scope="module", autouse=True)
def _modules_fixtures_leave_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    if not request.config.getoption("leftovers"):
        yield
        return
    before = Possessions.now()
    yield
    if _FAILED not in request.node.stash:
        _left(before)


@pytest.fixture(autouse=True)
def _logs_go_where_they_went() -> Iterator[None]:
    """What configures logging takes this test's stderr, which is closed after it."""
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture(autouse=True)
def _tests_leave_nothing(
    _modules_fixtures_leave_nothing: None, request: pytest.FixtureRequest
) -> Iterator[None]:
    if not request.config.getoption("leftovers"):
        yield
        return
    if _KEEPING & set(request.fixturenames):
        yield
        _ended(request)
        return
    before = Possessions.now()
    yield
    if _ended(request):
        _left(before)
