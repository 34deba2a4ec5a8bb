"""Two programs, one database: what ends on either side, who is let in, and that nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from conftest import use_shared
from readme import ROOT
from waiting import LIMIT, start, until

import scuttleup
from scuttleup import DatabaseError, DatabaseLocked, Scuttleup, ScuttleupError, limits
from scuttleup.sharing.link import Link, connect
from scuttleup.sharing.user import SharedStore

Limit = Callable[..., None]

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals and no fork")

OWNER = """
import sys, scuttleup
with scuttleup.open(sys.argv[1], id="us", share=True) as logs:
    print("open", flush=True)
    sys.stdin.read()
"""


@contextmanager
def owner(path: Path, code: str = OWNER) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the database at `path` open and shares it."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        assert process.stdout.readline().strip() == b"open"
        try:
            yield process
        finally:
            process.kill()


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


# --- As it is meant -------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_the_scripts_run_beside_a_peer_and_other_peers_get_what_they_append(tmp_path: Path) -> None:
    alice = Command("--db", "logs.db", "replicate", "--listen", "0")
    port = alice.port()
    bob = Command("--db", "bob.db", "replicate", f"127.0.0.1:{port}")
    bob.stderr_line("connected")
    run = [Command(program=[str(ROOT / script)]).result() for script in ("append.py", "read.py")]
    assert run[0] == (0, "", "")
    assert run[1] == (0, bob.stdout.readline(), "")
    assert Command("append", "from cron").result() == (0, "", "")
    assert "from cron" in bob.stdout.readline()
    assert Command("check").result()[2] == (
        "scuttleup: logs.db is open in another process, which shares it: check there\n"
    )


def test_what_a_user_of_the_logs_has_is_what_the_owner_has(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    with owner(path), scuttleup.open(path, value_encoding="json") as logs:
        assert logs.id == "us"
        changes = logs.extend([{"n": n} for n in range(1000)], sync=True)
        stream = logs.create_read_stream(live=True)
        assert [next(stream) for _ in range(1000)] == changes
        assert logs.write([("them", 1, "x")]) == 1
        assert next(stream) == ("them", 1, "x")
        assert logs.delete("us", 1, 999) == 999
        logs.compact()
        with scuttleup.open(path) as other:
            assert other.append(b"1").seq == 1001
            assert logs.head == other.head == {"us": 1001, "them": 1}
        with pytest.raises(ValueError, match="does not follow"):
            logs.write([("us", 2000, "x")])
    with scuttleup.open(path) as logs:
        assert len(list(logs.create_read_stream())) == 3


def test_no_value_of_a_call_is_taken_for_an_error(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "logs.db", share=True), use_shared(tmp_path / "logs.db") as user:
        for name in ("DatabaseError", "raise"):
            user.forget(name)
        assert user.forgotten == {"DatabaseError", "raise"}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"id": "me"}, "id='us'"),
        ({"sync": True}, "sync=False"),
        ({"only_signed": True}, "only_signed=False"),
        ({"max_entry": 5}, "max_entry="),
        ({"signed": True}, "signed=False"),
        ({"verify": bool}, "verify=None"),
        ({"accept": set()}, "accept=None"),
        ({"key": b"s" * 32}, "cannot be used with another one"),
    ],
)
def test_options_that_differ_from_the_owners_are_refused(
    tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    path = tmp_path / "logs.db"
    with owner(path):
        with pytest.raises(ScuttleupError, match=named) as caught:
            scuttleup.open(path, **options)
        assert "ssss" not in str(caught.value), "a key is not shown"
        with scuttleup.open(path, id="us", max_entry=limits.MAX_ENTRY) as logs:
            with pytest.raises(ScuttleupError, match="which shares it: replicate there"):
                logs.create_replication_stream()
            with pytest.raises(ScuttleupError, match="which shares it: replicate there"):
                scuttleup.Peer(logs, listen=("127.0.0.1", 0))


# --- Who is let in --------------------------------------------------------------------------------


def test_it_is_locked_for_those_who_want_to_own_it_and_if_nobody_shares_it(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    with owner(path), pytest.raises(DatabaseLocked, match="open in another process"):
        scuttleup.open(path, share=True, wait=0.1)
    with (
        owner(path, OWNER.replace("share=True", "share=False")),
        pytest.raises(DatabaseLocked, match="open in another process"),
    ):
        scuttleup.open(path, wait=0.1)
    with scuttleup.open(path, share=True), pytest.raises(DatabaseLocked, match="in this process"):
        scuttleup.open(path)


@pytest.mark.parametrize("share", [False, True])
def test_who_waits_has_it_as_soon_as_it_is_free(tmp_path: Path, share: bool) -> None:
    path = tmp_path / "logs.db"
    with owner(path, OWNER.replace("share=True", "share=False")) as process:
        waiting = start(lambda: scuttleup.open(path, share=share, wait=LIMIT))
        process.communicate(timeout=LIMIT)
        with waiting.result(LIMIT) as logs:
            assert logs.append(b"x").seq == 1


def test_so_many_links_and_no_more(tmp_path: Path, limit: Limit) -> None:
    limit(MAX_USERS=3)
    path = tmp_path / "logs.db"
    with scuttleup.open(path, share=True):
        users = [use_shared(path) for _ in range(3)]
        with pytest.raises(DatabaseLocked, match="is shared by 3 links, which is the most"):
            use_shared(path)
        users.pop().close()
        assert use_shared(path).append("x").seq == 1


@pytest.mark.parametrize("rubbish", [b"", b"x" * 100, None])
def test_strangers_take_no_place_of_users(tmp_path: Path, rubbish: bytes | None) -> None:
    """`None` is one who proves himself, and then sends what is no question."""
    path = tmp_path / "logs.db"
    with scuttleup.open(path, id="us", share=True) as logs:
        port = json.loads((path / "share").read_bytes())[0]
        links: list[socket.socket] = []
        for _ in range(limits.MAX_STRANGERS * 2):
            if rubbish is None:
                link = connect(str(path), LIMIT)
                link.receive()
                with suppress(OSError):
                    link.send(link.pack(["no such call"]))
                    link.send(b"\xff" * 100)
                links.append(link.sock)
            else:
                links.append(sock := socket.create_connection(("127.0.0.1", port)))
                with suppress(OSError):
                    sock.sendall(rubbish)
        logs.append(b"x")
        assert use_shared(path).append("y").seq == 2


@posix
def test_only_this_user_can_read_the_secret(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "logs.db", share=True):
        assert (tmp_path / "logs.db" / "share").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "logs.db" / "share").exists()


def test_a_copy_of_the_folder_does_not_lead_to_the_original(tmp_path: Path) -> None:
    path, copy = tmp_path / "logs.db", tmp_path / "copy.db"
    with scuttleup.open(path, id="us", share=True) as logs:
        logs.append(b"x")
        shutil.copytree(path, copy)
        with owner(copy, OWNER.replace("share=True", "share=False")), pytest.raises(DatabaseLocked):
            scuttleup.open(copy)
        with scuttleup.open(copy, share=True) as copied:
            copied.append(b"y")
        assert logs.head == {"us": 1}


def test_a_port_that_somebody_else_has_by_now_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    with (
        owner(path, OWNER.replace("share=True", "share=False")),
        socket.create_server(("127.0.0.1", 0)) as liar,
    ):
        number = path.stat()
        there = [liar.getsockname()[1], "00" * 32, [number.st_dev, number.st_ino]]
        (path / "share").write_text(json.dumps(there))

        def lie() -> None:
            sock = liar.accept()[0]
            with sock, suppress(OSError):
                for _ in range(64):  # a byte now and then, to hold the user
                    sock.sendall(b"x")
                    time.sleep(0.2)

        thread = start(lie)
        with pytest.raises(DatabaseLocked):
            start(lambda: scuttleup.open(path)).result(limits.SHARE_SECONDS)
        thread.result(LIMIT)


@posix
def test_the_owner_of_a_folder_that_was_moved_takes_nothing_from_the_next_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "logs.db"
    moved = scuttleup.open(path, id="us", share=True)
    user = use_shared(path)
    path.rename(tmp_path / "moved.db")
    with owner(path, OWNER.replace('"us"', '"them"')):
        moved.close()
        with pytest.raises(DatabaseError, match="has closed it"):
            user.append("x")
        with pytest.raises(DatabaseError, match="shared as another one"):
            user.append("x")
        with use_shared(path) as again:
            assert again.id == "them"


def test_a_new_id_of_the_owner_ends_the_logs_of_its_users(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    with scuttleup.open(path, id="us", share=True) as logs, use_shared(path) as user:
        user.append("x")
        logs.new_id()
        with pytest.raises(DatabaseError, match="open it again"):
            user.append("y")
        with use_shared(path) as again:
            assert again.append("y") == (logs.id, 1, "y")
        assert len(logs.head) == 2


# --- What ends ------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("end", ["closed", "killed", "stopped"])
def test_an_owner_that_ends_is_an_error_for_its_users(
    tmp_path: Path, limit: Limit, end: str
) -> None:
    """A stream never ends as if it were complete."""
    path = tmp_path / "logs.db"
    with owner(path) as process, scuttleup.open(path) as logs:
        logs.extend([b"x"] * 1000)
        snapshot, live = logs.create_read_stream(), logs.create_read_stream(tail=True)
        next(snapshot)
        if end == "closed":
            process.communicate(timeout=LIMIT)
        else:
            process.send_signal(signal.SIGKILL if end == "killed" else signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        limit(CALL_SECONDS=0.5)
        with pytest.raises(DatabaseError):
            logs.append(b"y")
        with pytest.raises(DatabaseError):
            list(snapshot)
        if end == "stopped":
            process.kill()
        with pytest.raises(DatabaseError):
            start(lambda: list(live)).result(LIMIT)
        process.wait(LIMIT)
        with scuttleup.open(path, wait=LIMIT) as again:
            assert again.head["us"] in (1000, 1001)


def test_a_write_without_an_answer_may_be_stored_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "logs.db"
    with scuttleup.open(path, id="us", share=True) as logs:
        user = use_shared(path)
        monkeypatch.setattr(limits, "CALL_SECONDS", 0.1)
        with logs._store.database.writes, pytest.raises(scuttleup.WriteInDoubt, match="may be st"):
            user.append("x")
        monkeypatch.undo()
        asyncio.run(until(lambda: logs.head))
        assert user.append("y").seq == 2, "the link is a new one"
        assert [change.entry for change in user.create_read_stream()] == ["x", "y"]


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Has the owner say when it began to compact or to append, and go on when it is told to."""
    began, go_on = threading.Event(), threading.Event()

    def work(*arguments: object) -> int:
        began.set()
        go_on.wait(LIMIT)
        return 1

    monkeypatch.setattr("scuttleup.store.Store.append", work)
    monkeypatch.setattr("scuttleup.leveldb.Database.compact", work)
    yield began, go_on
    go_on.set()


def test_a_write_under_way_when_the_logs_are_closed_may_be_stored(
    tmp_path: Path, slowly: tuple[threading.Event, threading.Event]
) -> None:
    path = tmp_path / "logs.db"
    with scuttleup.open(path, id="us", share=True):
        user = use_shared(path)
        writing = start(lambda: user.append("x"))
        assert slowly[0].wait(LIMIT)
        user.close()
        with pytest.raises(scuttleup.WriteInDoubt, match="closed: the write may be stored"):
            writing.result(LIMIT)
        slowly[1].set()


def test_what_takes_long_holds_up_no_other_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slowly: tuple[threading.Event, threading.Event]
) -> None:
    """Nor has it a time limit: now and then a new link is made, to see if the owner is there."""
    path = tmp_path / "logs.db"
    looked, connect = threading.Event(), SharedStore._connect

    def look(store: SharedStore) -> Link:
        looked.set()
        return connect(store)

    with scuttleup.open(path, id="us", share=True), use_shared(path) as user:
        monkeypatch.setattr(limits, "CALL_SECONDS", 0.1)
        compacting = start(user.compact)
        assert slowly[0].wait(LIMIT)
        monkeypatch.setattr(SharedStore, "_connect", look)
        assert looked.wait(LIMIT)
        monkeypatch.setattr(limits, "CALL_SECONDS", LIMIT)
        assert start(lambda: user.extend(["x", "y"])).result(LIMIT)[-1].seq == 2
        assert not compacting.done()
        slowly[1].set()
        compacting.result(LIMIT)


@posix
def test_a_stopped_owner_is_noticed_by_what_takes_long_and_by_live_streams(
    tmp_path: Path, limit: Limit
) -> None:
    path = tmp_path / "logs.db"
    with owner(path) as process, scuttleup.open(path) as logs:
        limit(CALL_SECONDS=1)
        stream = logs.create_read_stream(live=True)
        stop(process)
        limit(SHARE_SECONDS=1)
        for call in (lambda: next(stream), logs.compact):
            with pytest.raises(DatabaseError):
                start(call).result(LIMIT)


def test_what_is_left_of_an_answer_is_not_taken_for_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ctrl-C comes between the two parts of an answer, and the second looks like an answer."""
    path = tmp_path / "logs.db"
    with scuttleup.open(path, id="us", share=True) as logs, use_shared(path, "binary") as user:
        forged = Link.pack(["them", 1], [b"forged"])
        logs.append(forged)
        stream = user.create_read_stream()
        monkeypatch.setattr(Link, "_read", _interrupted(Link._read, len(forged)))
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        with pytest.raises(DatabaseError):
            next(stream)


def _interrupted(read: Any, size: int) -> Any:
    def interrupt(link: Link, wanted: int) -> bytes:
        if wanted == size:
            raise KeyboardInterrupt
        data: bytes = read(link, wanted)
        return data

    return interrupt


@posix
def test_after_a_ctrl_c_within_a_call_the_next_call_works(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    with owner(path), scuttleup.open(path) as logs:
        interrupted = 0
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        choose = random.Random(3)
        try:
            for _ in range(100):
                try:
                    signal.setitimer(signal.ITIMER_REAL, choose.uniform(0.00001, 0.0005))
                    for _ in range(100):
                        logs.append(b"x")
                except KeyboardInterrupt:
                    interrupted += 1
                with suppress(KeyboardInterrupt):  # one that was late
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    logs.append(b"x")
                logs.append(b"after")
        finally:
            signal.signal(signal.SIGALRM, before)
        assert interrupted > 50
        assert [*logs.head] == ["us"]


@posix
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_child_of_a_user_is_refused_and_the_parent_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    with owner(path), scuttleup.open(path) as logs:
        if not (child := os.fork()):
            try:
                logs.append(b"x")
            except ScuttleupError as error:
                os._exit(0 if "forked" in str(error) else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert logs.append(b"x").seq == 1


USER = """
import os, sys, scuttleup
from scuttleup import DatabaseError
number = 0
while True:
    try:
        with scuttleup.open(sys.argv[1], wait=30, share=len(sys.argv) > 2) as logs:
            while True:
                number += 1
                seq = logs.append(b"%s %d" % (sys.argv[-1].encode(), number)).seq
                os.write(1, b"%d %s %d\\n" % (seq, sys.argv[-1].encode(), number))
    except DatabaseError:
        pass
"""


@posix
def test_kills_on_either_side_lose_nothing_and_give_no_number_twice(tmp_path: Path) -> None:
    """Three processes append; one has it open, and when that is killed another takes its place."""
    path, choose = tmp_path / "logs.db", random.Random(5)
    scuttleup.open(path, id="us").close()
    stored: dict[int, bytes] = {}

    def run(name: str) -> None:
        command = [sys.executable, "-c", USER, str(path), name]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout
            for _ in range(choose.randrange(1, 300)):
                take(process.stdout.readline())
            process.kill()
            for line in process.stdout:
                take(line)

    def take(line: bytes) -> None:
        if line.endswith(b"\n"):
            seq, _, entry = line.rstrip().partition(b" ")
            assert int(seq) not in stored, "a number was given out twice"
            stored[int(seq)] = entry

    names = [f"p{n}" for n in range(int(os.environ.get("KILLS", "9")))]
    with ThreadPoolExecutor(3) as threads:
        for future in [threads.submit(run, name) for name in names]:
            future.result(120)
    with scuttleup.open(path) as logs:
        entries = {change.seq: change.entry for change in logs.create_read_stream()}
    assert entries.items() >= stored.items()
    assert [*entries] == [*range(1, len(entries) + 1)]


def test_ten_processes_append_at_once(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    code = """
import sys, scuttleup
with scuttleup.open(sys.argv[1], wait=30) as logs:
    for _ in range(100):
        logs.append(b"x")
"""
    with scuttleup.open(path, id="us", share=True) as logs:
        command = [sys.executable, "-c", code, str(path)]
        processes = [subprocess.Popen(command) for _ in range(10)]
        assert [process.wait(LIMIT) for process in processes] == [0] * 10
        assert logs.head == {"us": 1000}
        assert Scuttleup.append(logs, b"y").seq == 1001


@posix
def test_an_owner_that_is_stopped_holds_nobody_longer_than_he_wants_to_wait(
    tmp_path: Path, limit: Limit
) -> None:
    path = tmp_path / "logs.db"
    limit(SHARE_SECONDS=1000)
    with owner(path) as process:
        stop(process)
        with pytest.raises(DatabaseLocked, match="open in another process"):
            start(lambda: scuttleup.open(path)).result(LIMIT)
