"""Signed logs in a database: who may append, what is taken from others, what is found by a check.

`test_signing.py` has the format and the single run; here a log is stored, deleted from, and comes
in from others piece by piece, honest or not.
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
from leveldb import FakeDB, open_leveldb
from wire import encode_handshake

import scuttleup
from scuttleup import Change, DamagedDatabase, Scuttleup, ScuttleupError
from scuttleup.changes import Run
from scuttleup.command.check import check_logs, stray_keys
from scuttleup.keys import DELETED_HASHES, log_prefix, pack_seq
from scuttleup.limits import MAX_NAMED, RUN_BYTES
from scuttleup.replication import Door
from scuttleup.replication.messages import encode_changes
from scuttleup.signed.signing import FIRST_LINK, Signer, is_signed, link_after

Backup = tuple[Path, list[Change]]

KEY = bytes(range(32))
ID = "ed25519.A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"
ODD = ID[:-1] + "h"  # other bits behind the key: another spelling of the same bytes


def stored(logs: Scuttleup) -> list[Change]:
    """All entries of signed logs, as they are stored."""
    found = [(peer, seq) for peer, seq, _ in logs.create_read_stream() if is_signed(peer)]
    return [Change(peer, seq, logs._store.get(peer, seq)) for peer, seq in found]


def receive(logs: Scuttleup, *runs: Run) -> tuple[int, dict[str, str]]:
    """Take `runs` as replication does: how many entries were new, and what was refused."""
    count, _, verdicts = Door(logs._store).admit(runs)
    return count, {peer: reason for peer, _, reason in verdicts}


def sealed(entries: list[bytes], first: int = 1, link: bytes = FIRST_LINK) -> list[bytes]:
    return Signer(KEY).seal(first, entries, link)[0]


def changes(first: int, entries: list[bytes]) -> list[Change]:
    return [Change(ID, seq, entry) for seq, entry in enumerate(entries, first)]


STRANGER = Signer(bytes(32))
HONEST = sealed([b"entry %d" % seq for seq in range(1, 11)])
BRANCH = HONEST[:3] + sealed([b"branch %d" % seq for seq in range(4, 11)], 4, link_after(HONEST[2]))


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Scuttleup]:
    with scuttleup.open(tmp_path / "logs.db") as logs:
        yield logs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A signed log of our own, with one entry."""
    with scuttleup.open(tmp_path / "a", signed=True) as logs:
        logs.append(b"one")
    return tmp_path / "a"


@pytest.fixture
def backup(path: Path) -> Backup:
    """A copy of that log, and the three entries that its owner has signed since."""
    copy = path.with_name("backup")
    shutil.copytree(path, copy)
    with scuttleup.open(path) as logs:
        logs.extend([b"two", b"three", b"four"])
        return copy, stored(logs)[1:]


# --- The key and the id ---


def test_a_log_that_was_begun_as_a_signed_one_stays_one(tmp_path: Path) -> None:
    entries = []
    every: list[dict[str, Any]] = [{"signed": True}, {}, {"signed": True}]
    for options in every:
        with scuttleup.open(tmp_path / "a", value_encoding="utf-8", **options) as logs:
            entries += [logs.append("hello"), *logs.extend(["brave", "world"])]
            assert logs.entry(logs.id, 1) == "hello"
            assert list(logs.create_read_stream()) == entries
            assert list(check_logs(logs)) == [(logs.id, *[len(entries)] * 3, "")]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes: its folders' rights count")
def test_the_key_is_its_owners_alone(tmp_path: Path) -> None:
    """Also where a first run was killed that had written half of it, in a file of another mode."""
    key = tmp_path / "a" / "signing.key"
    before = os.umask(0)
    try:
        key.parent.mkdir()
        key.with_suffix(".key.new").write_bytes(b"half a key")
        scuttleup.open(key.parent, signed=True).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(key.read_bytes()) == 32


def test_a_copy_without_the_key_is_read_and_relays(backup: Backup) -> None:
    copy, later = backup
    (copy / "signing.key").unlink()
    with scuttleup.open(copy) as logs:
        assert logs.entry(logs.id, 1) == b"one"
        with pytest.raises(ScuttleupError, match=r"secret key .* is not here"):
            logs.append(b"more")
        assert logs.write(later) == 3
    with pytest.raises(ValueError, match="its secret key is not here"):
        scuttleup.open(copy, signed=True)


def test_a_first_run_killed_after_the_key_was_written_is_a_signed_log(tmp_path: Path) -> None:
    (tmp_path / "signing.key").write_bytes(KEY)
    with scuttleup.open(tmp_path) as logs:
        assert logs.id == ID


def unreadable(key: Path) -> None:
    """As for a user who may not read it, which the user of the tests may."""
    key.unlink()
    key.mkdir()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda key: key.write_bytes(b""), "is damaged, signing.key has 0 bytes and not 32"),
        (lambda key: key.write_bytes(bytes(33)), "is damaged, signing.key has 33 bytes and not 32"),
        (unreadable, "cannot be read, signing.key: "),
    ],
)
def test_a_key_that_cannot_be_used_keeps_out_only_who_appends(
    path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(path / "signing.key")
    with scuttleup.open(path) as logs:
        assert logs.entry(logs.id, 1) == b"one"
        with pytest.raises(ScuttleupError, match=f"secret key of .* {reason}"):
            logs.append(b"more")
        assert receive(logs, Run("other", 1, [b"x"])) == (1, {})
    with pytest.raises(ValueError, match=f"cannot be signed, its secret key {reason}"):
        scuttleup.open(path, signed=True)
    new = path.with_name("new") / "signing.key"
    new.parent.mkdir()
    new.touch()
    spoil(new)
    with pytest.raises(DamagedDatabase, match=f"its secret key {reason}"):
        scuttleup.open(new.parent)


def test_a_key_that_is_handed_in_is_used_and_another_one_is_refused(
    db: Any, tmp_path: Path
) -> None:
    with scuttleup.open(tmp_path / "a", signed=True, key=KEY) as opened:
        assert opened.id == ID
    assert not (tmp_path / "a" / "signing.key").exists(), "none is made"
    logs = Scuttleup(db.prefixed_db(b"logs"), key=KEY)
    assert logs.id == ID
    logs.append(b"hello world")
    assert Scuttleup(db.prefixed_db(b"logs"), key=KEY).append(b"").seq == 2
    with pytest.raises(ScuttleupError, match="the key here is that of"):
        Scuttleup(db.prefixed_db(b"logs"), key=bytes(32)).append(b"x")
    with pytest.raises(ValueError, match="a key has 32 bytes, not 5"):
        Scuttleup(db.prefixed_db(b"other"), key=b"short")


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
def test_an_option_that_does_not_fit_an_unsigned_log_is_named(
    tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    scuttleup.open(tmp_path / "a").close()
    with pytest.raises(ValueError, match=named):
        scuttleup.open(tmp_path / "a", **options)
    assert not (tmp_path / "a" / "signing.key").exists()
    scuttleup.open(tmp_path / "a").close()


def test_without_pynacl_signed_logs_are_read_and_sent_and_no_more(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nacl.bindings", None)
    with scuttleup.open(path) as logs:
        assert logs.entry(logs.id, 1) == b"one"
        for forbidden in (
            lambda: scuttleup.open(path.with_name("new"), signed=True),
            lambda: logs.append(b"more"),
            lambda: list(check_logs(logs)),
        ):
            with pytest.raises(ScuttleupError, match=r"pip install 'scuttleup\[signed\]'"):
                forbidden()
        with pytest.raises(ValueError, match="PyNaCl"):
            logs.write(changes(1, HONEST))
        left_out = {ID: "cannot be checked without PyNaCl"}
        assert receive(logs, Run(ID, 1, HONEST), Run("other", 1, [b"x"])) == (1, left_out)
        assert logs.head == {logs.id: 1, "other": 1}
        stream = logs.create_replication_stream(mode="push")
        stream.receive_data(encode_handshake("far", {"other": 1}, "sync"))
        [(peer, seq, entry)] = stored(logs)
        assert stream.data_to_send().endswith(encode_changes(peer, seq, [entry]))


# --- Appending ---


@pytest.mark.parametrize("deleted", [[3], [3, 2, 1], [2]])
def test_appending_goes_on_after_a_deletion(tmp_path: Path, deleted: list[int]) -> None:
    with scuttleup.open(tmp_path / "a", signed=True) as logs:
        logs.extend([b"one", b"two", b"three"])
        entries = stored(logs)
        for seq in deleted:
            logs.delete(logs.id, seq)
    with scuttleup.open(tmp_path / "a") as logs, scuttleup.open(tmp_path / "b") as other:
        logs.append(b"four")
        assert other.write([*entries, stored(logs)[-1]]) == 4
        assert not any(log.fault for log in check_logs(logs))


def test_what_another_program_appended_is_noticed_before_more_is_signed(path: Path) -> None:
    """It appends as a program on Node would."""
    with scuttleup.open(path) as logs:
        logs._store.database.db.put(log_prefix(logs.id) + pack_seq(2), b"not signed")
    with scuttleup.open(path) as logs:
        with pytest.raises(ScuttleupError, match=r"entry 2 of our own log .* is not signed: ano"):
            logs.append(b"more")
        assert logs.head == {logs.id: 2}
        assert list(check_logs(logs)) == [(logs.id, 2, 2, 1, "2 is not signed by its author")]


def test_nothing_is_signed_after_an_entry_that_is_not_known(path: Path) -> None:
    with scuttleup.open(path) as logs:
        logs.delete(logs.id, 1)
        logs._store.database.db.delete(DELETED_HASHES + logs.id.encode())
        with pytest.raises(ScuttleupError, match=r"entry 1 of our own log .* is missing"):
            logs.append(b"more")


def test_a_restored_backup_gets_its_tail_back_and_goes_on(backup: Backup) -> None:
    copy, later = backup
    with scuttleup.open(copy) as logs:
        assert logs.write(later[2:]) == 1, "a gap is allowed, as strangers cannot sign"
        assert logs.append(b"five").seq == 5
        assert not any(log.fault for log in check_logs(logs))


def test_an_append_that_failed_leaves_no_link_for_what_comes_instead(backup: Backup) -> None:
    """That may be an entry of ours which comes back, or the next one that we append."""
    copy, later = backup
    with scuttleup.open(copy, max_entry=1000) as logs:
        for comes_back in later[:1], []:
            with pytest.raises(ValueError, match="too large"):
                logs.append(bytes(1000))
            logs.write(comes_back)
            logs.append(b"more")
        assert not any(log.fault for log in check_logs(logs))


# --- What comes in ---


@pytest.mark.parametrize(
    ("damaged", "fault"),
    [
        ([*HONEST[:4], b"forged" + HONEST[4][-96:], *HONEST[5:]], "5 is not signed by its author"),
        ([*HONEST[:4], *BRANCH[4:]], "fork at 5"),
    ],
)
def test_write_refuses_all_and_replication_keeps_what_came_before(
    logs: Scuttleup, damaged: list[bytes], fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        logs.write([("before", 1, b"x"), *changes(1, damaged)])
    assert logs.head == {}
    runs = Run(ID, 1, damaged), Run("after", 1, [b"x"]), Run(ID, 5, HONEST[4:])
    assert receive(logs, *runs) == (5, {ID: fault})
    assert logs.head == {ID: 4, "after": 1}
    assert logs.entry(ID, 4) == b"entry 4"


@pytest.mark.parametrize(("first", "fault"), [(BRANCH, "fork at 5"), (HONEST, None)])
def test_what_was_stored_since_it_was_checked_is_compared_once_more(
    logs: Scuttleup, first: list[bytes], fault: str | None
) -> None:
    """Two connections bring entries, and `verify` is asked about both before either are stored."""

    def verify(change: Change) -> bool:
        if change.seq == 10:
            logs.write(changes(1, first[:4]))
        return True

    count, _, verdicts = Door(logs._store, verify).admit([Run(ID, 1, HONEST)])
    assert (count, verdicts) == ((0, [(ID, 5, fault)]) if fault else (6, []))
    assert stored(logs) == changes(1, first[:4] if fault else HONEST)


def test_verify_is_asked_about_entries_without_their_signatures(db: Any) -> None:
    seen: list[Change] = []

    def verify(change: Change) -> bool:
        seen.append(change)
        return True

    logs = Scuttleup(db, verify=verify)
    stream = logs.create_replication_stream()
    stream.receive_data(encode_handshake("far", {}, "sync") + encode_changes(ID, 1, HONEST))
    assert seen == list(logs.create_read_stream()) != stored(logs)


def test_only_signed_leaves_out_what_is_not(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "a", signed=True, only_signed=True) as logs:
        left_out = {"unsigned": "is not signed", ODD: "begins like a public key and is none"}
        runs = Run("unsigned", 1, [b"x"]), Run(ODD, 1, HONEST), Run(ID, 1, HONEST)
        assert receive(logs, *runs) == (10, left_out)
        assert logs.head == {ID: 10}


# What is done to entries, so that their author has not signed them for their numbers.
SPOIL: dict[str, Callable[[bytes], bytes]] = {
    "flip": lambda entry: bytes([entry[0] ^ 1]) + entry[1:],
    "cut": lambda entry: entry[1:],
    "forge": lambda entry: b"forged" + entry[-96:],
    "usurp": lambda entry: STRANGER.seal(1, [b"stolen"], entry[-96:-64])[0][0],
    "replace": lambda entry: HONEST[9],
}
NUMBERS, LOGS = st.integers(1, 8), st.sampled_from([HONEST, BRANCH])
# The branch, the first and the last number of what comes of it, where that is cut into two runs,
# from which number on it is spoilt, and how. If that number is 9, nothing is spoilt.
SPOILT = st.just(9) | NUMBERS
PIECES = st.tuples(LOGS, NUMBERS, NUMBERS, NUMBERS, SPOILT, st.sampled_from([*SPOIL]))


@given(st.lists(PIECES | st.sampled_from(["delete", "restart"]), max_size=12))
@settings(max_examples=150)
def test_whatever_comes_the_longest_honest_prefix_is_taken(actions: list[Any]) -> None:
    """The model knows who wrote what, and so needs no signatures."""
    model: dict[int, bytes] = {}
    head, newest = 0, b""  # the entry with the number `head`, also after it was deleted
    with TemporaryDirectory() as folder, open_leveldb(Path(folder)) as db:
        logs = Scuttleup(db)
        for action in actions:
            match action:
                case "restart":
                    logs = Scuttleup(db)
                case "delete" if head:
                    logs.delete(ID, head)
                    model.pop(head, None)
                case branch, first, last, cut, bad, how:
                    entries = branch[first - 1 : last]
                    good = max(bad - first, 0)
                    came = [*entries[:good], *map(SPOIL[how], entries[good:])]
                    runs = Run(ID, first, came[:cut]), Run(ID, first + cut, came[cut:])
                    new, faults = 0, {}
                    for seq, entry in enumerate(entries, first):
                        if seq <= head:
                            continue
                        if seq >= bad:
                            faults[ID] = f"{seq} is not signed by its author"
                            break
                        if seq == head + 1 > 1 and newest != branch[seq - 2]:
                            faults[ID] = f"fork at {seq}"
                            break
                        model[seq], head, newest, new = entry, seq, entry, new + 1
                    assert receive(logs, *(run for run in runs if run.entries)) == (new, faults)
            assert logs.head == ({ID: head} if head else {})
        assert stored(logs) == [Change(ID, *entry) for entry in sorted(model.items())]


# --- The check of a whole database ---


def test_a_check_finds_a_fork_between_two_reads(db: Any) -> None:
    one, other = (sealed([start + bytes(RUN_BYTES), b"two"]) for start in (b"one", b"other"))
    Scuttleup(db).write(changes(1, [one[0]]))
    db.put(log_prefix(ID) + pack_seq(2), other[1])
    assert list(check_logs(Scuttleup(db))) == [(ID, 2, 2, 1, "fork at 2")]


def test_a_check_tells_what_cannot_be_read(db: Any) -> None:
    Scuttleup(db).write([*changes(1, HONEST), ("plain", 1, b"x")])
    damaged = FakeDB(db)
    logs = Scuttleup(damaged)
    damaged.steps = 5
    first, second = check_logs(logs)
    assert (first.peer, first.proven, second.peer, second.entries) == (ID, 5, "plain", 0)
    assert "is damaged" in first.fault
    assert "is damaged" in second.fault


def test_a_check_tells_gaps_stray_keys_and_what_no_author_has_signed(
    logs: Scuttleup, tmp_path: Path, command: Any, capsys: Any
) -> None:
    logs.write([*changes(3, HONEST[2:]), ("plain", 1, b"x"), ("plain", 4, b"y")])
    logs.delete(ID, 8)
    assert list(check_logs(logs)) == [(ID, 10, 7, 7, ""), ("plain", 4, 2, None, "")]
    assert list(stray_keys(logs)) == []

    stray = "c\xffus\xffzz".encode(), "c\xffx\u0100\xff01".encode(), "c\xff\xff01".encode()
    foreign = {log_prefix(ODD) + pack_seq(1): b"", log_prefix(ID) + pack_seq(9): HONEST[9]}
    for key, entry in {**foreign, **dict.fromkeys(stray, b"")}.items():
        logs._store.database.db.put(key, entry)
    logs.close()
    database = str(tmp_path / "logs.db")
    assert command(["--db", database, "check"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"'{ID}': 7 entries up to number 10, 3 missing, 5 signed by the author: "
        "9 is not signed by its author",
        f"'{ODD}': 1 entries up to number 1: the id begins like a public key and is none",
        "'plain': 2 entries up to number 4, 2 missing",
        *(f"{key!r}: the key of no entry" for key in stray),
    ]
    assert err == f"scuttleup: {database}: 5 faults\n"


def test_a_check_names_some_stray_keys_and_counts_all(
    db: Any, tmp_path: Path, command: Any, capsys: Any
) -> None:
    Scuttleup(db)
    for number in range(MAX_NAMED + 5):
        db.put(b"c\xc3\xbfus\xc3\xbfstray %d" % number, b"")
    db.close()
    assert command(["--db", str(tmp_path / "logs.db"), "check"]) == 1
    out, err = capsys.readouterr()
    assert (len(out.splitlines()), "25 faults" in err) == (MAX_NAMED, True)
