"""The two bindings and the systems they run on: file names, messages, locks, syncing.

What differs between systems is tried on the system at hand. A test that needs a certain one says so
in its reason for being skipped.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import scuttleup
from scuttleup import DamagedDatabase, DatabaseError, Scuttleup
from scuttleup.leveldb import files
from scuttleup.leveldb.binding import OTHER

only_windows = pytest.mark.skipif(sys.platform != "win32", reason="a rule of Windows")


def refusal(path: Any) -> DatabaseError:
    with pytest.raises(DatabaseError) as caught:
        scuttleup.open(path)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def test_a_leveldb_of_the_other_binding_is_not_taken() -> None:
    """Its errors and its locks are others. Seldom are both installed, so a stand-in is here."""
    other = type("DB", (), {"__module__": f"{OTHER}._plyvel", "write_batch": None})()
    with pytest.raises(TypeError, match=f"not of {OTHER}: <{OTHER}._plyvel.DB object"):
        Scuttleup(other)


# --- File names ---


def in_code_page(name: str) -> bool:
    try:
        return bool(name.encode("mbcs" if sys.platform == "win32" else "utf-8"))
    except UnicodeEncodeError:
        return False


@pytest.mark.parametrize("name", ["grün.db", "żółw.db", "日本.db"])
def test_a_name_that_is_not_ascii_is_that_of_the_folder(tmp_path: Path, name: str) -> None:
    if not in_code_page(name):
        pytest.skip("the code page of this Windows does not have these letters")
    with scuttleup.open(tmp_path / name, sync=True) as logs:
        logs.append("hello")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / name / "CURRENT").unlink()
    assert isinstance(refusal(tmp_path / name), DamagedDatabase)


@pytest.mark.parametrize("name", ["\ud800.db", pytest.param("日😀ω.db", marks=only_windows)])
def test_a_name_that_the_system_cannot_encode_is_refused(tmp_path: Path, name: str) -> None:
    if in_code_page(name):
        pytest.skip("the code page of this Windows is UTF-8")
    assert "cannot be used: LevelDB takes file names in" in str(refusal(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
def test_a_name_of_bytes_that_are_not_utf8_is_that_of_the_folder(tmp_path: Path) -> None:
    path = bytes(tmp_path / "logs") + b"\xff.db"
    with scuttleup.open(path) as logs:
        logs.append("hello")
    assert scuttleup.open(path).head == {logs.id: 1}


@pytest.mark.parametrize(
    ("path", "error", "named"),
    [("", ValueError, "''"), ("a\0b", ValueError, r"'a\\x00b'"), (None, TypeError, "NoneType")],
)
def test_what_is_no_path_is_named(path: Any, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=f"[pP]ath.* not {named}$"):
        scuttleup.open(path)


@only_windows
def test_a_name_that_windows_keeps_for_a_device_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "CON")


def test_one_folder_under_two_names_is_one_database(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "logs.db"):
        if not (tmp_path / "LOGS.DB").exists():
            pytest.skip("this file system tells small letters from capital ones")
        assert str(refusal(tmp_path / "LOGS.DB")).endswith("is open in this process already")


# --- Bindings ---


@pytest.fixture(params=[name for name in ("plyvel", "plyvel_next") if find_spec(name)])
def raw(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """An open LevelDB of each binding that is installed."""
    return import_module(request.param).DB(str(tmp_path / "logs.db"), create_if_missing=True)


def test_a_database_of_either_binding_is_known_to_be_open(raw: Any, tmp_path: Path) -> None:
    logs = Scuttleup(raw)
    logs.append("hello")
    assert str(refusal(tmp_path / "logs.db")).endswith("logs.db is open in this process already")
    raw.close()
    assert scuttleup.open(tmp_path / "logs.db").head == logs.head


def test_each_binding_raises_the_same_errors(raw: Any) -> None:
    logs = Scuttleup(raw.prefixed_db(b"a prefix "))
    logs.append("hello")
    raw.close()
    for use in (
        lambda: logs.append("more"),
        lambda: logs.extend(["more"]),
        lambda: logs.entry(logs.id, 1),
        lambda: logs.delete(logs.id, 1),
        lambda: list(logs.create_read_stream()),
    ):
        with pytest.raises(DatabaseError, match="was closed while these logs were in use"):
            use()


def test_each_binding_names_damage(raw: Any, tmp_path: Path) -> None:
    Scuttleup(raw).extend([b"x" * 1000] * 100)
    raw.compact_range()
    raw.close()
    [table] = (tmp_path / "logs.db").glob("*.ldb")
    table.write_bytes(table.read_bytes()[:-200] + bytes(200))
    with (
        type(raw)(str(tmp_path / "logs.db"), paranoid_checks=True) as db,
        pytest.raises(DamagedDatabase, match="is damaged: "),
    ):
        Scuttleup(db)


# --- Files beside those of LevelDB, and the disk ---


def test_a_file_holds_every_byte_that_was_written(tmp_path: Path) -> None:
    """In text mode, Windows would write two bytes for a line's end, and end the file at byte 26."""
    files.write_file(str(tmp_path / "signing.key"), key := bytes(range(32)))
    assert (tmp_path / "signing.key").read_bytes() == key
    assert files.read_file(str(tmp_path / "signing.key")) == key


@pytest.mark.parametrize("is_refused", [False, True])
def test_on_a_mac_the_disk_is_told_to_empty_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    """Its fsync leaves the data in the cache of the disk. Some file systems have nothing else."""
    fcntl = pytest.importorskip("fcntl", reason="there is no fcntl on Windows")
    done: list[object] = []

    def full_sync(file: int, command: object) -> None:
        done.append(command)
        if is_refused:
            raise OSError("not supported")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", "full", raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full_sync)
    monkeypatch.setattr(os, "fsync", lambda file: done.append("fsync"))
    files.write_file(str(tmp_path / "signing.key"), b"key")
    assert done == (["full", "fsync"] if is_refused else ["full"]) * 3  # the file and two folders
