"""A child process keeps its hands off the logs of its parent, and can open its own."""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from leveldb import open_leveldb
from uses import USES
from waiting import LIMIT

import scuttleup
from scuttleup import DatabaseError, Scuttleup, ScuttleupError

if not hasattr(os, "fork"):
    pytest.skip("Windows has no fork", allow_module_level=True)

# From 3.12 on, Python warns of a fork while there are threads, as there are in a test run.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

OpenLogs = Callable[..., AbstractContextManager[Scuttleup]]

REFUSAL = "these logs were opened in another process, before a fork: open them again in this one"


def in_child(work: Callable[[], object]) -> str:
    """What `work` returns or raises, as text, in a child by os.fork that then ends at once."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT)  # a child that hangs must not outlive the test
        try:
            result = str(work())
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        os.write(writer, result.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        text = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child hung"
    return text


def is_refused(use: Callable[[], object]) -> bool:
    return in_child(use) == f"ScuttleupError: {REFUSAL}"


@pytest.mark.parametrize("compacted", [False, True])
def test_a_child_is_refused_whatever_it_does_and_the_parent_goes_on(
    tmp_path: Path, open_logs: OpenLogs, compacted: bool
) -> None:
    """After a compaction LevelDB has a thread of its own, which the child lacks."""
    with open_logs(tmp_path / "logs.db", id="us") as logs:
        changes = logs.extend([b"parent"] * 100)
        db = logs._store.database.db
        if compacted:
            db.compact_range()
        for name, use in USES.items():
            assert is_refused(lambda: use(logs)), name  # noqa: B023
        # Nor does it come in through an object that it makes itself.
        assert is_refused(lambda: Scuttleup(db))
        assert is_refused(lambda: Scuttleup(db.prefixed_db(b"prefix")))
        assert in_child(logs.close) == "None", "closing does nothing"
        changes.append(logs.append(b"parent", sync=True))
    with scuttleup.open(tmp_path / "logs.db") as logs:
        assert list(logs.create_read_stream()) == changes


def test_a_child_by_multiprocessing_is_refused_and_leaves_well(logs: Scuttleup) -> None:
    def append() -> None:
        with pytest.raises(ScuttleupError, match=REFUSAL):
            logs.append("x")

    child = multiprocessing.get_context("fork").Process(target=append)
    child.start()
    child.join(LIMIT)
    assert child.exitcode == 0
    assert logs.append("x").seq == 1


@pytest.mark.parametrize("live", [False, True])
def test_a_stream_of_the_parent_is_no_end_in_the_child(logs: Scuttleup, live: bool) -> None:
    changes = logs.extend(["x"] * 1000)
    stream = logs.create_read_stream(live=live)
    seen = [next(stream)]
    assert is_refused(lambda: list(stream))
    assert seen + [next(stream) for _ in range(999)] == changes


def in_new_process(check: Callable[[Path], None], folder: Path) -> None:
    """Call a function of this file where LevelDB has not begun to work in the background."""
    code = f"import pathlib, test_fork; test_fork.{check.__name__}(pathlib.Path({str(folder)!r}))"
    command = [sys.executable, "-W", "ignore", "-c", code]
    subprocess.run(command, cwd=Path(__file__).parent, check=True, timeout=LIMIT)


def check_children_with_databases_of_their_own(folder: Path) -> None:
    def work(depth: int) -> str:
        with scuttleup.open(folder / f"{depth}.db", id="us") as logs:
            logs.append(b"x")
            return in_child(lambda: work(depth - 1)) if depth else "done"

    assert work(4) == "done"
    with scuttleup.open(folder / "3.db") as logs:
        assert logs.head == {"us": 1}


def test_a_child_makes_and_opens_databases_of_its_own(tmp_path: Path) -> None:
    in_new_process(check_children_with_databases_of_their_own, tmp_path)


def check_a_thread_that_is_about_to_end(folder: Path) -> None:
    scuttleup.open(folder / "logs.db").close()
    _thread.start_new_thread(time.sleep, (0.005,))  # `threading` does not know it, as at its end
    assert in_child(lambda: scuttleup.open(folder / "logs.db").close()) == "None"


def test_a_thread_of_python_that_ends_at_the_fork_is_not_taken_for_that_of_leveldb(
    tmp_path: Path,
) -> None:
    in_new_process(check_a_thread_that_is_about_to_end, tmp_path)


def test_a_child_opens_nothing_where_leveldb_would_wait_for_its_thread(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "logs.db") as logs:
        logs._store.database.db.compact_range()  # this starts the thread
    for use in (
        lambda: scuttleup.open(tmp_path / "logs.db"),
        lambda: scuttleup.open(tmp_path / "new.db"),
        lambda: Scuttleup(open_leveldb(tmp_path / "other.db")),
    ):
        result = in_child(use)
        assert in_child(lambda: in_child(use)) == result  # noqa: B023
        assert result.startswith(
            "ScuttleupError: this process was forked when LevelDB may have begun"
        )
    assert not (tmp_path / "new.db").exists()


def check_what_the_parent_has_open(folder: Path) -> None:
    path = folder / "logs.db"
    with scuttleup.open(path):
        refusal = f"DatabaseError: {path} is open in another process"
        assert in_child(lambda: scuttleup.open(path)) == refusal
        assert in_child(lambda: in_child(lambda: scuttleup.open(path))) == refusal
    assert in_child(lambda: scuttleup.open(path).close()) == "None"


def test_what_the_parent_has_open_is_open_in_another_process_for_the_child(tmp_path: Path) -> None:
    in_new_process(check_what_the_parent_has_open, tmp_path)


@pytest.mark.parametrize("name", ["reads", "writes"])
def test_a_lock_that_a_thread_held_at_the_fork_does_not_hold_up_the_child(
    logs: Scuttleup, name: str
) -> None:
    lock = getattr(logs._store.database, name)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lock.acquire).result(LIMIT)
        try:
            for use in USES.values():
                assert is_refused(lambda: use(logs))  # noqa: B023
        finally:
            thread.submit(lock.release).result(LIMIT)
    assert logs.append("x").seq == 1


PROGRAM = """
import os, signal, sys, scuttleup
path, leave = sys.argv[1:]
with scuttleup.open(path, id="us") as logs:
    logs.extend([bytes(50_000)] * 300)
    logs._store.database.db.compact_range()
    snapshot, live = logs.create_read_stream(), logs.create_read_stream(live=True)
    next(snapshot), next(live)
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            logs.append(b"x")
        except scuttleup.ScuttleupError:
            print("refused", flush=True)
        sys.exit() if leave == "sys.exit" else os._exit(0) if leave == "os._exit" else None
    else:
        assert os.waitpid(child, 0)[1] == 0, "the child hung"
        logs.append(b"x")
"""


@pytest.mark.parametrize("leave", ["sys.exit", "os._exit", "the end of the program"])
def test_a_child_may_end_in_any_way(tmp_path: Path, leave: str) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "logs.db"), leave],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "refused\n", "")
    with scuttleup.open(tmp_path / "logs.db") as logs:
        assert logs.head == {"us": 301}


DAEMON = """
import os, signal, sys, scuttleup
logs = scuttleup.open(sys.argv[1], id="us")
logs.append(b"parent")
if os.fork():
    os._exit(0)  # ends the parent, and with it the parent's hold on the database
signal.alarm(20)
os.setsid()
while True:
    try:
        logs = scuttleup.open(sys.argv[1])
        break
    except scuttleup.DatabaseError:  # the parent is not gone yet
        pass
print(logs.append(b"child").seq, flush=True)
sys.stdin.read()
"""


def test_a_daemon_opens_the_logs_again_and_nobody_gets_in_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", DAEMON, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as daemon:
        assert daemon.stdout
        assert daemon.stdout.readline() == b"2\n"
        assert daemon.wait(LIMIT) == 0
        with pytest.raises(DatabaseError, match="is open in another process"):
            scuttleup.open(path)
        assert daemon.communicate(timeout=LIMIT)[0] == b"", "the child has ended"
    with scuttleup.open(path) as logs:
        assert logs.head == {"us": 2}
