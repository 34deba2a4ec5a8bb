"""Nothing lost: not to SIGKILL, a disk that refuses, Ctrl-C or a flipped bit."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dis import get_instructions
from functools import cache
from itertools import chain, count, groupby
from mmap import mmap
from operator import itemgetter
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import pytest
from leveldb import FakeDB, binding, open_leveldb
from uses import CHANGES, USES, WRITES
from waiting import LIMIT, start

import scuttleup.follower
import scuttleup.leveldb
import scuttleup.read_stream
import scuttleup.store
from scuttleup import Change, DamagedDatabase, DatabaseError, Scuttleup

# --- Killed ---------------------------------------------------------------------------------------

KILLS = 36


def kill_a_writer(path: Path, run: int, threads: int, lines: int) -> list[str]:
    """Start a writer, SIGKILL it when it has printed `lines` lines, return what it acknowledged."""
    program = Path(__file__).with_name("writer.py")
    command = map(str, (sys.executable, program, path, threads, run))
    with subprocess.Popen(list(command), stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        printed = [writer.stdout.readline() for _ in range(lines)]
        writer.kill()
        printed += writer.stdout.readlines()
    assert writer.returncode
    assert printed[0] == "opening\n"
    return printed[1:]


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
        for line in kill_a_writer(path, run, choose.choice([1, 4]), lines):
            first, last, tag = line.split()
            for seq in range(int(first), int(last) + 1):
                assert seq not in acknowledged, "a number given twice"
                acknowledged[seq] = tag

        with reopened(path) as logs:
            before, whole = whole, list(logs.create_read_stream())
            assert logs.head == ({logs.id: len(whole)} if whole else {})
        assert whole[: len(before)] == before, "what one run had read, the next has not"

    assert [change.seq for change in whole] == list(range(1, len(whole) + 1)), "a gap"
    entries = [change.entry.split()[:2] for change in whole]
    assert {seq: entries[seq - 1][0] for seq in acknowledged} == acknowledged
    assert len(acknowledged) > 10 * KILLS
    for tag, batch in groupby(entries, key=itemgetter(0)):
        places = [place for _, place in batch]
        size = len(places)
        assert places == [f"{i}/{size}" for i in range(1, size + 1)], f"not all of {tag}"


# --- Refused by the disk, or interrupted ----------------------------------------------------------


def drain(logs: Scuttleup, stream: Iterator[Change]) -> list[Change]:
    """Write one more entry to each log, and return what a live stream gives up to these."""
    ends = {logs.append("end")}
    ends |= {Change(peer, seq + 1, "end") for peer, seq in logs.head.items() if peer != logs.id}
    logs.write(ends)
    seen = []
    while ends:
        seen.append(next(stream))
        ends.discard(seen[-1])
    return seen


@pytest.mark.parametrize("name", CHANGES)
def test_a_write_that_leveldb_refuses_changes_nothing(fake: FakeDB, name: str) -> None:
    logs = Scuttleup(fake, id="us", value_encoding="utf-8")
    logs.extend(["a", "b"])
    stream = logs.create_read_stream(tail=True)

    fake.before = binding.IOError(b"IO error: No space left on device")
    for _ in range(3):
        with pytest.raises(DatabaseError, match="No space left") as caught:
            USES[name](logs)
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
    """With a lower head the next entry would get a number that is taken."""
    for steps in count():
        with suppress(DamagedDatabase):
            head = Scuttleup(FakeDB(with_gaps, steps)).head
            break
    assert head == {"us": 30, "them": 3, "all": 3}
    assert steps > 15


def test_an_iteration_that_ends_early_gives_no_shorter_snapshot(with_gaps: Any) -> None:
    complete = list(Scuttleup(with_gaps).create_read_stream())
    for steps in count():
        logs = Scuttleup(fake := FakeDB(with_gaps))
        fake.steps = steps
        stream = logs.create_read_stream()
        read: list[Change] = []
        try:
            read += stream
            break
        except DamagedDatabase:
            assert read == complete[: len(read)]
            with pytest.raises(DamagedDatabase):
                next(stream)  # it does not go on behind what it left out
    assert read == complete
    assert steps > 30


@pytest.mark.parametrize("name", WRITES)
def test_ctrl_c_at_any_moment_gives_no_number_twice_and_hides_none_from_a_stream(
    db: Any, logs: Scuttleup, name: str
) -> None:
    """That holds even if LevelDB, which Python cannot stop, took the write before the interrupt."""
    stream = logs.create_read_stream(tail=True)
    logs.write([Change("them", 1, "so that their log is there")])
    seen: list[Change] = []
    moment = 0
    while interrupted(lambda: WRITES[name](logs), moment, scuttleup.store):
        stored = set(db)
        seen += drain(logs, stream)
        assert stored <= set(db), "one was overwritten"
        moment += 1
    assert moment > 5
    seen += drain(logs, stream)

    for again in logs, Scuttleup(db, value_encoding="utf-8"):
        assert sorted(seen) == list(again.create_read_stream())
        assert again.head == Counter(change.peer for change in seen), "a gap"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_second_ctrl_c_while_the_logs_recover_from_one_gives_no_number_twice(
    fake: FakeDB, when: str
) -> None:
    logs = Scuttleup(fake, id="us", value_encoding="utf-8")
    acknowledged: list[Change] = []
    for moment in range(500):  # as many are reached only if each recovery is longer than the last
        setattr(fake, when, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            logs.append("first")
        fake.before = fake.after = None
        again = interrupted(lambda: logs.append("again"), moment, scuttleup.store)
        acknowledged += [logs.append(f"{moment}"), logs.append(f"and {moment}")]
        if not again:
            break
    assert 20 < moment < 499

    stored = list(logs.create_read_stream())
    assert [change.seq for change in stored] == list(range(1, len(stored) + 1))
    assert set(acknowledged) <= set(stored)
    assert logs.head == {"us": len(stored)}


def test_ctrl_c_while_streams_are_woken_leaves_none_asleep(logs: Scuttleup) -> None:
    """And it blocks no append. A lock that Python code takes can stay taken for ever."""
    modules = scuttleup.store, scuttleup.follower, scuttleup.read_stream, threading
    streams = [logs.create_read_stream(tail=True) for _ in range(3)]

    def append_to_sleepers() -> int:
        moment = 0
        while True:
            for stream in streams:  # as `wait` does before it sleeps
                stream._alarm._silence.acquire(blocking=False)
                while stream._read():
                    pass
            again = interrupted(lambda: logs.append("x"), moment, *modules)
            logs.append("next")
            for stream in streams:
                assert stream._alarm._silence.acquire(timeout=1), f"asleep at {moment}"
            if not again:
                return moment
            moment += 1

    # In a thread that may be left behind: a join has a time limit, an append has not.
    assert start(append_to_sleepers).result(LIMIT) > 30


@cache
def instructions(code: CodeType) -> dict[int, str]:
    return {each.offset: each.opname for each in get_instructions(code)}


def interrupted(call: Callable[[], object], moment: int, *modules: ModuleType) -> bool:
    """Raise KeyboardInterrupt at moment number `moment` that `call` spends in these modules.

    A moment is one in which Python itself may handle a signal: just after a function has begun or
    gone on, after a call that returned, and after a loop has jumped back. False if there are fewer.
    """
    files = {module.__file__ for module in modules}
    earlier = iter(range(moment))

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        last = ""

        def step(frame: FrameType, event: str, _: object) -> Any:
            nonlocal last
            frame.f_trace_opcodes = True  # Python 3.14 forgets it when a function begins
            if event == "opcode":
                handles = last.startswith(("RESUME", "CALL", "JUMP_BACKWARD"))
                if handles and next(earlier, None) is None:
                    sys.settrace(None)
                    raise KeyboardInterrupt
                last = instructions(frame.f_code).get(frame.f_lasti, "")
            return step

        return step

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@contextmanager
def full_disk(path: Path, room: int) -> Iterator[None]:
    """Let the kernel take `room` more bytes for the journal, and refuse the rest."""
    resource = pytest.importorskip("resource", reason="Windows has no limit for a file's size")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = max(path.glob("*.log")).stat().st_size + room
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Nothing of the record, a part of its header, of its entry, and more than a block of a batch.
@pytest.mark.parametrize("room", [0, 3, 30, 40_000])
def test_what_is_appended_after_the_disk_was_full_survives(tmp_path: Path, room: int) -> None:
    """A write was cut off, so LevelDB's next ones would be in the wrong place of the journal."""
    path = tmp_path / "logs.db"
    logs = scuttleup.open(path, id="us", value_encoding="utf-8")
    before = logs.extend(f"before {i}" for i in range(100))
    stream = logs.create_read_stream(tail=True)

    with full_disk(path, room):
        for _ in range(3):
            with pytest.raises(DatabaseError, match="File too large"):
                logs.extend(["x" * 1000] * 50)
            with pytest.raises(DatabaseError, match="File too large"):
                logs.append("y" * 1000)
            assert logs.head == {"us": 100}

    after = [logs.append(f"after {i}") for i in range(5000)]
    assert next(stream) == after[0] == ("us", 101, "after 0")
    logs.close()  # which does no more than a kill does: LevelDB saves nothing when it closes

    with reopened(path) as logs:
        assert logs.head == {"us": 5100}
        assert list(logs.create_read_stream()) == before + after


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


def records(journal: bytes) -> Iterator[list[int]]:
    """For each record of a journal (or MANIFEST), where its headers are."""
    headers: list[int] = []
    at = 0
    while at + HEADER <= len(journal):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        headers.append(at)
        if journal[at + 6] in (FULL, LAST):
            yield headers
            headers = []
        at += HEADER + int.from_bytes(journal[at + 4 : at + 6], "little")


def record_taken_for_cut_off(journal: bytes, at: int, mask: int) -> int | None:
    """The number of the record that a flip hides with all that follow it; None if it hides none.

    In the last block of a journal, if that is not full, a record whose length points behind the
    end of the file is what a crash in the middle of a write leaves. LevelDB leaves it out without
    a word, in its MANIFEST as well (ReadPhysicalRecord in db/log_reader.cc).
    """
    for number, headers in enumerate(records(journal)):
        for header in headers:
            if at in (header + 4, header + 5) and header // BLOCK == len(journal) // BLOCK:
                length = int.from_bytes(journal[header + 4 : header + 6], "little")
                length ^= mask << 8 * (at - header - 4)
                if header + HEADER + length > len(journal):
                    return number
    return None


def flip_byte(file: Path, at: int, mask: int) -> None:
    with file.open("r+b") as opened, mmap(opened.fileno(), 0) as content:
        content[at] ^= mask


def read_with_flip(file: Path, at: int, mask: int) -> list[Change] | None:
    """All that a copy of the database has after a flip in that file; None if it is damaged."""
    copy = file.parent.with_name("copy.db")
    shutil.copytree(file.parent, copy)
    try:
        flip_byte(copy / file.name, at, mask)
        with reopened(copy) as logs:
            changes = list(logs.create_read_stream())
            lasts = {change.peer: change.seq for change in changes}
            assert logs.head == lasts, "heads and entries do not agree"
            return changes
    except DatabaseError:
        return None
    finally:
        shutil.rmtree(copy)


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, list[Change]]:
    """Two small tables, each with 10 entries of two logs, and nothing in the journal."""
    path = tmp_path / "logs.db"
    with open_leveldb(path) as db:
        logs = Scuttleup(db, id="us", value_encoding="utf-8")
        for first in (1, 11):
            for peer in ("them", "us"):
                logs.write(Change(peer, seq, f"entry {seq}") for seq in range(first, first + 10))
            db.compact_range()
        return path, list(logs.create_read_stream())


def try_flips(
    file: Path, step: int, left: Sequence[list[Change] | None], *, or_error: bool = False
) -> None:
    """Flip bits of a journal: each is an error, or leaves what `left` has for the hidden record.

    With `or_error` it may be an error as well that a record is hidden.
    """
    journal = file.read_bytes()
    assert len([*records(journal)]) == len(left)
    choose = random.Random(3)
    flips = [(at, 1 << choose.randrange(8)) for at in range(0, len(journal), step)]
    for header in chain(*records(journal)):
        flips += [(header + 4, choose.randrange(1, 256)), (header + 5, 1 << choose.randrange(8))]
    hidden = 0
    for flip in flips:
        record = record_taken_for_cut_off(journal, *flip)
        found = read_with_flip(file, *flip)
        if not (or_error and found is None):
            assert found == (None if record is None else left[record]), flip
        hidden += record is not None
    assert 0 < hidden < len(flips) / 2


def test_a_flipped_bit_in_a_journal_is_an_error_or_cuts_off_its_end(tmp_path: Path) -> None:
    writes = [[f"entry {i}"] for i in range(30)]
    writes += [[f"in a batch {i} " + "x" * 100 for i in range(300)]]  # over the end of a block
    writes += [[f"and {i}"] for i in range(40)]
    left: list[list[Change]] = [[]]  # before the record of the id
    with scuttleup.open(tmp_path / "logs.db", id="us", value_encoding="utf-8") as logs:
        for entries in writes:
            left.append(list(logs.create_read_stream()))
            logs.extend(entries)
    [journal] = (tmp_path / "logs.db").glob("*.log")
    try_flips(journal, 443, left)


def test_a_flipped_bit_in_a_table_is_an_error_or_harmless(
    tables: tuple[Path, list[Change]],
) -> None:
    """It may be harmless because a table ends in some bytes that nobody reads."""
    path, changes = tables
    choose = random.Random(5)
    found = [
        read_with_flip(table, at, 1 << choose.randrange(8))
        for table in path.glob("*.ldb")
        for at in range(choose.randrange(2), table.stat().st_size, 2)
    ]
    assert all(left in (None, changes) for left in found)
    assert len(found) / 2 < found.count(None) < len(found)


def test_a_flipped_bit_in_the_id_is_an_error_without_paranoid_checks_too(tmp_path: Path) -> None:
    """A flipped id would be the id of another peer."""
    path = tmp_path / "logs.db"
    with open_leveldb(path) as db:
        Scuttleup(db, id="abc")
        db.compact_range()
    [table] = path.glob("*.ldb")
    flip_byte(table, table.read_bytes().index(b"abc"), 1)
    with binding.DB(str(path)) as db, pytest.raises(DamagedDatabase):
        Scuttleup(db)


def test_a_flipped_bit_in_current_is_an_error(tables: tuple[Path, list[Change]]) -> None:
    current = tables[0] / "CURRENT"
    for at in range(current.stat().st_size):
        for bit in range(8):
            assert read_with_flip(current, at, 1 << bit) is None, (at, bit)


def test_a_flipped_bit_in_the_manifest_is_an_error_or_cuts_off_its_end(
    tables: tuple[Path, list[Change]],
) -> None:
    path, changes = tables
    [manifest] = path.glob("MANIFEST-*")
    # Before what LevelDB begins with, twice; then before each table.
    left = [None, None, [], [change for change in changes if change.seq <= 10]]
    try_flips(manifest, 1, left, or_error=True)


def test_a_bit_that_flips_while_the_logs_are_open_gives_no_wrong_entry_and_no_shorter_snapshot(
    db: Any, tmp_path: Path
) -> None:
    choose = random.Random(9)
    logs = Scuttleup(db)
    changes = logs.extend(choose.randbytes(80) for _ in range(2000))
    db.compact_range()
    [table] = (tmp_path / "logs.db").glob("*.ldb")
    end = table.read_bytes().index(changes[-1].entry) + 80
    assert list(logs.create_read_stream()) == changes
    # Also in the last block and in its checksum, where a plain loop would just end earlier.
    for at in [0, *choose.sample(range(end), 40), end - 2000, end - 1, end + 12]:
        mask = choose.randrange(1, 256)
        flip_byte(table, at, mask)
        with pytest.raises(DamagedDatabase):
            list(logs.create_read_stream())
        errors = 0
        for peer, seq, entry in changes:
            try:
                assert logs.entry(peer, seq) == entry
            except DamagedDatabase:
                errors += 1
        assert 0 < errors < 200, "one block of 4 KiB cannot be read"
        flip_byte(table, at, mask)
    assert list(logs.create_read_stream()) == changes


def test_the_only_entry_of_a_log_is_checked_when_it_is_read(db: Any, tmp_path: Path) -> None:
    """A few entries are looked up one by one, and not by going through the table."""
    logs = Scuttleup(db)
    [change] = logs.extend([random.Random(1).randbytes(80)])
    db.compact_range()
    [table] = (tmp_path / "logs.db").glob("*.ldb")
    flip_byte(table, table.read_bytes().index(change.entry), 1)
    with pytest.raises(DamagedDatabase):
        list(logs.create_read_stream())
