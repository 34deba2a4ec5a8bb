"""Nothing lost: not to SIGKILL, a disk that refuses, Ctrl-C or a flipped bit."""

from __future__ import annotations

import inspect
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
from leveldb import FakeDB, binding, open_leveldb
from waiting import LIMIT, start

import scuttleup.database
import scuttleup.follower
import scuttleup.read_stream
import scuttleup.store
from scuttleup import Change, DamagedDatabase, DatabaseError, Scuttleup

if sys.platform != "win32":
    import resource

# --- Killed ---------------------------------------------------------------------------------------

KILLS = 36


def kill_a_writer(path: Path, run: int, threads: int, lines: int) -> list[tuple[int, int, str]]:
    """Start a writer, SIGKILL it when it has printed `lines` lines, return what it acknowledged."""
    program = Path(__file__).with_name("writer.py")
    command = [sys.executable, str(program), str(path), str(threads), str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        printed = [writer.stdout.readline() for _ in range(lines)]
        writer.kill()
        printed += writer.stdout.readlines()
    assert writer.returncode not in (0, None)
    assert printed[0] == b"opening\n"
    acknowledged = [line.decode().split() for line in printed[1:]]
    return [(int(first), int(last), tag) for first, last, tag in acknowledged]


def reopened(path: Path) -> Scuttleup:
    """Logs opened as `append.py` and `read.py` open them."""
    return scuttleup.open(path, value_encoding="utf-8")


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    choose = random.Random(4)
    path = tmp_path / "logs.db"
    acknowledged: dict[int, str] = {}
    whole: list[Change] = []
    for run in range(KILLS):
        # One line is the moment before the database is opened: LevelDB dies while it recovers, or
        # makes a new database.
        lines = 1 if run % 8 in (0, 7) else choose.randrange(2, 80)
        calls = kill_a_writer(path, run, choose.choice([1, 4]), lines)
        for first, last, tag in calls:
            for seq in range(first, last + 1):
                assert seq not in acknowledged, "a number given twice"
                acknowledged[seq] = tag

        with reopened(path) as logs:
            known = {logs.id: len(whole)} if whole else {}
            whole += logs.create_read_stream(since=known)
            assert logs.head == ({logs.id: len(whole)} if whole else {})

    with reopened(path) as logs:
        assert list(logs.create_read_stream()) == whole, "what one run had read, the last has not"

    assert [change.seq for change in whole] == list(range(1, len(whole) + 1)), "a gap"
    tags = {seq: entry.split()[0] for _, seq, entry in whole}
    assert {seq: tags.get(seq) for seq in acknowledged} == acknowledged
    assert len(acknowledged) > 10 * KILLS

    entries = iter(whole)
    for _, _, entry in entries:
        tag, place = entry.split()[:2]
        size = int(place.split("/")[1])
        assert place == f"1/{size}", "a batch without its beginning"
        rest = [next(entries).entry.split()[:2] for _ in range(size - 1)]
        assert rest == [[tag, f"{i}/{size}"] for i in range(2, size + 1)], "half a batch"


# --- Refused by the disk, or interrupted ----------------------------------------------------------


WRITES: dict[str, Callable[[Scuttleup], object]] = {
    "append": lambda logs: logs.append("refused"),
    "extend": lambda logs: logs.extend(["refused", "too"]),
    "write": lambda logs: logs.write([Change("us", 3, "refused"), Change("them", 1, "too")]),
    "delete": lambda logs: logs.delete("us", 2),
}


@pytest.fixture(params=WRITES)
def write(request: pytest.FixtureRequest) -> Callable[[Scuttleup], object]:
    return WRITES[request.param]


def drain(logs: Scuttleup, stream: Iterator[Change]) -> list[Change]:
    """What a live stream has up to a new last entry of each log, written for that."""
    ends = {logs.append("end")}
    ends |= {Change(peer, seq + 1, "end") for peer, seq in logs.head.items() if peer != logs.id}
    logs.write(ends)
    seen = []
    while ends:
        seen.append(next(stream))
        ends.discard(seen[-1])
    return seen


@pytest.mark.parametrize("failures", [1, 3])
def test_a_write_that_leveldb_refuses_changes_nothing(
    fake: FakeDB, write: Callable[[Scuttleup], object], failures: int
) -> None:
    logs = Scuttleup(fake, id="us", value_encoding="utf-8")
    logs.extend(["a", "b"])
    stream = logs.create_read_stream(tail=True)

    fake.before = binding.IOError(b"IO error: No space left on device")
    for _ in range(failures):
        with pytest.raises(DatabaseError, match="No space left") as caught:
            write(logs)
        assert caught.value.__cause__ is fake.before
        assert logs.head == {"us": 2}
        assert list(logs.create_read_stream()) == [("us", 1, "a"), ("us", 2, "b")]
    fake.before = None

    assert logs.append("c") == ("us", 3, "c")
    assert drain(logs, stream) == [("us", 3, "c"), ("us", 4, "end")]
    assert logs.head == {"us": 4}


@pytest.fixture
def with_gaps(db: Any) -> Any:
    """A database of short and long logs, some of whose entries are deleted, the newest too."""
    logs = Scuttleup(db, id="us")
    logs.write([Change(peer, seq, b"x") for peer in ("all", "them") for seq in range(1, 4)])
    logs.extend([b"x"] * 30)
    for seq in (1, 7, 8, 30):
        logs.delete("us", seq)
    logs.delete("all", 3)
    return db


def test_an_iteration_that_ends_early_gives_no_lower_head(with_gaps: Any) -> None:
    """The next entry would get a number that is taken."""
    steps = 0
    while True:
        fake = FakeDB(with_gaps)
        fake.steps = steps
        try:
            head = Scuttleup(fake).head
        except DamagedDatabase:
            steps += 1
        else:
            break
    assert head == {"us": 30, "them": 3, "all": 3}
    assert steps > 15


def test_an_iteration_that_ends_early_gives_no_shorter_snapshot(with_gaps: Any) -> None:
    logs = Scuttleup(with_gaps)
    complete = list(logs.create_read_stream())
    steps = 0
    while True:
        logs = Scuttleup(fake := FakeDB(with_gaps))
        fake.steps = steps
        stream = logs.create_read_stream()
        read: list[Change] = []
        try:
            read += stream
        except DamagedDatabase:
            assert read == complete[: len(read)]
            with pytest.raises(DamagedDatabase):
                next(stream)  # it does not go on behind what it left out
            steps += 1
        else:
            break
    assert read == complete
    assert steps > 30


@pytest.mark.parametrize("name", ["append", "extend", "write"])
def test_ctrl_c_after_leveldb_took_a_write_gives_no_number_twice(
    tmp_path: Path, db: Any, fake: FakeDB, name: str
) -> None:
    """Python raises KeyboardInterrupt when the call into LevelDB, which it cannot stop, is over."""
    logs = Scuttleup(fake, id="us", value_encoding="utf-8")
    logs.extend(["a", "b"])
    stream = logs.create_read_stream(tail=True)

    fake.after = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        WRITES[name](logs)
    fake.after = None
    last = 4 if name == "extend" else 3
    assert logs.append("next") == ("us", last + 1, "next")

    seen = sorted(drain(logs, stream))
    assert [change for change in seen if change.peer == "us"][-2:] == [
        ("us", last + 1, "next"),
        ("us", last + 2, "end"),
    ]
    everything = list(logs.create_read_stream())
    assert everything == sorted([Change("us", 1, "a"), Change("us", 2, "b"), *seen])
    db.close()
    with reopened(tmp_path / "logs.db") as logs:
        assert list(logs.create_read_stream()) == everything


@pytest.mark.parametrize("name", ["append", "extend"])
def test_ctrl_c_at_any_moment_gives_no_number_twice_and_hides_none_from_a_stream(
    logs: Scuttleup, name: str
) -> None:
    stream = logs.create_read_stream(tail=True)
    seen: list[Change] = []
    moment = 0
    while interrupted(lambda: WRITES[name](logs), moment, scuttleup.store):
        seen += drain(logs, stream)
        moment += 1
    assert moment > 10
    seen += drain(logs, stream)

    assert seen == list(logs.create_read_stream())
    assert [change.seq for change in seen] == list(range(1, len(seen) + 1))
    assert logs.head == {"us": len(seen)}


@pytest.mark.parametrize("taken", [False, True])
def test_ctrl_c_again_while_the_log_recovers_from_one_gives_no_number_twice(
    fake: FakeDB, taken: bool
) -> None:
    logs = Scuttleup(fake, id="us", value_encoding="utf-8")
    acknowledged: list[Change] = []
    moment = 0
    recovering = True
    while recovering:
        if taken:
            fake.after = KeyboardInterrupt()
        else:
            fake.before = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            logs.append("first")
        fake.before = fake.after = None
        recovering = interrupted(lambda: logs.append("again"), moment, scuttleup.store)
        moment += 1
        assert moment < 500, "the way to recover is longer each time"
        acknowledged += [logs.append(f"{moment}"), logs.append(f"and {moment}")]
    assert moment > 20

    stored = list(logs.create_read_stream())
    assert [change.seq for change in stored] == list(range(1, len(stored) + 1))
    assert set(acknowledged) <= set(stored)
    assert logs.head == {"us": len(stored)}


def test_ctrl_c_while_streams_are_woken_leaves_none_asleep(logs: Scuttleup) -> None:
    """Nor does it block an append. A lock that Python code takes can stay taken for ever."""
    streams = [logs.create_read_stream(tail=True) for _ in range(3)]
    moments: list[int] = []

    def append_to_sleepers() -> None:
        modules = scuttleup.store, scuttleup.follower, scuttleup.read_stream, threading
        interrupt = True
        while interrupt:
            for stream in streams:  # as `wait` does before it sleeps
                stream._alarm._silence.acquire(blocking=False)
                while stream._read():
                    pass
            interrupt = interrupted(lambda: logs.append("x"), len(moments), *modules)
            moments.append(logs.append("next").seq)
            for stream in streams:
                assert stream._alarm._silence.acquire(timeout=1), f"asleep at {len(moments)}"

    # In a thread that may be left behind: a join has a time limit, an append has not.
    start(append_to_sleepers).result(LIMIT)
    assert len(moments) > 30


NO_MOMENT = ("with ", "try:")


def interrupted(call: Callable[[], object], moment: int, *modules: ModuleType) -> bool:
    """Raise KeyboardInterrupt at moment number `moment` that `call` spends in these modules.

    A moment is the beginning of a line or a function or the return from one. False if there are
    fewer. Lines that begin with `with` do not count: in those, Python handles no signal between
    the end of the block and the release of its lock. Nor do those with `try:`, which do nothing.
    """
    sources = {module.__file__: inspect.getsource(module).splitlines() for module in modules}
    left = moment

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        source = sources.get(frame.f_code.co_filename)
        if source is None:
            return None
        if event != "line" or not source[frame.f_lineno - 1].lstrip().startswith(NO_MOMENT):
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def newest_journal(path: Path) -> Path:
    return max(path.glob("*.log"), key=lambda journal: int(journal.stem))


@contextmanager
def full_disk(path: Path, room: int) -> Iterator[None]:
    """For real: the kernel takes `room` more bytes for the journal, then refuses the rest."""
    if sys.platform == "win32":
        pytest.skip("Windows has no limit for the size of a file")
    limit = newest_journal(path).stat().st_size + room
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Nothing of the record, a part of its header, of its entry, and more than a block of a batch.
@pytest.mark.parametrize("room", [0, 3, 30, 40_000])
def test_what_is_appended_after_the_disk_was_full_survives(tmp_path: Path, room: int) -> None:
    """Since a write was cut off, LevelDB's next ones would be in the wrong place of the journal."""
    path = tmp_path / "logs.db"
    logs = scuttleup.open(path, id="us", value_encoding="utf-8")
    expected = [entry for _, _, entry in logs.extend(f"before {i}" for i in range(100))]
    stream = logs.create_read_stream(tail=True)

    with full_disk(path, room):
        for _ in range(3):
            with pytest.raises(DatabaseError, match="File too large"):
                logs.extend(["x" * 1000] * 50)
            with pytest.raises(DatabaseError, match="File too large"):
                logs.append("y" * 1000)
            assert logs.head == {"us": 100}

    for i in range(5000):
        expected.append(f"after {i}")
        assert logs.append(expected[-1]) == ("us", 101 + i, expected[-1])
    assert next(stream) == ("us", 101, "after 0")
    logs.close()  # which does no more than a kill does: LevelDB saves nothing when it closes

    with reopened(path) as logs:
        assert [change.entry for change in logs.create_read_stream()] == expected


@pytest.mark.parametrize("room", [0, 3, 30])
def test_a_kill_after_the_disk_was_full_leaves_a_log_that_opens(
    tmp_path: Path, fake: FakeDB, room: int
) -> None:
    path, copy = tmp_path / "logs.db", tmp_path / "copy.db"

    def copy_and_die(**_: Any) -> None:
        shutil.copytree(path, copy)  # what a kill at this moment leaves
        raise KeyboardInterrupt

    fake.compact_range = copy_and_die  # type: ignore[attr-defined]
    logs = Scuttleup(fake, id="us", value_encoding="utf-8")
    before = logs.extend(["a", "b", "c"])
    with full_disk(path, room), pytest.raises(DatabaseError, match="File too large"):
        logs.append("d" * 15)
    with pytest.raises(KeyboardInterrupt):
        logs.append("e")

    with reopened(copy) as logs:
        assert list(logs.create_read_stream()) == before
        assert logs.append("d") == ("us", 4, "d")


# --- Flipped bits ---------------------------------------------------------------------------------

BLOCK = 32 * 1024
HEADER = 7  # of a record in a journal: checksum (4 bytes), length (2), type (1)
FULL, LAST = 1, 4  # the types that end a record

Flip = tuple[int, int]  # a position and what its byte is XORed with


def records(journal: bytes) -> Iterator[tuple[list[int], bytes]]:
    """Where the headers of each record of a journal (or MANIFEST) are, and what it holds."""
    headers: list[int] = []
    payload = b""
    at = 0
    while at + HEADER <= len(journal):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length = int.from_bytes(journal[at + 4 : at + 6], "little")
        headers.append(at)
        payload += journal[at + HEADER : at + HEADER + length]
        if journal[at + 6] in (FULL, LAST):
            yield headers, payload
            headers, payload = [], b""
        at += HEADER + length


def record_taken_for_cut_off(journal: bytes, flip: Flip) -> int | None:
    """The one thing that LevelDB cannot see: which record `flip` hides with all that follow it.

    In the last block of a journal, if that is not full, a record whose length points behind the
    end of the file is what a crash in the middle of a write leaves. LevelDB leaves it out without
    a word, in its MANIFEST as well (ReadPhysicalRecord in db/log_reader.cc).
    """
    at, mask = flip
    for number, (headers, _) in enumerate(records(journal)):
        for header in headers:
            if at in (header + 4, header + 5) and header // BLOCK == len(journal) // BLOCK:
                length = int.from_bytes(journal[header + 4 : header + 6], "little")
                length ^= mask << 8 * (at - header - 4)
                if header + HEADER + length > len(journal):
                    return number
    return None


def read_with_flip(path: Path, name: str, flip: Flip) -> list[Change] | Exception:
    """All that a copy of the database has after one byte of the file `name` was flipped."""
    copy = path.with_name("copy.db")
    shutil.copytree(path, copy)
    try:
        flip_byte(copy / name, flip)
        with reopened(copy) as logs:
            changes = list(logs.create_read_stream())
            lasts = {change.peer: change.seq for change in changes}
            assert logs.head == lasts, "heads and entries do not agree"
            return changes
    except DatabaseError as error:
        return error
    finally:
        shutil.rmtree(copy)


def flip_byte(file: Path, flip: Flip) -> None:
    at, mask = flip
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ mask]))


def write_journal(path: Path) -> list[Change]:
    """A database that is all journal, of two blocks."""
    with scuttleup.open(path, id="us", value_encoding="utf-8") as logs:
        changes = [logs.append(f"entry {i}") for i in range(30)]
        changes += logs.extend(f"in a batch {i} " + "x" * 100 for i in range(300))
        return changes + [logs.append(f"and {i}") for i in range(40)]


def write_tables(path: Path) -> list[Change]:
    """Two small tables, each with 10 entries of two logs, and nothing in the journal."""
    with open_leveldb(path) as db:
        logs = Scuttleup(db, id="us", value_encoding="utf-8")
        for first in (1, 11):
            for peer in ("them", "us"):
                logs.write(Change(peer, seq, f"entry {seq}") for seq in range(first, first + 10))
            db.compact_range()
        return list(logs.create_read_stream())


def test_a_flipped_bit_in_a_journal_is_an_error_or_cuts_off_its_end(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    changes = write_journal(path)
    journal = newest_journal(path).read_bytes()
    counts = [int.from_bytes(payload[8:12], "little") for _, payload in records(journal)]
    assert sum(counts) == 1 + len(changes)  # the id is first
    headers = [header for headers, _ in records(journal) for header in headers]
    assert headers[-1] > BLOCK

    choose = random.Random(3)
    flips = [(choose.randrange(len(journal)), 1 << choose.randrange(8)) for _ in range(100)]
    flips += [(header + 4, choose.randrange(1, 256)) for header in headers]
    flips += [(header + 5, 1 << choose.randrange(8)) for header in headers]
    hidden = 0
    for flip in flips:
        found = read_with_flip(path, newest_journal(path).name, flip)
        record = record_taken_for_cut_off(journal, flip)
        if record is None:
            assert isinstance(found, Exception), f"no error: {flip}"
        else:
            assert found == changes[: max(0, sum(counts[:record]) - 1)], flip
            hidden += 1
    assert 0 < hidden < len(flips) / 2


def test_a_flipped_bit_in_a_table_is_an_error_or_harmless(tmp_path: Path) -> None:
    """Harmless: tables end in some bytes that nobody reads."""
    path = tmp_path / "logs.db"
    changes = write_tables(path)
    choose = random.Random(5)
    flips = [
        (table.name, (at, 1 << choose.randrange(8)))
        for table in path.glob("*.ldb")
        for at in range(choose.randrange(2), table.stat().st_size, 2)
    ]
    errors = 0
    for name, flip in flips:
        found = read_with_flip(path, name, flip)
        errors += isinstance(found, Exception)
        assert isinstance(found, Exception) or found == changes, (name, flip)
    assert len(flips) / 2 < errors < len(flips)


def test_a_flipped_bit_in_the_id_is_an_error_without_paranoid_checks_too(tmp_path: Path) -> None:
    """It would be another peer's."""
    path, copy = tmp_path / "logs.db", tmp_path / "copy.db"
    with open_leveldb(path) as db:
        Scuttleup(db, id="abc")
        db.compact_range()
    [table] = path.glob("*.ldb")
    at = table.read_bytes().index(b"abc")
    for mask in (1, 2, 4):
        shutil.copytree(path, copy)
        flip_byte(copy / table.name, (at, mask))
        with binding.DB(str(copy)) as db, pytest.raises(DamagedDatabase):
            Scuttleup(db)
        shutil.rmtree(copy)


def test_a_flipped_bit_in_current_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    write_tables(path)
    for at in range((path / "CURRENT").stat().st_size):
        for bit in range(8):
            found = read_with_flip(path, "CURRENT", (at, 1 << bit))
            assert isinstance(found, Exception), (at, bit)


def test_a_flipped_bit_in_the_manifest_is_an_error_or_cuts_off_its_end(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    changes = write_tables(path)
    [manifest] = path.glob("MANIFEST-*")
    listing = manifest.read_bytes()
    headers = [header for headers, _ in records(listing) for header in headers]
    assert len(headers) == 4  # what LevelDB begins with, twice; then one for each table

    choose = random.Random(7)
    flips = [(at, 1 << choose.randrange(8)) for at in range(len(listing))]
    flips += [(header + 5, 1) for header in headers]
    for flip in flips:
        found = read_with_flip(path, manifest.name, flip)
        record = record_taken_for_cut_off(listing, flip)
        if record is None or record < 2:
            assert isinstance(found, Exception), f"no error: {flip}"
        else:
            first = [change for change in changes if change.seq <= 10 * (record - 2)]
            assert found == first, flip


@pytest.fixture
def open_table(db: Any, tmp_path: Path) -> tuple[Scuttleup, list[Change], Path, int]:
    """A log of one table that stays open, its changes, the file and where its entries end."""
    logs = Scuttleup(db, id="us", value_encoding="utf-8")
    noise = random.Random(8)
    changes = logs.extend(noise.randbytes(40).hex() for _ in range(2000))
    db.compact_range()
    [table] = (tmp_path / "logs.db").glob("*.ldb")
    footer = table.read_bytes()[-48:]
    # A varint: where the index begins. It is checked once, when the table is opened.
    end = sum((footer[i] & 127) << 7 * i for i in range(10) if all(b > 127 for b in footer[:i]))
    assert 100_000 < end < table.stat().st_size
    return logs, changes, table, end


def test_a_bit_that_flips_while_the_log_is_open_is_an_error_and_no_shorter_snapshot(
    open_table: tuple[Scuttleup, list[Change], Path, int],
) -> None:
    logs, changes, table, end = open_table
    assert list(logs.create_read_stream()) == changes
    choose = random.Random(9)
    # In the last block, too, where the end of the entries is what a plain loop would see.
    for at in [0, *choose.sample(range(end), 40), end - 2000, end - 100, end - 1]:
        flip = (at, choose.randrange(1, 256))
        flip_byte(table, flip)
        with pytest.raises(DamagedDatabase):
            list(logs.create_read_stream())
        flip_byte(table, flip)
    assert list(logs.create_read_stream()) == changes


def test_a_bit_that_flips_while_the_log_is_open_gives_no_wrong_entry(
    open_table: tuple[Scuttleup, list[Change], Path, int],
) -> None:
    logs, changes, table, end = open_table
    choose = random.Random(10)
    for at in choose.sample(range(end), 10):
        flip = (at, choose.randrange(1, 256))
        flip_byte(table, flip)
        errors = 0
        for peer, seq, entry in changes:
            try:
                assert logs.entry(peer, seq) == entry
            except DamagedDatabase:
                errors += 1
        assert 0 < errors < 200, "one block of 4 KiB cannot be read"
        flip_byte(table, flip)
