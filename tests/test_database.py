"""`open` and `close`: what is made, opened and refused, who may close, and errors in words."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any

import pytest
from leveldb import open_leveldb
from uses import USES
from waiting import LIMIT, start

import scuttleup
from scuttleup import DamagedDatabase, DatabaseError, Scuttleup, ScuttleupError
from scuttleup.scan import load_heads

OpenLogs = Callable[..., AbstractContextManager[Scuttleup]]


def files(folder: Path) -> dict[str, bytes | None]:
    """What lies under `folder`, but for LevelDB's diary and lock, which hold nothing of ours."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name not in ("LOG", "LOG.old", "LOCK")
    }


def repeat(use: Callable[[], object]) -> None:
    while True:
        use()


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be a user who is bound by permissions, which root is not."""
    before = os.geteuid()
    if not before:
        os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs.db"


@pytest.fixture
def database(path: Path) -> Path:
    """A database with two tables and a journal."""
    for _ in range(3):
        with scuttleup.open(path, id="us") as logs:
            logs.append(b"x")
    assert len([*path.glob("*.ldb")]) == 2
    return path


# --- Where a new database is made ---


@pytest.mark.parametrize("found", [None, [], ["lost+found"], ["LOCK", "LOG"]], ids=str)
def test_a_database_is_made_where_there_is_nothing(path: Path, found: list[str] | None) -> None:
    if found is not None:
        path.mkdir()
        for name in found:
            (path / name).touch()
    with scuttleup.open(path, value_encoding="utf-8") as logs:
        change = logs.append("hello")
    with scuttleup.open(path, value_encoding="utf-8") as logs:
        assert list(logs.create_read_stream()) == [change]


def test_any_kind_of_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in "grün.db", Path("grün.db"), "grün.db".encode():
        with scuttleup.open(path) as logs:
            logs.append(b"x")
            monkeypatch.chdir("/")  # as a daemon does
            logs.extend([bytes(50_000)] * 200)  # several new files
            logs.append(b"x", sync=True)
        monkeypatch.chdir(tmp_path)
    assert os.listdir() == ["grün.db"]
    with scuttleup.open("grün.db") as logs:
        assert logs.head == {logs.id: 606}


KILLED = """
import os, random, signal, sys, scuttleup
for turn in range(150):
    if not (child := os.fork()):
        signal.setitimer(signal.ITIMER_REAL, random.Random(turn).uniform(0, float(sys.argv[2])))
        scuttleup.open(f"{sys.argv[1]}/{turn}.db").append(b"first")
        signal.pause()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGALRM
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no clock that kills a process")
def test_every_first_run_that_was_killed_leaves_a_database_that_opens(tmp_path: Path) -> None:
    times = []
    for turn in range(9):
        begun = time.monotonic()
        with scuttleup.open(tmp_path / f"whole {turn}.db") as logs:
            logs.append(b"first")
        times.append(time.monotonic() - begun)
    whole = median(times)  # one may have been held up
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(whole)]
    subprocess.run(command, check=True, timeout=LIMIT)
    half_made = 0
    for turn in range(150):
        path = tmp_path / f"{turn}.db"
        half_made += path.exists() and not (path / "CURRENT").exists()
        with scuttleup.open(path) as logs:
            assert logs.append(b"next").seq <= 2
    assert half_made


# --- What is refused ---


def exactly(path: object, reason: str) -> str:
    """The pattern of a whole message: the path and the reason, which may be a pattern itself."""
    return f"^{re.escape(str(path))} {reason}$"


@pytest.mark.parametrize("size", [0, 100])
def test_a_table_that_was_cut_short_is_damage(database: Path, size: int) -> None:
    os.truncate(min(database.glob("*.ldb")), size)
    reason = r"is damaged: \d+\.ldb is too short"
    with pytest.raises(DamagedDatabase, match=exactly(database, reason)):
        list(scuttleup.open(database).create_read_stream())


# What is done to a database, and what is said about it.
DAMAGED: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: (path / "CURRENT").unlink(), "CURRENT is missing"),
    (lambda path: (path / "CURRENT").write_text(""), "CURRENT names no MANIFEST"),
    (lambda path: (path / "CURRENT").write_text("text\n"), "CURRENT names no MANIFEST"),
    (lambda path: (path / "CURRENT").write_text("MANIFEST-9\n"), "MANIFEST-9 is missing"),
    (lambda path: min(path.glob("MANIFEST-*")).unlink(), "MANIFEST-.* is missing"),
    (lambda path: min(path.glob("*.ldb")).unlink(), "1 missing files.*"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGED)
def test_a_damaged_database_loses_nothing_more(
    database: Path, damage: Callable[[Path], object], reason: str
) -> None:
    """If told to create what is missing, LevelDB would make an empty database over it."""
    whole = shutil.copytree(database, database.with_name("whole.db"))
    damage(database)
    before = files(database)
    with pytest.raises(DamagedDatabase, match=exactly(database, f"is damaged: {reason}")):
        scuttleup.open(database)
    assert files(database) == before
    shutil.copytree(whole, database, dirs_exist_ok=True)
    with scuttleup.open(database) as logs:
        assert logs.head == {"us": 3}


def make_foreign(path: Path) -> None:
    path.mkdir()
    (path / "holiday.jpg").write_text("precious")
    (path / "LOCK").touch()


def make_wrong_current(path: Path) -> None:
    (path / "CURRENT").mkdir(parents=True)


# A path, what is made there instead of a database, and what is said about it.
NO_DATABASE: list[tuple[str, Callable[[Path], object], str]] = [
    ("a-file", lambda path: path.write_text("precious"), "is not a database: it is a file"),
    ("a-folder", make_foreign, "is not a database: it holds holiday.jpg"),
    ("a-wrong-current", make_wrong_current, "cannot be used: CURRENT: Is a directory"),
    ("a-loop", lambda path: path.symlink_to(path), "cannot be used: Too many levels .*"),
    ("a-dead-link", lambda path: path.symlink_to("no/disk"), "cannot be used: disk: No such .*"),
    ("no-parent/logs.db", lambda path: None, "cannot be used: No such file or directory"),
    ("a-file/logs.db", lambda path: path.parent.touch(), "cannot be used: Not a directory"),
    ("too-long" * 32, lambda path: None, "cannot be used: File name too long"),
]


@pytest.mark.skipif(os.name == "nt", reason="Windows says it otherwise: see test_bindings.py")
@pytest.mark.parametrize(("name", "make", "reason"), NO_DATABASE)
def test_what_is_no_database_is_refused_and_left_alone(
    tmp_path: Path, name: str, make: Callable[[Path], object], reason: str
) -> None:
    make(tmp_path / name)
    before = files(tmp_path)
    with pytest.raises(DatabaseError, match=exactly(tmp_path / name, reason)):
        scuttleup.open(tmp_path / name)
    assert files(tmp_path) == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        (0o555, "cannot be used: .*LOCK: Permission denied"),
        (0o333, "cannot be used: Permission denied"),
    ],
    ids=["not written", "not listed"],
)
def test_a_folder_without_the_permissions_is_refused(mode: int, reason: str) -> None:
    with tempfile.TemporaryDirectory() as outer:
        os.chmod(outer, 0o755)
        path = Path(outer) / "logs.db"
        scuttleup.open(path).close()
        path.chmod(mode)
        with unprivileged(), pytest.raises(DatabaseError, match=exactly(path, reason)) as caught:
            scuttleup.open(path)
        assert caught.value.__cause__
        path.chmod(0o755)
        scuttleup.open(path).close()


@pytest.mark.parametrize("held", ["logs.db", "link.db", "sub/../logs.db"])
@pytest.mark.skipif(os.name == "nt", reason="a link needs a right there that few have")
def test_a_database_that_this_process_holds_is_refused_however_it_is_spelled(
    database: Path, monkeypatch: pytest.MonkeyPatch, held: str, open_logs: OpenLogs
) -> None:
    """LevelDB compares names, and the system's lock lets one process in twice."""
    monkeypatch.chdir(database.parent)
    Path("link.db").symlink_to("logs.db")
    Path("sub").mkdir()
    with open_logs(held) as logs:
        for name in "logs.db", "link.db", str(database), "sub/../link.db/":
            named = exactly(name, "is open in this process already")
            with pytest.raises(DatabaseError, match=named):
                scuttleup.open(name)
        assert logs.append(b"x").seq == 4
    scuttleup.open("link.db").close()


# --- Closing ---


def use_until_closed(logs: Scuttleup, use: Callable[[Scuttleup], object], begun: Event) -> None:
    begun.set()
    with pytest.raises(ScuttleupError, match=r"^these logs are closed$"):
        repeat(lambda: use(logs))


@contextmanager
def on_signal(handler: Callable[[], object]) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda signum, frame: handler())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def signal_main_thread(begun: Event) -> None:
    """If this thread raised it, it would be handled only when the main thread wakes by itself."""
    begun.wait(LIMIT)
    if sys.platform == "win32":
        signal.raise_signal(signal.SIGTERM)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


@pytest.mark.parametrize("closer", ["another thread", "a signal handler"])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_closing_is_safe_whoever_is_reading_or_writing(
    path: Path, use: Callable[[Scuttleup], object], closer: str, open_logs: OpenLogs
) -> None:
    """The bindings alone would crash the process. Here each thread gets an error that says why."""
    if closer == "a signal handler" and sys.gettrace():
        pytest.skip("traced, CPython 3.11 can loop while a signal waits for the main thread")
    with scuttleup.open(path, id="us") as logs:
        logs.extend([b"x" * 100] * 10_000)
    for _ in range(15):
        with ExitStack() as stack:
            logs = stack.enter_context(open_logs(path))
            begun = Event()
            if closer == "another thread":
                using = start(lambda: use_until_closed(logs, use, begun))  # noqa: B023
                begun.wait(LIMIT)
                stack.close()
            else:
                start(lambda: signal_main_thread(begun))  # noqa: B023
                using = start(lambda: use_until_closed(logs, use, Event()))  # noqa: B023
                with on_signal(stack.close):
                    use_until_closed(logs, use, begun)
            using.result(LIMIT)
        scuttleup.open(path).close()


def test_closing_waits_for_logs_being_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both use one LevelDB, which its owner closes next."""
    with scuttleup.open(path) as logs:
        logs.write((f"peer {number}", seq, b"") for number in range(3000) for seq in (1, 2))
    begun = Event()

    def tell_and_load(db: Any, forgotten: Any) -> dict[str, int]:
        begun.set()
        return load_heads(db, forgotten)

    monkeypatch.setattr(scuttleup.store, "load_heads", tell_and_load)
    for _ in range(15):
        db = open_leveldb(path)
        logs = Scuttleup(db)
        begun.clear()
        making = start(lambda: Scuttleup(db))  # noqa: B023
        begun.wait(LIMIT)
        logs.close()
        db.close()
        assert len(making.result(LIMIT).head) == 3000


@pytest.mark.parametrize("live", [False, True])
def test_a_leveldb_closed_too_early_is_told_apart_from_the_end(path: Path, live: bool) -> None:
    db = open_leveldb(path)
    logs = Scuttleup(db, id="us")
    logs.extend([b"x"] * 1000)
    stream = logs.create_read_stream(live=live)
    next(stream)
    db.close()
    for use in (
        lambda: list(stream),
        lambda: logs.entry("us", 1),
        lambda: Scuttleup(db),
        lambda: logs.append(b"x"),
        lambda: logs.extend([b"x"]),
        lambda: logs.delete("us", 1),
    ):
        named = exactly(path, "was closed while these logs were in use")
        with pytest.raises(DatabaseError, match=named):
            use()


# --- What LevelDB says later on ---


def test_when_leveldb_has_given_up_the_error_says_to_open_it_again(path: Path) -> None:
    with scuttleup.open(path, id="us") as logs:
        obstacle = path / "000005.ldb"  # LevelDB is about to write its first table there
        obstacle.mkdir()
        advice = exactly(path, "cannot be used: .*: .*; .* open it again")
        with pytest.raises(DatabaseError, match=advice) as caught:
            repeat(lambda: logs.append(bytes(50_000)))
        assert caught.value.__cause__
        obstacle.rmdir()
        for _ in range(2):
            with pytest.raises(DatabaseError, match=advice):
                logs.append(b"x")
        head = logs.head
    with scuttleup.open(path) as logs:
        assert logs.head == head
        assert logs.append(b"x").seq == head["us"] + 1
