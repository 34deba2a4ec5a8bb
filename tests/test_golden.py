"""A database that was once written, `golden.db`, opens and reads the same for ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
from readme import ROOT

import scuttleup
from scuttleup import EntryNotFound

US = "ed25519.A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"
OTHER = "ed25519.ebVWLo_mVPlAeLES6KmLp5AfhTrmlb7X4OORC60ElmQ"
# The numbers at which a key gets wider, from one byte to five.
WIDE = [1, 2, 251, 506, 507, 65_786, 65_787, 16_777_466, 16_777_467, 2**32 - 1]
CHANGES = [
    (US, 1, "hello world"),
    (US, 2, ""),
    (US, 3, '{"a":1}'),
    (US, 4, "in the journal"),
    (OTHER, 1, "one"),
    (OTHER, 2, "two"),
    ("unsigned", 1, "grüße 😀"),
    *(("wide ü", seq, f"entry {seq}") for seq in WIDE),
]
# Four of these were the newest of their logs, or the only one.
DELETED = [(US, 5), (OTHER, 3), ("unsigned", 2), ("gone", 7), ("wide ü", 250)]
HEAD = {US: 5, OTHER: 3, "unsigned": 2, "wide ü": 2**32 - 1, "gone": 7}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A copy of the database, because to open one changes its files."""
    return copytree(ROOT / "tests" / "golden.db", tmp_path / "golden.db")


def test_a_database_of_old_opens_and_reads_the_same(path: Path) -> None:
    for _ in range(2):
        with scuttleup.open(path, value_encoding="utf-8") as logs:
            assert (logs.id, logs.head) == (US, HEAD)
            assert list(logs.create_read_stream()) == sorted(CHANGES, key=lambda each: each[0])
            for peer, seq, entry in CHANGES:
                assert logs.entry(peer, seq) == entry
            for peer, seq in DELETED:
                with pytest.raises(EntryNotFound):
                    logs.entry(peer, seq)


def test_a_database_of_old_goes_on(path: Path, command: Callable[[list[str]], int]) -> None:
    """What is signed follows the deleted entry, of which only the hash is there."""
    with scuttleup.open(path) as logs:
        assert logs.append("goes on").seq == 6
    assert command(["--db", str(path), "check"]) == 0
