"""A child process of one that has used LevelDB uses none, and harms nobody."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from leveldb import open_leveldb
from uses import USES
from waiting import LIMIT

import scuttleup
from scuttleup import Scuttleup, ScuttleupError
from scuttleup.leveldb.fork import FORKED

if not hasattr(os, "fork"):
    pytest.skip("Windows has no fork", allow_module_level=True)

# From 3.12 on, Python warns of a fork while there are threads, as there are in a test run.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

OpenLogs = Callable[..., AbstractContextManager[Scuttleup]]


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
    return in_child(use) == f"ScuttleupError: {FORKED}"


def test_a_child_is_refused_whatever_it_does_and_the_parent_goes_on(
    tmp_path: Path, open_logs: OpenLogs
) -> None:
    with open_logs(tmp_path / "logs.db", id="us") as logs:
        changes = logs.extend([b"parent"] * 100)
        db = logs._store.database.db
        db.compact_range()  # now LevelDB has a thread of its own, which the child lacks
        for name, use in USES.items():
            assert is_refused(lambda: use(logs)), name  # noqa: B023
        # Nor does it come in through an object that it makes itself.
        assert is_refused(lambda: Scuttleup(db))
        assert is_refused(lambda: Scuttleup(db.prefixed_db(b"prefix")))
        assert in_child(logs.close) == "None", "closing does nothing"
        changes.append(logs.append(b"parent", sync=True))
    with scuttleup.open(tmp_path / "logs.db") as logs:
        assert list(logs.create_read_stream()) == changes


def test_a_child_that_is_forked_while_a_database_is_opened_is_refused(tmp_path: Path) -> None:
    code = """if 1:
        import os, sys, scuttleup
        from scuttleup.leveldb import fork
        with fork.opening:  # as another thread does that opens its first database
            child = os.fork()
            if not child:
                try:
                    scuttleup.open(sys.argv[1])
                except scuttleup.ScuttleupError as error:
                    print(error, flush=True)
                os._exit(0)
        os.waitpid(child, 0)
        scuttleup.open(sys.argv[1]).append("parent")"""
    command = [sys.executable, "-c", code, str(tmp_path / "logs.db")]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=LIMIT)
    assert result.stdout == f"{FORKED}\n"


def test_a_child_by_multiprocessing_is_refused_and_leaves_well(logs: Scuttleup) -> None:
    def append() -> None:
        with pytest.raises(ScuttleupError, match="forked from one that had used LevelDB"):
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


@pytest.mark.parametrize("state", ["open", "closed"])
def test_a_child_can_use_no_database_at_all_nor_can_its_children(
    tmp_path: Path, state: str
) -> None:
    """Which ones LevelDB would hang on cannot be known: the rule is the same for all of them."""
    logs = scuttleup.open(tmp_path / "logs.db")
    if state == "closed":
        logs.close()
    for use in (
        lambda: scuttleup.open(tmp_path / "logs.db"),
        lambda: scuttleup.open(tmp_path / "new.db"),
        lambda: Scuttleup(open_leveldb(tmp_path / "other.db")),
    ):
        assert is_refused(use)
        assert in_child(lambda: is_refused(use)) == "True"  # noqa: B023
    assert not (tmp_path / "new.db").exists()


FORK_FIRST = """
import os, sys, scuttleup
child = os.fork()
with scuttleup.open(f"{sys.argv[1]}/{bool(child)}.db", id="us") as logs:
    os.write(1, b"%d " % logs.append(b"x").seq)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def run(program: str, *arguments: object) -> str:
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_who_forks_first_opens_databases_on_both_sides(tmp_path: Path) -> None:
    assert sorted(run(FORK_FIRST, tmp_path).split()) == ["1", "1"]


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
    assert run(PROGRAM, tmp_path / "logs.db", leave) == "refused\n"
    with scuttleup.open(tmp_path / "logs.db") as logs:
        assert logs.head == {"us": 301}


ORPHAN = """
import os, signal, sys, scuttleup
logs = scuttleup.open(sys.argv[1], id="us")
logs.append(b"parent")
if os.fork():
    os._exit(0)  # without a word, as a kill ends it
signal.alarm(20)
print("orphan", flush=True)
sys.stdin.read()
"""


def test_a_child_that_outlives_its_parent_keeps_nobody_out(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", ORPHAN, str(tmp_path / "logs.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"orphan\n"
        assert parent.wait(LIMIT) == 0
        with scuttleup.open(tmp_path / "logs.db") as logs:
            assert logs.append(b"x").seq == 2
        parent.communicate(timeout=LIMIT)
