"""What is deleted: one entry, a range, and what they took on the disk."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leveldb import FakeDB, open_leveldb
from waiting import until

import scuttleup
from scuttleup import DatabaseError, Scuttleup, limits
from scuttleup.keys import log_prefix, pack_seq


def size(folder: Path) -> int:
    total = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # LevelDB has just deleted it
            total += file.stat().st_size
    return total


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), max_size=5), st.integers(1, 3))
@settings(max_examples=60)
def test_a_range_is_gone_and_its_numbers_stay_used(
    tmp_path_factory: pytest.TempPathFactory, ranges: list[tuple[int, int]], step: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "DELETE_STEP", step)
        patch.setattr(limits, "DELETED", 3)
        path = tmp_path_factory.mktemp("range") / "logs.db"
        here = set(range(1, 11))
        with scuttleup.open(path, id="us") as logs:
            logs.extend([b"x"] * 10)
            logs.write([("us2", 1, b"y"), ("u", 1, b"z")])
            for first, count in ranges:
                gone = here & set(range(first, first + count + 1))
                assert logs.delete("us", first, first + count) == len(gone)
                here -= gone
            heads = logs.head
        with scuttleup.open(path) as logs:
            assert logs.head == heads == {"us": 10, "us2": 1, "u": 1}
            assert {c.seq for c in logs.create_read_stream() if c.peer == "us"} == here
            assert logs.append(b"x").seq == 11


@pytest.mark.parametrize("steps", range(4))
def test_a_range_that_ends_early_hides_nothing(fake: FakeDB, steps: int, limit: Any) -> None:
    """The number of the newest entry is written down before that entry goes."""
    limit(DELETE_STEP=3)
    logs = Scuttleup(fake, id="us")
    logs.extend([b"x"] * 9)

    def fail_after(write: Any, left: list[int] = [steps]) -> None:  # noqa: B006
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        write()

    fake.perform = fail_after  # type: ignore[method-assign]
    if steps < 3:
        with pytest.raises(DatabaseError):
            logs.delete("us", 1, 9)
    else:
        assert logs.delete("us", 1, 9) == 9
    again = Scuttleup(fake._sound)
    assert again.head == {"us": 9}
    assert [c.seq for c in again.create_read_stream()] == [*range(1 + 3 * steps, 10)]


def test_an_entry_of_a_stranger_between_ours_is_not_deleted(db: Any) -> None:
    """The original stores entries under ids with U+00FF, and these keys lie among those of ours."""
    logs = Scuttleup(db, id="us")
    logs.extend([b"x"] * 5)
    stray = log_prefix("us") + pack_seq(2) + "\xff".encode() + pack_seq(1)
    db.put(stray, b"not ours")
    assert logs.delete("us", 1, 5) == 5
    assert db.get(stray) == b"not ours"


def test_a_wrong_range_deletes_nothing(db: Any) -> None:
    logs = Scuttleup(db, id="us")
    logs.extend([b"x"] * 5)
    assert logs.delete("us", 4, 2) == 0
    assert logs.delete("nobody", 1, 5) == 0
    for first, last, error in (0, 5, ValueError), (1, 2**32, ValueError), (1, "5", TypeError):
        with pytest.raises(error):
            logs.delete("us", first, last)  # type: ignore[arg-type]
    assert len([*logs.create_read_stream()]) == 5


def test_others_write_and_read_while_a_range_is_deleted(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "logs.db", id="us") as logs:
        for _ in range(60):
            logs.extend([bytes(100)] * 1000)
        thread = threading.Thread(target=logs.delete, args=("us", 1, 60_000))
        thread.start()
        appended = []
        while thread.is_alive():
            appended.append(logs.append(b"new"))
            next(logs.create_read_stream(since={"us": appended[-1].seq - 1}))
        thread.join()
        assert list(logs.create_read_stream()) == appended != []


@pytest.mark.parametrize("count", [1, 5])
def test_what_is_deleted_bit_by_bit_from_the_end_is_given_back(
    tmp_path: Path, limit: Any, count: int
) -> None:
    limit(DELETED=10)
    with scuttleup.open(tmp_path / "logs.db", id="us") as logs:
        logs.extend([random.randbytes(100_000) for _ in range(40)])
        logs.compact()
        for first in range(40 - count, 0, -count):
            logs.delete("us", first, first + count - 1)
        asyncio.run(until(lambda: size(tmp_path / "logs.db") < 1_500_000))


@pytest.mark.parametrize("part", [False, True], ids=["whole", "a part of a LevelDB"])
def test_what_is_deleted_is_given_back(tmp_path: Path, part: bool) -> None:
    with open_leveldb(tmp_path / "logs.db") as db:
        logs = Scuttleup(db.prefixed_db(b"part/") if part else db, id="us")
        for _ in range(100):
            logs.extend([bytes(range(100))] * 1000)
        assert logs.delete("us", 1, 99_990) == 99_990
        logs.compact()
        assert size(tmp_path / "logs.db") < 100_000
        assert len(list(logs.create_read_stream())) == 10
