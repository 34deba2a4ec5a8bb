"""What the disk has when the power fails: with `sync=True` this entry and everything before it."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from leveldb import FakeDB
from uses import WRITES

import scuttleup
from scuttleup import DatabaseError, Scuttleup

# --- On a real file system, where the tests may mount one ------------------------------------


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    """The folder of a file system that is in a file."""
    folder = image.with_suffix("")
    folder.mkdir(exist_ok=True)
    run("mount", "-o", "loop", image, folder)
    try:
        yield folder
    finally:
        run("umount", folder)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    image = tmp_path / "disk.img"
    with ExitStack() as stack:
        try:
            run("mkfs.ext4", "-q", image, "64M")
            folder = stack.enter_context(mounted(image))
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        yield folder


def check_after_a_power_failure(disk: Path, logs: Scuttleup) -> None:
    """Everything that `logs` has is there, under the same id."""
    copy = disk.with_name("copy.img")  # without what the kernel still holds
    run("cp", "--sparse=always", disk.with_suffix(".img"), copy)
    with mounted(copy) as folder, scuttleup.open(folder / "logs.db") as found:
        assert (found.id, found.head) == (logs.id, logs.head)
        assert list(found.create_read_stream()) == list(logs.create_read_stream())


def test_the_id_of_a_new_database_survives(disk: Path) -> None:
    with scuttleup.open(disk / "logs.db") as logs:
        check_after_a_power_failure(disk, logs)


def test_every_synced_write_brings_all_before_it_to_the_disk(disk: Path) -> None:
    """They are mixed so that LevelDB begins a journal before, in and after the synced one."""
    choose = random.Random(1)
    with scuttleup.open(disk / "logs.db") as logs:
        for _ in range(8):
            for sync in [False] * choose.randrange(120) + [True]:
                entry = choose.randbytes(choose.choice([10, 50_000]))
                WRITES[choose.choice(list(WRITES))](logs, entry, sync=sync)
            check_after_a_power_failure(disk, logs)


# --- By listening, everywhere ---------------------------------------------------------------------


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files and folders that we bring to the disk, in order."""
    events: list[str] = []
    sync = scuttleup.leveldb.files._sync

    def listen(path: str, flags: int) -> None:
        events.append(os.path.basename(path))
        sync(path, flags)

    monkeypatch.setattr(scuttleup.leveldb.files, "_sync", listen)
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
@pytest.mark.parametrize("name", WRITES)
def test_an_older_journal_is_brought_to_the_disk_where_it_matters_and_only_there(
    tmp_path: Path, fake: FakeDB, synced: list[str], syncs: list[bool], events: list[str], name: str
) -> None:
    """It matters before a synced write, and after it, as LevelDB may begin a journal for that."""
    logs = Scuttleup(fake, id="us")
    (tmp_path / "logs.db" / OLD).touch()
    synced.clear()
    perform = fake.perform

    def tell_and_perform(write: Callable[[], None]) -> None:
        synced.append("write")
        perform(write)

    fake.perform = tell_and_perform  # type: ignore[method-assign]
    for sync in syncs:
        WRITES[name](logs, sync=sync)
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
