"""The disk refuses calls: one, two in a row, many at random. What is acknowledged is not lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from leveldb import binding

import scuttleup
from scuttleup import DamagedDatabase, Scuttleup

if not sys.platform.startswith("linux") or not shutil.which("cc"):
    pytest.skip("needs LD_PRELOAD and a C compiler", allow_module_level=True)

# A program that goes on after each error, and says what was acknowledged. The entries are long
# enough for new journals and tables to be made: the buffer of LevelDB is small here.
PROGRAM = """
import os, sys
import scuttleup
from scuttleup import limits
limits.WRITE_BUFFER = 64 * 1024
path, sync = sys.argv[1], sys.argv[2] == "sync"
logs = None
for number in range(120):
    entry = b"%d " % number + os.urandom(500 + number % 7 * 300)
    try:
        logs = logs or scuttleup.open(path, id="us", sync=sync)
        changes = logs.extend([entry] * 3) if number % 3 == 0 else [logs.append(entry)]
    except scuttleup.DatabaseError as error:
        if logs and "open it again" in str(error) and number % 2:
            logs = logs.close()
    else:
        for change in changes:
            os.write(1, b"%d %s\\n" % (change.seq, entry.hex().encode()))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shim") / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run(
        ["cc", "-std=gnu11", "-shared", "-fPIC", "-w", "-o", path, source, "-ldl"], check=True
    )
    return path


def run(shim: Path, folder: Path, calls: str, sync: str) -> tuple[dict[int, bytes], list[str]]:
    """What was acknowledged while `calls` failed, by number, and the faults that there were."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder, sync],
        env={
            **os.environ,
            "LD_PRELOAD": str(shim),
            "FAULT_FOLDER": str(folder),
            "FAULT_CALLS": calls,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    acknowledged: dict[int, bytes] = {}
    for line in result.stdout.splitlines():
        seq, entry = line.split()
        assert int(seq) not in acknowledged, "a number was given out twice"
        acknowledged[int(seq)] = bytes.fromhex(entry)
    return acknowledged, result.stderr.splitlines()


def check(shim: Path, folder: Path, calls: str, sync: str) -> list[str]:
    """Nothing that was acknowledged is lost, nor at another number; return the faults."""
    acknowledged, faults = run(shim, folder, calls, sync)
    with open_again(folder, faults) as logs:
        stored = {change.seq: change.entry for change in logs.create_read_stream()}
        assert stored.items() >= acknowledged.items(), faults
        assert sorted(stored) == [*range(1, logs.head.get("us", 0) + 1)], faults
        assert logs.append(b"on").seq == len(stored) + 1
    shutil.rmtree(folder)
    return faults


def open_again(folder: Path, faults: list[str]) -> Scuttleup:
    """The logs that a program has left, after a repair if LevelDB itself needs it.

    When the disk refuses half an edit of the MANIFEST in the middle of a compaction, LevelDB tries
    again behind that half (`DoCompactionWork`), and can read the MANIFEST no more. It has deleted
    no file since, so its own repair finds everything.
    """
    try:
        return scuttleup.open(folder)
    except DamagedDatabase:
        assert any(" write " in fault and "MANIFEST" in fault for fault in faults), faults
        binding.repair_db(str(folder))
        return scuttleup.open(folder)


def kinds(faults: list[str]) -> set[str]:
    return {line.split()[1] for line in faults}


def some(count: int) -> Iterator[int]:
    """Calls by their numbers, closer together at the beginning, where a database is made."""
    number, step = 1, 1
    for _ in range(count):
        yield number
        number += step
        step += number % 3 == 0


RUNS = int(os.environ.get("FAULTS", "16"))


@pytest.mark.parametrize("sync", ["sync", "no sync"])
@pytest.mark.parametrize("two", [False, True], ids=["one", "two in a row"])
def test_after_faults_nothing_that_was_acknowledged_is_lost(
    shim: Path, tmp_path: Path, sync: str, two: bool
) -> None:
    seen = [
        check(shim, tmp_path / "logs.db", f"{at},{at + at % 9}" if two else f"{at}", sync)
        for at in some(RUNS)
    ]
    assert kinds([*chain(*seen)]) >= {"open", "write"}


@pytest.mark.parametrize("sync", ["sync", "no sync"])
def test_after_faults_at_random_nothing_that_was_acknowledged_is_lost(
    shim: Path, tmp_path: Path, sync: str
) -> None:
    seen = [
        check(shim, tmp_path / "logs.db", f"{chance}/{seed}", sync)
        for seed, chance in enumerate([0.01, 0.03, 0.1] * max(RUNS // 4, 1))
    ]
    assert kinds([*chain(*seen)]) >= {"open", "write", "unlink"}
