"""What comes after the first week: backups, forks, new ids, exports, bookmarks that are ahead."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from wire import encode_handshake

import scuttleup
from scuttleup import Change, DatabaseError, Fork, ForkedLog, Scuttleup, ScuttleupError
from scuttleup.command.check import check_logs
from scuttleup.keys import DELETED_HASHES, log_prefix, pack_seq
from scuttleup.replication.messages import encode_changes


def raw(logs: Scuttleup) -> list[Change]:
    return list(logs.create_read_stream(raw=True))


# --- Backups --------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
def test_a_backup_is_the_whole_database_and_knows_that_it_is_one(
    tmp_path: Path, signed: bool
) -> None:
    with scuttleup.open(tmp_path / "logs.db", signed=signed) as logs:
        logs.extend([os.urandom(1000) for _ in range(3000)])
        logs.write([("them", 1, b"x"), ("them", 3, b"y")])
        logs.delete(logs.id, 3000)
        logs.backup(tmp_path / "backup.db")
        mine, head = raw(logs), logs.head
        later = [logs.append(b"later") and None, *raw(logs)[3000:]]
    with scuttleup.open(tmp_path / "backup.db") as backup:
        assert (backup.id, backup.head, raw(backup)) == (logs.id, head, mine)
        for append in (lambda: backup.append(b"z"), lambda: backup.extend([b"z"])):
            with pytest.raises(ScuttleupError, match=r"is a backup of \d{4}-\d\d-\d\d: replicate"):
                append()
        assert backup.write(change for change in later if change) == 0
        backup.resume()
        assert backup.append(b"z").seq == 3001
    with scuttleup.open(tmp_path / "backup.db") as backup:
        assert backup.append(b"z").seq == 3002
    assert sorted(os.listdir(tmp_path)) == ["backup.db", "logs.db"]


def test_a_backup_is_of_one_moment_while_others_write(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "logs.db", id="us") as logs:
        logs.extend([bytes(1000)] * 5000)
        ending = threading.Event()

        def write() -> None:
            while not ending.is_set():
                logs.extend([b"x"] * 2)
                logs.write([("them", logs.head.get("them", 0) + 1, b"y")])

        thread = threading.Thread(target=write)
        thread.start()
        logs.backup(tmp_path / "backup.db")
        ending.set()
        thread.join()
        with scuttleup.open(tmp_path / "backup.db") as backup:
            head = backup.head
            assert len(raw(backup)) == sum(head.values())
            assert head["us"] % 2 == 0
            assert logs.head["us"] >= head["us"] >= 5000


def test_a_backup_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scuttleup.open(tmp_path / "logs.db") as logs:
        logs.append(b"x")
        (tmp_path / "there").mkdir()
        (tmp_path / "backup.db.new").mkdir()
        with pytest.raises(DatabaseError, match="is there already"):
            logs.backup(tmp_path / "there")
        with pytest.raises(DatabaseError, match="No such file"):
            logs.backup(tmp_path / "no" / "such")
        monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(DatabaseError, match="full"):
            logs.backup(tmp_path / "backup.db")
    assert sorted(os.listdir(tmp_path)) == ["backup.db.new", "logs.db", "there"]


def test_a_signed_backup_has_its_key_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "backup.db"
    rename, seen = os.rename, list[list[str]]()

    def look_and_rename(old: str, new: str) -> None:
        seen.append(os.listdir(old))
        rename(old, new)

    with scuttleup.open(tmp_path / "logs.db", signed=True) as logs:
        logs.append(b"x")
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", look_and_rename)
            logs.backup(path)
    assert [("signing.key" in names) for names in seen] == [True]
    with scuttleup.open(path, signed=True) as backup:
        assert backup.id == logs.id


def test_a_part_of_a_leveldb_is_backed_up_alone(db: Any, tmp_path: Path) -> None:
    db.put(b"another part", b"x")
    logs = Scuttleup(db.prefixed_db(b"logs/"), id="us")
    logs.append(b"x")
    logs.backup(tmp_path / "backup.db")
    with scuttleup.open(tmp_path / "backup.db") as backup:
        assert raw(backup) == [("us", 1, b"x")]
        assert dict(backup._store.database.db).keys().isdisjoint({b"another part"})


# --- Forks and new ids ----------------------------------------------------------------------------


def test_an_owner_learns_that_his_log_has_forked_and_begins_a_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with scuttleup.open(tmp_path / "logs.db", signed=True) as logs:
        logs.append(b"before")
        logs.backup(tmp_path / "backup.db")
        logs.extend([b"here"] * 3)
        elsewhere = raw(logs)
    with scuttleup.open(tmp_path / "backup.db") as backup:
        backup.resume()
        backup.append(b"there")
        assert backup.fork is None
        assert [log.fault for log in check_logs(backup)] == [""]
        with pytest.raises(ValueError, match="fork at 3"):
            backup.write(elsewhere)
        assert backup.fork == Fork(3, "by write")
        assert [log.fault for log in check_logs(backup)] == [
            "has forked at 3, as was seen by write"
        ]
    with scuttleup.open(tmp_path / "backup.db") as backup:
        assert backup.fork == (3, "by write")
        for append in (lambda: backup.append(b"z"), lambda: backup.extend([b"z"])):
            with pytest.raises(ForkedLog, match="has forked at 3, as was seen by write"):
                append()
        assert [text for text in caplog.messages if "your own log" in text]
        old = backup.id
        new = backup.new_id(signed=True)
        assert backup.append(b"on").peer == new != old
        assert backup.fork is None
        assert backup.head == {old: 2, new: 1}
    assert (tmp_path / "backup.db" / "signing.key.old1").stat().st_size == 32
    with scuttleup.open(tmp_path / "backup.db") as backup:
        assert (backup.id, backup.append(b"and on").seq) == (new, 2)


def test_a_fork_is_learnt_from_a_remote_that_has_more(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "logs.db", signed=True) as logs:
        logs.append(b"before")
        logs.backup(tmp_path / "backup.db")
        logs.extend([b"here"] * 3)
        entries = raw(logs)
    with (
        scuttleup.open(tmp_path / "friend.db") as friend,
        scuttleup.open(tmp_path / "backup.db") as backup,
    ):
        friend.write(entries)
        backup.resume()
        backup.append(b"there")
        ours, theirs = (each.create_replication_stream() for each in (backup, friend))
        ours.receive_data(theirs.data_to_send())
        theirs.receive_data(ours.data_to_send())
        ours.receive_data(theirs.data_to_send())
        assert backup.fork == (3, "in a remote's entries")


def test_a_fork_that_check_finds_is_noted(tmp_path: Path, db: Any) -> None:
    key = bytes(range(32))
    here, there = (Scuttleup(db.prefixed_db(name), key=key) for name in (b"here", b"there"))
    here.extend([b"one", b"two"])
    there.extend([b"one", b"another two", b"three"])
    third = raw(there)[2].entry
    db.put(b"here" + log_prefix(here.id) + pack_seq(3), third)
    here = Scuttleup(db.prefixed_db(b"here"), key=key)
    assert [log.fault for log in check_logs(here)] == ["fork at 3"]
    assert here.fork == (3, "by check")


@pytest.mark.parametrize(
    ("entries", "seq"), [([("us", 2, b"there"), ("us", 3, b"there")], 2), ([("us", 4, b"far")], 4)]
)
def test_what_can_be_known_of_a_fork_of_an_unsigned_log_is_told(
    db: Any, caplog: pytest.LogCaptureFixture, entries: list[tuple[str, int, bytes]], seq: int
) -> None:
    """Appending goes on, because a stranger may have made these entries."""
    logs = Scuttleup(db, id="us")
    logs.extend([b"before", b"here"])
    stream = logs.create_replication_stream()
    stream.receive_data(encode_handshake("far", {"us": 4}, "sync"))
    for each in entries:
        stream.receive_data(encode_changes(*each[:2], [each[2]]))
    said = f"your own log 'us' has forked at {seq}, as was seen in a remote's entries"
    assert said in caplog.messages
    assert stream.replicated.refused
    assert (logs.fork, logs.append(b"on").seq) == (None, 3)


@pytest.mark.parametrize("signed", [False, True])
def test_an_unsigned_log_can_begin_anew(tmp_path: Path, signed: bool) -> None:
    with scuttleup.open(tmp_path / "logs.db", id="us") as logs:
        logs.append(b"x")
        new = logs.new_id(signed=signed)
        assert new.startswith("ed25519.") == signed
        assert logs.append(b"y") == (new, 1, b"y")
        assert list(logs.create_read_stream()) == sorted([("us", 1, b"x"), (new, 1, b"y")])


def test_garbage_at_the_end_of_a_signed_log_is_deleted_and_the_honest_entry_comes(
    tmp_path: Path, db: Any
) -> None:
    with scuttleup.open(tmp_path / "author.db", signed=True) as author:
        author.extend([b"one", b"two", b"three", b"four"])
        entries = raw(author)
    logs = Scuttleup(db, id="us")
    logs.write(entries[:2])
    db.put(log_prefix(author.id) + pack_seq(3), b"appended by a program that cannot sign")
    logs = Scuttleup(db)
    logs.delete(author.id, 3)
    assert db.get(DELETED_HASHES + author.id.encode()) is None
    assert logs.write(entries[3:]) == 1, "behind a gap"


# --- Exports and bookmarks ------------------------------------------------------------------------


def test_raw_entries_are_those_that_write_takes(tmp_path: Path) -> None:
    with (
        scuttleup.open(tmp_path / "a.db", signed=True, value_encoding="json") as one,
        scuttleup.open(tmp_path / "b.db") as other,
    ):
        one.extend([{"n": 1}, "two"])
        assert other.write(raw(one)) == 2
        assert raw(other) == raw(one)
        assert other.entry(one.id, 2) == b'"two"'
        with pytest.raises(ValueError, match="no encoding, so not 'json'"):
            one.create_read_stream(raw=True, value_encoding="json")


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_database_moves_by_export_and_import() -> None:
    with scuttleup.open("a.db", signed=True) as logs:
        logs.extend([b"x", b"\xff", "ü".encode()])
        logs.write([("them", 5, b"y")])
        entries = raw(logs)
    status, lines, err = Command("--db", "a.db", "export").result()
    assert (status, err) == (0, "")
    assert Command("--db", "b.db", "import").result(lines) == (0, "", "")
    with scuttleup.open("b.db") as logs:
        assert raw(logs) == entries
    for bad in {"peer": "them"}, {"peer": "x", "seq": 1, "entry_base64": "/w!!=="}:
        status, out, err = Command("--db", "c.db", "import").result(lines + json.dumps(bad) + "\n")
        assert (status, out) == (1, "")
        assert err.startswith("scuttleup: lines 1 to 5 of stdin: ")


def test_a_bookmark_ahead_of_the_log_is_an_error_that_names_it(logs: Scuttleup) -> None:
    """What is appended next would be left out without a word."""
    logs.append("x")
    for since, named in ({"us": 2}, "2 of 'us', whose log ends at 1"), ({"them": 1}, "at 0 here"):
        with pytest.raises(ValueError, match=named):
            logs.create_read_stream(since=since)


# --- Commands -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("command", ["read", "head", "check", "export", "backup new.db", "resume"])
def test_a_command_that_only_looks_makes_no_database(command: str) -> None:
    status, out, err = Command("--db", "alice.bd", *command.split()).result()
    assert (status, out, err) == (1, "", "scuttleup: alice.bd: there is no database\n")
    assert os.listdir() == []
    os.mkdir("alice.bd")
    assert Command("--db", "alice.bd", *command.split()).result()[0] == 1
    assert os.listdir("alice.bd") == []


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_backup_a_new_id_and_going_on_as_commands() -> None:
    assert Command("append", "x").result() == (0, "", "")
    assert Command("backup", "b.db").result() == (0, "", "")
    status, _, err = Command("--db", "b.db", "append", "y").result()
    assert status == 1
    assert "is a backup of" in err
    assert Command("--db", "b.db", "resume").result() == (0, "", "")
    assert Command("--db", "b.db", "append", "y").result() == (0, "", "")
    status, id, err = Command("--db", "b.db", "new-id", "--signed").result()
    assert (status, err) == (0, "")
    with scuttleup.open("b.db") as logs:
        assert logs.id == id.rstrip()
        assert id.startswith("ed25519.")
