"""What all tests share: real databases in a folder of the test's own, and tests as coroutines."""

from __future__ import annotations

import asyncio
import inspect
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import pytest
from commands import Command
from hypothesis import HealthCheck, settings
from leveldb import FakeDB, open_leveldb
from waiting import settle

import scuttleup
from scuttleup import Scuttleup, limits
from scuttleup.command import cli
from scuttleup.encodings import find_encoding
from scuttleup.sharing import SharedStore

# On a busy machine no example fails because it took its time.
settings.register_profile(
    "unhurried", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unhurried")

# A shell that starts the suite in the background has it ignore Ctrl-C, and so would each command.
signal.signal(signal.SIGINT, signal.default_int_handler)

TEST_SECONDS = 60  # that a coroutine test may take; most take a moment
test_time = asyncio.Timeout(None)  # of the coroutine test that runs


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is an `async def` in an event loop of its own.

    The test fails if it takes longer than TEST_SECONDS, and if a task that it started does not end.
    """
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}
    asyncio.run(_run(test(**arguments)))
    return True


async def _run(test: Coroutine[Any, Any, None]) -> None:
    global test_time
    async with asyncio.timeout(TEST_SECONDS) as test_time:
        await test
    # A task that is about to end, such as that of a connection just closed, may do so.
    me = asyncio.current_task()
    left: set[asyncio.Task[Any]] = set()
    with suppress(TimeoutError):
        async with asyncio.timeout(10):
            while left := {task for task in asyncio.all_tasks() if task is not me}:
                await asyncio.wait(left)
    assert not left, f"the test left tasks behind: {left}"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Any]:
    with open_leveldb(tmp_path / "logs.db") as db:
        yield db


@pytest.fixture
def fake(db: Any) -> FakeDB:
    return FakeDB(db)


@pytest.fixture
def logs(request: pytest.FixtureRequest) -> Iterator[Scuttleup]:
    """Logs with the id "us" and text entries, in the LevelDB `db`.

    A test that does without `db` runs once more with logs that are shared by their owner.
    """
    if getattr(request, "param", "local") == "local":
        logs = Scuttleup(request.getfixturevalue("db"), id="us", value_encoding="utf-8")
        yield logs
        logs.close()
        return
    path = request.getfixturevalue("tmp_path") / "logs.db"
    with scuttleup.open(path, id="us", share=True), use_shared(path) as logs:
        yield logs


def use_shared(path: Path, encoding: str = "utf-8") -> Scuttleup:
    """Logs that use the shared database at `path`, as another process would."""
    logs = object.__new__(Scuttleup)
    logs._use(SharedStore(str(path), {}), find_encoding(encoding), None, None)
    return logs


# The files whose tests of `logs` are run with shared logs as well, and what asks for the owner's.
SHARED = ("test_log.py", "test_read_stream.py")
OF_THE_OWNER = {"db", "fake"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = {*metafunc.fixturenames}
    marked = any(metafunc.definition.iter_markers("of_the_owner"))
    of_the_owner = marked or names & OF_THE_OWNER
    if "logs" in names and Path(metafunc.definition.path).name in SHARED and not of_the_owner:
        metafunc.parametrize("logs", ["local", "shared"], indirect=True)


@pytest.fixture
def new_logs(tmp_path: Path) -> Iterator[Callable[..., Scuttleup]]:
    """Opens as many databases as a test wants: `new_logs("foobar", value_encoding="utf-8")`."""
    made: list[Scuttleup] = []

    def make(id: str, **options: Any) -> Scuttleup:
        options.setdefault("value_encoding", "utf-8")
        made.append(scuttleup.open(tmp_path / f"{len(made)}.db", id=id, **options))
        return made[-1]

    yield make
    for logs in made:
        logs.close()


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets limits of the package: `limit(LINGER=0.05)`."""

    def set(**values: float) -> None:
        for name, value in values.items():
            monkeypatch.setattr(limits, name, value)

    return set


@pytest.fixture
def skip(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Awaitable[None]]:
    """Lets the clock of the event loop jump, and those go on who waited for that."""
    ahead = 0.0

    async def skip(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds
        test_time.reschedule((test_time.when() or 0) + seconds)
        await settle()

    clock = SimpleNamespace(**vars(time) | {"monotonic": lambda: time.monotonic() + ahead})
    monkeypatch.setattr(asyncio.base_events, "time", clock)
    return skip


@pytest.fixture
def new_certificates(tmp_path: Path) -> Callable[[], list[str]]:
    """Makes the files that `load_tls` takes, with an authority of their own at each call."""
    import trustme  # imported here, as only tests of TLS need it

    def make() -> list[str]:
        authority = trustme.CA()
        own = authority.issue_cert("not.where.it.runs.example")
        folder = mkdtemp(dir=tmp_path)
        files = {
            "cert": own.cert_chain_pems[0],
            "key": own.private_key_pem,
            "ca": authority.cert_pem,
        }
        for name, content in files.items():
            content.write_to_path(f"{folder}/{name}.pem")
        return [f"{folder}/{name}.pem" for name in files]

    return make


@pytest.fixture
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The current folder is the test's own, and no `Command` of the test outlives it."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as Command.ends:
        yield


@pytest.fixture
def command() -> Iterator[Callable[[list[str]], int]]:
    """Runs a command in this process, and puts back the handlers of signals that it changes."""
    names = {"SIGTERM", "SIGPIPE"} & set(dir(signal))
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    yield cli.main
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@contextmanager
def _open_in_own_leveldb(path: Path, **options: Any) -> Iterator[Scuttleup]:
    with open_leveldb(path) as db, Scuttleup(db, **options) as logs:
        yield logs


@pytest.fixture(params=[scuttleup.open, _open_in_own_leveldb], ids=["opened", "own LevelDB"])
def open_logs(request: pytest.FixtureRequest) -> Any:
    """`scuttleup.open`, and the same in a LevelDB that the caller opens, and closes after it."""
    return request.param
