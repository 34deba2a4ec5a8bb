"""Signed logs in a database: who may append, what is taken from others, what is found by a check.

`test_signing.py` has the format and the single run; here a log is stored, deleted from, and comes
in from others piece by piece.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scuttleup
from scuttleup import Change, DamagedDatabase, Scuttleup, ScuttleupError
from scuttleup.changes import Run
from scuttleup.check import check_logs, stray_keys
from scuttleup.keys import log_prefix, pack_seq
from scuttleup.signing import FIRST_LINK, Signer, link_after

KEY = bytes(range(32))
ID = "ed25519.A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"
ODD = ID[:-1] + "h"  # other bits behind the key: another spelling of the same bytes


def stored(logs: Scuttleup) -> list[tuple[int, bytes]]:
    """The numbers and bytes of the one signed log that lies in the database."""
    store = logs._store
    [peer] = [peer for peer in logs.head if peer.startswith("ed25519.")]
    numbers = [seq for found, seq, _ in logs.create_read_stream() if found == peer]
    return [(seq, store.get(peer, seq)) for seq in numbers]


def receive(logs: Scuttleup, runs: list[Run], refused: dict[str, str]) -> int:
    """Take `runs` as replication does."""
    return logs._store.write_proven(*logs._store.prove(runs, refused), refused)


def sealed(entries: list[bytes], first: int = 1, link: bytes = FIRST_LINK) -> list[bytes]:
    return Signer(KEY).seal(first, entries, link)[0]


def changes(first: int, entries: list[bytes]) -> list[Change]:
    return [Change(ID, seq, entry) for seq, entry in enumerate(entries, first)]


@pytest.fixture
def honest() -> list[bytes]:
    return sealed([b"entry %d" % seq for seq in range(1, 11)])


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Scuttleup]:
    with scuttleup.open(tmp_path / "logs.db") as logs:
        yield logs


# --- The key and the id ---


def test_a_signed_log_needs_to_be_asked_for_once(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "a", signed=True, value_encoding="utf-8") as logs:
        id = logs.id
        assert id.startswith("ed25519.")
        assert logs.append("hello") == (id, 1, "hello")
        assert logs.extend(["brave", "world"])[1] == (id, 3, "world")
    for options in {}, {"signed": True}:
        with scuttleup.open(tmp_path / "a", value_encoding="utf-8", **options) as logs:
            assert logs.id == id
            logs.append("again")
            assert logs.entry(id, 1) == "hello"
    with scuttleup.open(tmp_path / "a", value_encoding="utf-8") as logs:
        assert [entry for _, _, entry in logs.create_read_stream()] == [
            *("hello", "brave", "world", "again", "again")
        ]
        assert all(len(entry) > 96 for _, entry in stored(logs))
        [log] = check_logs(logs)
        assert log == (id, 5, 5, 5, "")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes: its folders' rights count")
def test_the_key_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        scuttleup.open(tmp_path / "a", signed=True).close()
    finally:
        os.umask(before)
    key = tmp_path / "a" / "signing.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(key.read_bytes()) == 32


def test_a_copy_with_the_key_signs_and_one_without_reads_and_relays(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "a", signed=True) as logs:
        logs.append(b"hello")
        id = logs.id
    shutil.copytree(tmp_path / "a", tmp_path / "with")
    shutil.copytree(tmp_path / "a", tmp_path / "without")
    (tmp_path / "without" / "signing.key").unlink()
    with scuttleup.open(tmp_path / "with") as logs:
        assert logs.append(b"more").seq == 2
        relayed = stored(logs)
    with scuttleup.open(tmp_path / "without") as logs:
        assert logs.entry(id, 1) == b"hello"
        with pytest.raises(ScuttleupError, match=r"secret key .* is not here"):
            logs.append(b"more")
        assert logs.write([(id, seq, entry) for seq, entry in relayed]) == 1


def test_a_first_run_killed_after_the_key_was_written_is_a_signed_log(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "signing.key").write_bytes(KEY)
    with scuttleup.open(tmp_path / "a") as logs:
        assert logs.id == ID


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_damaged_key_is_damage_and_without_it_the_log_can_be_read(
    tmp_path: Path, size: int
) -> None:
    with scuttleup.open(tmp_path / "a", signed=True) as logs:
        logs.append(b"hello")
    (tmp_path / "a" / "signing.key").write_bytes(bytes(size))
    with pytest.raises(DamagedDatabase, match=f"signing.key has {size} bytes, not 32"):
        scuttleup.open(tmp_path / "a")
    (tmp_path / "a" / "signing.key").unlink()
    with scuttleup.open(tmp_path / "a") as logs:
        assert logs.entry(logs.id, 1) == b"hello"


def test_a_key_of_ones_own(tmp_path: Path, db: Any) -> None:
    logs = Scuttleup(db.prefixed_db(b"logs"), key=KEY)
    assert logs.id == ID
    logs.append(b"hello world")
    assert Scuttleup(db.prefixed_db(b"logs"), key=KEY).append(b"").seq == 2
    with pytest.raises(ScuttleupError, match="the key here is that of"):
        Scuttleup(db.prefixed_db(b"logs"), key=bytes(32)).append(b"x")
    with pytest.raises(ValueError, match="a key has 32 bytes, not 5"):
        Scuttleup(db.prefixed_db(b"other"), key=b"short")


def test_a_key_from_elsewhere_is_the_only_one(tmp_path: Path) -> None:
    scuttleup.open(tmp_path / "a", signed=True, key=KEY).close()
    assert not (tmp_path / "a" / "signing.key").exists()
    with scuttleup.open(tmp_path / "a", key=KEY) as logs:
        assert (logs.id, logs.append(b"x").seq) == (ID, 1)


def open_unsigned(path: Path) -> None:
    scuttleup.open(path).close()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"signed": True}, "was not begun as a signed one"),
        ({"key": KEY}, "is not signed, so there can be no key"),
        ({"only_signed": True}, "is not signed, so there can be no only_signed"),
        ({"id": ID}, "needs the secret key"),
        ({"id": ODD}, "public key"),
        ({"id": "us", "key": KEY}, "the id that belongs to the key"),
    ],
)
def test_what_does_not_go_with_an_unsigned_log_is_named(
    tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    open_unsigned(tmp_path / "a")
    with pytest.raises(ValueError, match=named):
        scuttleup.open(tmp_path / "a", **options)
    assert not (tmp_path / "a" / "signing.key").exists()
    open_unsigned(tmp_path / "a")


def test_without_pynacl_signed_logs_are_read_and_no_more(
    tmp_path: Path, honest: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with scuttleup.open(tmp_path / "a", signed=True) as logs:
        logs.append(b"hello")
    monkeypatch.setitem(sys.modules, "nacl.bindings", None)
    with pytest.raises(ScuttleupError, match=r"pip install 'scuttleup\[signed\]'"):
        scuttleup.open(tmp_path / "b", signed=True)
    with scuttleup.open(tmp_path / "a") as logs:
        assert logs.entry(logs.id, 1) == b"hello"
        with pytest.raises(ScuttleupError, match=r"pip install 'scuttleup\[signed\]'"):
            logs.append(b"more")
        with pytest.raises(ValueError, match="PyNaCl"):
            logs.write(changes(1, honest))
        refused: dict[str, str] = {}
        receive(logs, [Run(ID, 1, honest), Run("other", 1, [b"x"])], refused)
        assert logs.head == {logs.id: 1, "other": 1}
        assert refused == {ID: "cannot be checked without PyNaCl"}


# --- Appending ---


@pytest.mark.parametrize("deleted", [[3], [3, 2, 1], [2]])
def test_appending_goes_on_after_a_deletion(tmp_path: Path, deleted: list[int]) -> None:
    with scuttleup.open(tmp_path / "a", signed=True) as logs:
        whole = [logs.append(b"entry %d" % seq) for seq in (1, 2, 3)]
        entries = stored(logs)
        for seq in deleted:
            logs.delete(logs.id, seq)
    with scuttleup.open(tmp_path / "a") as logs, scuttleup.open(tmp_path / "b") as other:
        whole.append(logs.append(b"entry 4"))
        entries.append((4, logs._store.get(logs.id, 4)))
        assert other.write([(logs.id, *entry) for entry in entries]) == 4
        assert list(other.create_read_stream()) == whole
        assert not any(log.fault for log in check_logs(logs))


def test_what_another_program_appended_is_noticed_before_it_is_built_on(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "a", signed=True) as logs:
        logs.append(b"hello")
        logs._store.database.db.put(log_prefix(logs.id) + pack_seq(2), b"not signed")
    with scuttleup.open(tmp_path / "a") as logs:
        with pytest.raises(ScuttleupError, match=r"entry 2 .* is not signed"):
            logs.append(b"more")
        assert logs.head == {logs.id: 2}
        [log] = check_logs(logs)
        assert (log.entries, log.proven) == (2, 1)
        assert log.fault == "2 is not signed by its author"


def test_a_restored_backup_gets_its_tail_back_and_goes_on(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "a", signed=True) as logs:
        logs.append(b"1")
        logs.close()
        shutil.copytree(tmp_path / "a", tmp_path / "backup")
    with scuttleup.open(tmp_path / "a") as logs:
        logs.extend([b"2", b"3"])
        tail = [(logs.id, *entry) for entry in stored(logs)]
    with scuttleup.open(tmp_path / "backup") as logs:
        assert logs.write(tail[2:]) == 1, "a gap is allowed, as strangers cannot sign"
        assert logs.append(b"4").seq == 4
        assert not any(log.fault for log in check_logs(logs))


def test_an_append_that_failed_leaves_no_link_for_an_entry_that_comes_back(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "a", signed=True, max_entry=1000) as logs:
        logs.append(b"1")
        logs.close()
        shutil.copytree(tmp_path / "a", tmp_path / "backup")
    with scuttleup.open(tmp_path / "a") as logs:
        logs.append(b"2")
        two = (logs.id, *stored(logs)[1])
    with scuttleup.open(tmp_path / "backup", max_entry=1000) as logs:
        with pytest.raises(ValueError, match="too large"):
            logs.append(bytes(1000))  # as number 2
        logs.write([two])
        logs.append(b"3")
        assert [log.fault for log in check_logs(logs)] == [""]


# --- What comes in ---


@pytest.mark.parametrize("first", [1, 5])
def test_the_entries_of_another_are_stored_as_they_came_and_read_without_their_trailer(
    logs: Scuttleup, honest: list[bytes], first: int
) -> None:
    assert logs.write(changes(first, honest[first - 1 :])) == 11 - first
    assert stored(logs) == list(enumerate(honest, 1))[first - 1 :]
    assert logs.entry(ID, 7) == b"entry 7"


Damage = Callable[[list[bytes]], list[bytes]]
DAMAGE: dict[str, Damage] = {
    "a bit": lambda entries: [*entries[:4], bytes([entries[4][0] ^ 1]) + entries[4][1:]],
    "no trailer": lambda entries: [*entries[:4], b"short"],
    "of another branch": lambda entries: [*entries[:4], *sealed([b"x"], 5, link_after(entries[0]))],
    "left out": lambda entries: [*entries[:4], *entries[5:]],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_write_refuses_all_and_replication_keeps_what_came_before(
    logs: Scuttleup, honest: list[bytes], damage: str
) -> None:
    damaged = DAMAGE[damage](honest)
    fault = "fork at 5" if damage == "of another branch" else "5 is not signed by its author"
    with pytest.raises(ValueError, match=fault):
        logs.write([("before", 1, b"x"), *changes(1, damaged)])
    assert logs.head == {}
    refused: dict[str, str] = {}
    runs = [Run(ID, 1, damaged), Run("after", 1, [b"x"]), Run(ID, 5, honest[4:])]
    assert receive(logs, runs, refused) == 5
    assert logs.head == {ID: 4, "after": 1}
    assert refused == {ID: fault}


def test_what_was_stored_since_it_was_checked_is_compared_once_more(
    logs: Scuttleup, honest: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two connections bring two branches, and both are checked before either is stored."""
    branch = honest[:2] + sealed([b"x", b"y"], 3, link_after(honest[1]))
    prove = logs._store._authors.prove

    def prove_and_be_overtaken(*arguments: Any) -> Any:
        result = prove(*arguments)
        monkeypatch.undo()
        logs.write(changes(1, branch))
        return result

    monkeypatch.setattr(logs._store._authors, "prove", prove_and_be_overtaken)
    refused: dict[str, str] = {}
    assert receive(logs, [Run(ID, 1, honest)], refused) == 0
    assert refused == {ID: "fork at 5"}
    assert [entry for _, entry in stored(logs)] == branch


def test_only_signed_leaves_out_what_is_not(tmp_path: Path, honest: list[bytes]) -> None:
    with scuttleup.open(tmp_path / "a", signed=True, only_signed=True) as logs:
        refused: dict[str, str] = {}
        runs = [Run("unsigned", 1, [b"x"]), Run(ODD, 1, honest), Run(ID, 1, honest)]
        assert receive(logs, runs, refused) == 10
        assert logs.head == {ID: 10}
        assert refused == {"unsigned": "is not signed", ODD: "begins like a public key and is none"}


# Two branches of one log, which part after entry 3, and what a stranger makes of their entries.
COMMON = sealed([b"1", b"2", b"3"])
LINK = link_after(COMMON[-1])
BRANCHES = [
    COMMON + sealed([b"%s%d" % (name, seq) for seq in range(4, 9)], 4, LINK)
    for name in (b"a", b"b")
]
Piece = tuple[int, int, int, int | None]  # branch, first place, end place, the place of a bad entry
PIECES = st.tuples(
    st.integers(0, 1), st.integers(0, 7), st.integers(1, 8), st.none() | st.integers(0, 7)
)
ACTIONS = st.lists(PIECES | st.sampled_from(["delete", "restart"]), max_size=12)


def spoil(entry: bytes) -> bytes:
    return bytes([entry[0] ^ 1]) + entry[1:]


@given(ACTIONS)
@settings(max_examples=150, deadline=None)
def test_whatever_comes_the_longest_honest_prefix_is_taken(actions: list[Any]) -> None:
    """The model knows who wrote what, and so needs no signatures."""
    model: dict[int, bytes] = {}
    head, newest = 0, b""  # the entry with the number `head`, also after it was deleted
    with TemporaryDirectory() as folder:
        logs = scuttleup.open(folder)
        for action in actions:
            if action == "restart":
                logs.close()
                logs = scuttleup.open(folder)
                continue
            if action == "delete":
                if head:
                    logs.delete(ID, head)
                    model.pop(head, None)
                continue
            branch, start, end, bad = action
            entries = BRANCHES[branch][start:end]
            if bad is not None and start <= bad < end:
                entries[bad - start] = spoil(entries[bad - start])
            receive(logs, [Run(ID, start + 1, entries)], {})
            for seq, entry in enumerate(entries, start + 1):
                if seq <= head:
                    continue
                follows = seq > head + 1 or seq == 1 or newest == BRANCHES[branch][seq - 2]
                if not follows or seq - 1 == bad:
                    break
                model[seq], head, newest = entry, seq, entry
            assert logs.head == ({ID: head} if head else {})
        assert [(seq, logs._store.get(ID, seq)) for _, seq, _ in logs.create_read_stream()] == (
            sorted(model.items())
        )
        logs.close()


# --- The check of a whole database ---


def test_a_check_tells_gaps_strays_and_entries_of_nobody(
    logs: Scuttleup, honest: list[bytes]
) -> None:
    logs.write([*changes(3, honest[2:]), ("plain", 1, b"x"), ("plain", 4, b"y")])
    logs.delete(ID, 8)
    database = logs._store.database
    assert list(check_logs(logs)) == [(ID, 10, 7, 7, ""), ("plain", 4, 2, None, "")]
    assert list(stray_keys(logs)) == []

    stray = "c\xffus\xffzz".encode(), "c\xff\xff01".encode(), "c\xffx\u0100\xff01".encode()
    for key in stray:
        database.db.put(key, b"")
    database.db.put(log_prefix(ODD) + pack_seq(1), b"")
    database.db.put(log_prefix(ID) + pack_seq(9), honest[9])
    logs = Scuttleup(database.db)
    assert set(stray_keys(logs)) == set(stray)
    faults = {log.peer: (log.proven, log.fault) for log in check_logs(logs)}
    assert faults == {
        ID: (5, "9 is not signed by its author"),
        ODD: (None, "the id begins like a public key and is none"),
        "plain": (None, ""),
    }
