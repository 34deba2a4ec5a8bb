"""What can happen to the folder: others open it, it is moved or deleted, a part is missing."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from leveldb import binding, open_leveldb
from waiting import LIMIT

import scuttleup
from scuttleup import DamagedDatabase, DatabaseError, DatabaseLocked, Scuttleup
from scuttleup.leveldb.manifest import oldest_journal

OTHER = """
import sys, scuttleup
try:
    with scuttleup.open(sys.argv[1]) as logs:
        logs.append(b"from another process")
except scuttleup.DatabaseLocked as error:
    print(error)
"""


def other_process(path: Path) -> str:
    """What another process says that opens the database at `path` and appends to it."""
    command = [sys.executable, "-c", OTHER, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def tries_twice(path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        for _ in range(4):
            with suppress(DatabaseLocked):
                threads.submit(scuttleup.open, path).result(LIMIT).close()


def uses_leveldb(path: Path) -> None:
    with suppress(binding.Error):
        binding.DB(str(path)).close()


def copies_by_links(path: Path) -> None:
    shutil.copytree(path, path.parent / "links.db", copy_function=os.link)
    with pytest.raises(DatabaseLocked):
        scuttleup.open(path.parent / "links.db")


@pytest.mark.parametrize(
    "careless",
    [
        tries_twice,
        uses_leveldb,
        copies_by_links,
        lambda path: shutil.copytree(path, path.parent / "copy.db"),
        lambda path: (path / "LOCK").read_bytes(),
        lambda path: (path / "LOCK").unlink(),
        lambda path: path.parent.joinpath("link.db").symlink_to(path),
    ],
    ids=["opened again", "by LevelDB", "links", "copied", "LOCK read", "LOCK deleted", "named"],
)
@pytest.mark.skipif(os.name == "nt", reason="there nothing of this is possible")
def test_whatever_the_program_does_to_its_folder_nobody_else_gets_in(
    tmp_path: Path, careless: Callable[[Path], object]
) -> None:
    """A lock of POSIX is lost as soon as the process closes any descriptor of the file."""
    path = tmp_path / "logs.db"
    with scuttleup.open(path) as logs:
        logs.append(b"x")
        careless(path)
        assert other_process(path) == f"{path} is open in another process"
        for name in path, *tmp_path.glob("link.db"):
            with pytest.raises(DatabaseLocked, match="open in this process already"):
                scuttleup.open(name)
        logs.append(b"y")
    assert other_process(path) == ""
    with scuttleup.open(path) as logs:
        assert logs.head == {logs.id: 3}


def test_a_leveldb_of_the_program_itself_is_seen_under_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_leveldb(Path("logs.db")), pytest.raises(DatabaseLocked, match="in this process"):
        scuttleup.open(tmp_path / "logs.db")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no exec")
def test_a_program_that_takes_our_place_can_open_the_logs(tmp_path: Path) -> None:
    code = """if 1:
        import os, sys, scuttleup
        logs = scuttleup.open(sys.argv[1])
        logs.append(b"x")
        os.execv(sys.executable, [sys.executable, "-c", sys.argv[2], sys.argv[1]])"""
    command = [sys.executable, "-c", code, str(tmp_path / "logs.db"), OTHER]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b""
    with scuttleup.open(tmp_path / "logs.db") as logs:
        assert logs.head == {logs.id: 2}


def test_an_opening_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "logs.db"):
        before = {file.name: file.read_bytes() for file in (tmp_path / "logs.db").iterdir()}
        assert other_process(tmp_path / "logs.db")
        assert {f.name: f.read_bytes() for f in (tmp_path / "logs.db").iterdir()} == before


@pytest.mark.parametrize("verify", [None, lambda change: True])
def test_logs_that_are_dropped_are_closed(tmp_path: Path, verify: Any) -> None:
    gc.disable()
    try:
        for seq in 1, 2:
            assert scuttleup.open(tmp_path / "logs.db", verify=verify).append(b"x").seq == seq
    finally:
        gc.enable()


# --- What is missing ------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("old", [False, True], ids=["young", "with tables"])
def test_a_database_without_its_journal_is_damaged(tmp_path: Path, signed: bool, old: bool) -> None:
    """LevelDB takes it for an empty one, and the numbers in it would be given out twice."""
    path = tmp_path / "logs.db"
    with scuttleup.open(path, signed=signed) as logs:
        logs.extend([b"x" * 100] * 100)
        if old:
            logs._store.database.whole.compact_range()
            logs.append(b"in the journal")
    scuttleup.open(path).close()
    journal = max(path.glob("*.log"))
    journal.rename(tmp_path / "kept")
    for _ in range(2):
        with pytest.raises(DamagedDatabase, match=f"is damaged: {journal.name} is missing$"):
            scuttleup.open(path)
    (tmp_path / "kept").rename(journal)
    with scuttleup.open(path) as logs:
        assert logs.head == {logs.id: 100 + old}


@pytest.mark.parametrize("pattern", ["*.ldb", "MANIFEST-*", "CURRENT"])
def test_any_other_file_that_is_missing_is_named(tmp_path: Path, pattern: str) -> None:
    path = tmp_path / "logs.db"
    with scuttleup.open(path) as logs:
        logs.extend([b"x" * 100] * 100)
        logs._store.database.whole.compact_range()
    [file] = path.glob(pattern)
    file.unlink()
    with pytest.raises(DamagedDatabase, match=r"is damaged: .*missing"):
        scuttleup.open(path)


def test_a_table_that_vanishes_while_it_is_open_is_damage(fake: Any) -> None:
    logs = Scuttleup(fake)
    fake.before = binding.IOError(b"IO error: /logs.db/000005.ldb: No such file or directory")
    with pytest.raises(DamagedDatabase, match=r"is damaged: 000005\.ldb is missing$"):
        logs.append(b"x")


def test_the_journal_is_found_over_the_blocks_of_a_long_manifest(tmp_path: Path) -> None:
    with open_leveldb(tmp_path / "logs.db") as db:
        for number in range(800):
            db.put(b"%d" % number, b"x")
            db.compact_range(start=b"\xff", stop=b"\xff")
        [manifest] = (tmp_path / "logs.db").glob("MANIFEST-*")
        assert manifest.stat().st_size > 32 * 1024
        newest = max(tmp_path.glob("logs.db/*.log"), key=lambda path: int(path.stem))
        assert oldest_journal(manifest.read_bytes()) == int(newest.stem)


def test_a_journal_that_leveldb_deletes_meanwhile_is_no_trouble(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "logs.db") as logs:
        logs.append(b"x")
        # LevelDB has deleted it after the folder was listed.
        (tmp_path / "logs.db" / "000001.log").symlink_to("gone")
        logs.compact()


def test_a_manifest_that_is_cut_off_anywhere_hides_nothing(tmp_path: Path) -> None:
    path, cut = tmp_path / "logs.db", tmp_path / "cut.db"
    with scuttleup.open(path, id="us") as logs:
        logs.extend([b"x"] * 5)
        logs.compact()
    [manifest] = path.glob("MANIFEST-*")
    whole = manifest.read_bytes()
    for size in range(len(whole)):
        shutil.copytree(path, cut)
        (cut / manifest.name).write_bytes(whole[:size])
        with pytest.raises(DamagedDatabase):
            scuttleup.open(cut)
        shutil.rmtree(cut)


# --- Moved and deleted ----------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows moves no folder with open files")
@pytest.mark.parametrize("begun", [False, True], ids=["nothing there", "another in its place"])
@pytest.mark.parametrize("end", ["moved", "deleted"])
def test_a_database_that_was_moved_or_deleted_takes_no_more_writes(
    tmp_path: Path, end: str, begun: bool
) -> None:
    path, moved = tmp_path / "logs.db", tmp_path / "moved.db"
    with scuttleup.open(path) as logs:
        changes = [logs.append(b"x")]
        path.rename(moved)
        if end == "deleted":
            shutil.rmtree(moved)
        if begun:
            assert other_process(path) == ""

        def append_on() -> None:
            while True:
                changes.append(logs.append(b"y"))

        with pytest.raises(DatabaseError, match="was moved or deleted while it was open"):
            append_on()  # for 10 ms at the most
        for write in (
            lambda: logs.append(b"z"),
            lambda: logs.extend([b"z"]),
            lambda: logs.write([("them", 1, b"z")]),
            lambda: logs.delete(logs.id, 1),
            lambda: logs.compact(),
        ):
            with pytest.raises(DatabaseError, match="was moved or deleted"):
                write()
    if end == "moved":
        assert list(scuttleup.open(moved).create_read_stream()) == changes
    if begun:
        with scuttleup.open(path) as other:
            assert list(other.create_read_stream()) == [(other.id, 1, b"from another process")]


@pytest.mark.skipif(os.name == "nt", reason="Windows moves no folder with open files")
def test_a_new_current_is_not_taken_for_the_old_one(tmp_path: Path, limit: Any) -> None:
    """Most file systems give a new file the inode of one that was deleted some time ago."""
    limit(LOOK_SECONDS=0)
    path = tmp_path / "logs.db"
    with scuttleup.open(path) as logs:
        shutil.copytree(path, tmp_path / "backup.db")
        inode = (path / "CURRENT").stat().st_ino
        shutil.rmtree(path)
        shutil.copytree(tmp_path / "backup.db", path)
        for number in range(20):
            (new := path / str(number)).write_bytes((path / "CURRENT").read_bytes())
            if new.stat().st_ino == inode:
                new.replace(path / "CURRENT")
        with pytest.raises(DatabaseError, match="was moved or deleted"):
            logs.append(b"x")


# --- Errors that LevelDB does not tell ------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows syncs no folder")
def test_an_error_of_the_disk_at_a_sync_of_the_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(file: int) -> None:
        if os.path.isdir(f"/dev/fd/{file}"):
            raise OSError(5, "Input/output error")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DatabaseError, match="Input/output error"):
        scuttleup.open(tmp_path / "logs.db")


def test_a_synced_write_that_failed_is_in_doubt(fake: Any) -> None:
    logs = Scuttleup(fake, id="us", sync=True)
    logs.append(b"x")
    fake.after = binding.IOError(b"IO error: 000005.log: Input/output error")
    with pytest.raises(scuttleup.WriteInDoubt, match="not known whether this is stored"):
        logs.append(b"y")
    fake.after = None
    assert logs.append(b"z").seq == 3
