"""A child process keeps its hands off the logs of its parent, and can open its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from leveldb import open_leveldb
from waiting import LIMIT, start

import scuttleup
from scuttleup import Change, DatabaseError, Scuttleup

if not hasattr(os, "fork"):
    pytest.skip("Windows has no fork", allow_module_level=True)

# From 3.12 on, Python warns of a fork while there are threads, as there are in a test run.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

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


def in_multiprocessing(work: Callable[[], object]) -> str:
    """The same in a child by multiprocessing, which leaves as its library has it."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def run() -> None:
        try:
            writer.send(str(work()))
        except BaseException as error:
            writer.send(f"{type(error).__name__}: {error}")

    child = context.Process(target=run)
    child.start()
    text: str = reader.recv() if reader.poll(LIMIT) else "the child hung"
    child.join(LIMIT)
    assert child.exitcode == 0
    return text


@pytest.fixture(params=[in_child, in_multiprocessing])
def fork(request: pytest.FixtureRequest) -> Any:
    return request.param


def enter(logs: Scuttleup) -> None:
    with logs:
        logs.append(b"x")


USES: dict[str, Callable[[Scuttleup], object]] = {
    "append": lambda logs: logs.append(b"x"),
    "append with sync": lambda logs: logs.append(b"x", sync=True),
    "extend": lambda logs: logs.extend([b"x"]),
    "write": lambda logs: logs.write([Change("them", 1, b"x")]),
    "delete": lambda logs: logs.delete("us", 1),
    "entry": lambda logs: logs.entry("us", 1),
    "snapshot": lambda logs: list(logs.create_read_stream()),
    "live stream": lambda logs: next(logs.create_read_stream(live=True)),
    "tail": lambda logs: logs.create_read_stream(tail=True),
    "replication": lambda logs: logs.create_replication_stream(),
    "with": enter,
}


@pytest.mark.parametrize("own", [False, True], ids=["opened", "own LevelDB"])
@pytest.mark.parametrize("compacted", [False, True])
def test_a_child_is_refused_whatever_it_does_and_the_parent_goes_on(
    tmp_path: Path, fork: Any, own: bool, compacted: bool
) -> None:
    """After a compaction LevelDB has a thread of its own, which the child lacks."""
    path = tmp_path / "logs.db"
    db = open_leveldb(path) if own else None
    logs = Scuttleup(db, id="us") if own else scuttleup.open(path, id="us")
    logs.extend([b"x"] * 100)
    if compacted:
        logs._store.database.db.compact_range()
    for name, use in USES.items():
        assert fork(lambda: use(logs)) == f"ScuttleupError: {REFUSAL}", name  # noqa: B023
    if db:  # nor through an object that it makes itself
        for make in (lambda: Scuttleup(db), lambda: Scuttleup(db.prefixed_db(b"prefix"))):
            assert fork(make) == f"ScuttleupError: {REFUSAL}"
    assert fork(logs.close) == "None", "closing does nothing"
    assert logs.append(b"x").seq == 101
    logs.close()
    if db:
        db.close()
    with scuttleup.open(path) as logs:
        assert logs.head == {"us": 101}


@pytest.mark.parametrize("live", [False, True])
def test_a_stream_of_the_parent_is_no_end_in_the_child(
    tmp_path: Path, fork: Any, live: bool
) -> None:
    with scuttleup.open(tmp_path / "logs.db", id="us") as logs:
        changes = logs.extend([b"x"] * 1000)
        stream = logs.create_read_stream(live=live)
        seen = [next(stream)]
        assert fork(lambda: list(stream)) == f"ScuttleupError: {REFUSAL}"
        seen += [next(stream) for _ in range(999)]
        assert seen == changes


def test_numbers_stay_unique_when_children_and_parent_append(tmp_path: Path, fork: Any) -> None:
    with scuttleup.open(tmp_path / "logs.db", id="us", sync=True) as logs:
        for turn in range(3):
            for child in range(10):
                logs.append(b"parent")
            assert fork(lambda: [logs.append(b"child") for _ in range(10)]).endswith(REFUSAL)
    with scuttleup.open(tmp_path / "logs.db") as logs:
        assert [(c.seq, c.entry) for c in logs.create_read_stream()] == [
            (seq, b"parent") for seq in range(1, 31)
        ]


def test_a_child_makes_and_opens_databases_of_its_own(tmp_path: Path, fork: Any) -> None:
    def work(depth: int = 3) -> str:
        with scuttleup.open(tmp_path / f"{depth}.db", id="us") as logs:
            logs.append(b"x")
            return fork(lambda: work(depth - 1)) if depth and fork is in_child else "done"

    with scuttleup.open(tmp_path / "parent.db"):
        assert fork(work) == "done"
    with scuttleup.open(tmp_path / "3.db") as logs:
        assert logs.head == {"us": 1}


def test_what_the_parent_has_open_is_open_in_another_process_for_the_child(
    tmp_path: Path, fork: Any
) -> None:
    path = tmp_path / "logs.db"
    with scuttleup.open(path):
        refusal = f"DatabaseError: {path} is open in another process"
        assert fork(lambda: scuttleup.open(path)) == refusal
        assert fork(lambda: fork(lambda: scuttleup.open(path))) == refusal or fork is not in_child
    assert fork(lambda: scuttleup.open(path).close()) == "None"


@pytest.mark.parametrize("lock", ["reads", "writes"])
def test_a_lock_that_a_thread_held_at_the_fork_does_not_hold_up_the_child(
    tmp_path: Path, fork: Any, lock: str
) -> None:
    with scuttleup.open(tmp_path / "logs.db", id="us") as logs:
        logs.append(b"x")
        held, release = start(lambda: None), multiprocessing.Event()
        taken = multiprocessing.Event()

        def hold() -> None:
            with getattr(logs._store.database, lock):
                taken.set()
                release.wait(LIMIT)

        held = start(hold)
        taken.wait(LIMIT)
        for use in USES.values():
            assert fork(lambda: use(logs)) == f"ScuttleupError: {REFUSAL}"  # noqa: B023
        release.set()
        held.result(LIMIT)
        assert logs.append(b"x").seq == 2


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
def test_a_child_leaves_as_a_program_does(tmp_path: Path, leave: str) -> None:
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
reader, writer = os.pipe()
if os.fork():
    os._exit(0)  # ends the parent, and with it the parent's hold on the database
os.close(writer)
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
        assert daemon.stdin
        daemon.stdin.close()
        assert daemon.stdout.read() == b"", "the child has ended"
    with scuttleup.open(path) as logs:
        assert logs.head == {"us": 2}
