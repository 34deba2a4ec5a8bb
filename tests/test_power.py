"""What the disk has when the power fails, and when it is full.

With `sync=True` it has this entry and everything before it.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from leveldb import FakeDB
from test_database import repeat

import scuttleup
from scuttleup import Change, DatabaseError, Scuttleup

# --- On a real file system, where the tests may mount one ------------------------------------


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Disk:
    """An ext4 file system in a file, mounted at `folder`."""

    def __init__(self, image: Path) -> None:
        self._image = image
        self.folder = image.with_suffix("")
        self.folder.mkdir(exist_ok=True)
        run("mount", "-o", "loop", image, self.folder)

    def after_a_power_failure(self) -> Disk:
        """What is on the disk at this moment, without what the kernel still holds."""
        copy = self._image.with_name(f"{self._image.stem}-.img")
        run("cp", "--sparse=always", self._image, copy)
        return Disk(copy)

    def unmount(self) -> None:
        run("umount", self.folder)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    image = tmp_path / "disk.img"
    try:
        with image.open("wb") as file:
            file.truncate(64 << 20)
        run("mkfs.ext4", "-q", image)
        disk = Disk(image)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield disk
    disk.unmount()


def check_after_a_power_failure(disk: Disk, logs: Scuttleup) -> None:
    """Everything that `logs` has is there, under the same id."""
    copy = disk.after_a_power_failure()
    try:
        with scuttleup.open(copy.folder / "logs.db") as found:
            assert (found.id, found.head) == (logs.id, logs.head)
            assert list(found.create_read_stream()) == list(logs.create_read_stream())
    finally:
        copy.unmount()


def test_the_id_of_a_new_database_survives(disk: Disk) -> None:
    with scuttleup.open(disk.folder / "logs.db") as logs:
        check_after_a_power_failure(disk, logs)


def test_unsynced_entries_in_a_journal_that_leveldb_has_left_survive(disk: Disk) -> None:
    with scuttleup.open(disk.folder / "logs.db") as logs:
        logs.append(b"first", sync=True)
        for number in range(90):
            logs.append(b"%d" % number * 25_000)
        logs.append(b"last", sync=True)
        check_after_a_power_failure(disk, logs)


def test_what_came_before_the_first_synced_entry_survives(disk: Disk) -> None:
    with scuttleup.open(disk.folder / "logs.db") as logs:
        logs.extend([b"x"] * 100)
        logs.append(b"last", sync=True)
        check_after_a_power_failure(disk, logs)


def test_every_synced_write_brings_all_before_it_to_the_disk(disk: Disk) -> None:
    """In any mixture, so that LevelDB begins a new journal before, in and after the synced one."""
    choose = random.Random(1)
    with scuttleup.open(disk.folder / "logs.db", id="us") as logs:
        for _ in range(8):
            for _ in range(choose.randrange(60)):
                logs.append(choose.randbytes(choose.choice([10, 50_000])))
            sync: list[Callable[[], object]] = [
                lambda: logs.append(choose.randbytes(100_000), sync=True),
                lambda: logs.extend([choose.randbytes(50_000)] * 20, sync=True),
                lambda: logs.write([("them", logs.head.get("them", 0) + 1, b"x")], sync=True),
            ]
            choose.choice(sync)()
            check_after_a_power_failure(disk, logs)


def test_a_read_only_file_system_is_refused(disk: Disk) -> None:
    scuttleup.open(disk.folder / "logs.db").close()
    run("mount", "-o", "remount,ro", disk.folder)
    with pytest.raises(DatabaseError, match=r"logs\.db cannot be used: .*: Read-only file system$"):
        scuttleup.open(disk.folder / "logs.db")


def test_a_full_disk_loses_nothing_and_there_is_a_way_on(disk: Disk) -> None:
    """If the disk was full as LevelDB saved a table, the way is to open the database again."""
    choose = random.Random(3)
    path, filler = disk.folder / "logs.db", disk.folder / "filler"
    with scuttleup.open(path, id="us") as logs:
        filler.write_bytes(bytes(36 << 20))
        acknowledged: list[Change] = []

        def append() -> None:
            acknowledged.append(logs.append(choose.randbytes(50_000)))

        for _ in range(2):
            with pytest.raises(DatabaseError, match="No space left on device"):
                repeat(append)
        assert len(acknowledged) > 50
        filler.unlink()
        with suppress(DatabaseError):  # which says what to do, see `test_database.py`
            append()
    with scuttleup.open(path) as logs:
        assert list(logs.create_read_stream()) == acknowledged
        append()


# --- By listening, everywhere ---------------------------------------------------------------------


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every file and folder that we bring to the disk, and every write."""
    events: list[str] = []
    sync = scuttleup.database._sync

    def listen(path: str, flags: int) -> None:
        events.append(os.path.basename(path))
        sync(path, flags)

    monkeypatch.setattr(scuttleup.database, "_sync", listen)
    return events


def test_a_new_database_and_its_folder_are_brought_to_the_disk_once(
    tmp_path: Path, synced: list[str]
) -> None:
    for _ in range(2):
        scuttleup.open(tmp_path / "logs.db").close()
        assert synced == ["logs.db", tmp_path.name]


OLD = "000001.log"  # LevelDB leaves it alone until it writes a table


@pytest.mark.parametrize(
    ("syncs", "events"),
    [
        ([False] * 5, ["write"] * 5),
        # Before this, somebody may have written without sync.
        ([True] * 3, [OLD, "write", OLD, "write", "write"]),
        ([True, False, True, True], [OLD, "write", OLD, "write", OLD, "write", OLD, "write"]),
    ],
    ids=["never", "always", "mixed"],
)
@pytest.mark.parametrize("name", ["append", "extend", "write"])
def test_an_older_journal_is_brought_to_the_disk_where_it_matters_and_only_there(
    tmp_path: Path, fake: FakeDB, synced: list[str], syncs: list[bool], events: list[str], name: str
) -> None:
    """Before the synced write, and after it, as LevelDB may begin a new journal for that."""
    logs = Scuttleup(fake, id="us")
    (tmp_path / "logs.db" / OLD).touch()
    synced.clear()
    write: Callable[[bool], object] = {
        "append": lambda sync: logs.append(b"x", sync=sync),
        "extend": lambda sync: logs.extend([b"x"], sync=sync),
        "write": lambda sync: logs.write([("a", logs.head.get("a", 0) + 1, b"")], sync=sync),
    }[name]
    perform = fake.perform

    def tell_and_perform(write: Callable[[], None]) -> None:
        synced.append("write")
        perform(write)

    fake.perform = tell_and_perform  # type: ignore[method-assign]
    for sync in syncs:
        write(sync)
    assert synced == events


def test_a_journal_that_cannot_be_synced_is_a_database_error(
    tmp_path: Path, logs: Scuttleup
) -> None:
    logs.append("x")
    (tmp_path / "logs.db" / OLD).mkdir()
    with pytest.raises(DatabaseError, match=rf"logs\.db cannot be used: {OLD}: ."):
        logs.append("y", sync=True)
    (tmp_path / "logs.db" / OLD).rmdir()
    assert logs.append("z", sync=True).entry == "z"
    assert [change.entry for change in logs.create_read_stream()] in (["x", "z"], ["x", "y", "z"])
