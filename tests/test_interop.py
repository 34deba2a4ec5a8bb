"""A database of the original is a database of ours, key by key, and the other way round."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from interop import Original, require_node
from leveldb import contents

import scuttleup
from scuttleup import Change, Scuttleup

MAX_SEQ = 2**32 - 1

# On both sides of every change of a key's width, and of every carry out of its last byte or two.
SEQS = [1, 250, 251, 506, 507, 65786, 65787, 66042, 66043]
SEQS += [16777466, 16777467, 16843258, 16843259, MAX_SEQ]

JSON_ENTRIES = [
    {"nested": [{"deep": [[], {}, [None, True, False]]}], "": "empty key", "ключ": "é中🦊"},
    [0.1, -2.5, 0.25, 1.5e300, 0, -1, 2**53 - 1, -(2**53) + 1],
    ["\ud800", "\udfff\ud800", "a\udc00b", {"\udead": 1}],
    ['"1.0e5\\', '\\"-0.0', "\x00\x08\t\n\x0c\r\x1f\x7f\x80\u2028\u2029\ufeff\uffff/</script>"],
    "1.0",
    "",
]

ENTRIES: dict[str, list[Any]] = {
    "binary": ["hello world", "", "Grüße, мир, 世界 \x00\n", "🦊👩‍👩‍👧", "x" * 2**20, "é" * 2**19],
    "utf-8": ["hello world", "", "Grüße, мир, 世界 \x00\n", "🦊👩‍👩‍👧", "x" * 2**20, "é" * 2**19],
    "json": JSON_ENTRIES,
}


@pytest.fixture(params=ENTRIES)
def encoding(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_both_write_the_same_keys_and_values(tmp_path: Path, encoding: str) -> None:
    with Original(tmp_path / "node.db", id="foobar", valueEncoding=encoding) as node:
        for entry in ENTRIES[encoding]:
            node.append(entry)
    with scuttleup.open(tmp_path / "ours.db", id="foobar", value_encoding=encoding) as logs:
        logs.extend(ENTRIES[encoding])

    assert len(contents(tmp_path / "ours.db")) == len(ENTRIES[encoding]) + 1
    assert contents(tmp_path / "ours.db") == contents(tmp_path / "node.db")


def test_either_reads_and_continues_what_the_other_wrote(tmp_path: Path, encoding: str) -> None:
    """Node, we, Node, we: each appends one half of the entries to one log, under one id."""
    path, entries = tmp_path / "shared.db", ENTRIES[encoding]
    half = len(entries) // 2
    every = [Change("foobar", seq, entry) for seq, entry in enumerate(entries + entries, 1)]
    texts = "utf-8" if encoding == "binary" else encoding  # Node's bytes would not pass as JSON

    with Original(path, id="foobar", valueEncoding=encoding) as node:
        for entry in entries[:half]:
            node.append(entry)
    with scuttleup.open(path, value_encoding=encoding) as logs:
        assert list(logs.create_read_stream(value_encoding=texts)) == every[:half]
        assert logs.extend(entries[half:])[0].seq == half + 1
    with Original(path, valueEncoding=texts) as node:
        assert node.read() == every[: len(entries)]
        for entry in entries[:half]:
            node.append(entry)
    with scuttleup.open(path, value_encoding=encoding) as logs:
        logs.extend(entries[half:])
        assert list(logs.create_read_stream(value_encoding=texts)) == every
    with Original(path, valueEncoding=texts) as node:
        assert node.read() == every

    with scuttleup.open(tmp_path / "ours.db", id="foobar", value_encoding=encoding) as logs:
        logs.extend(entries + entries)
    assert contents(path) == contents(tmp_path / "ours.db")


def test_bytes_that_are_no_text_are_the_same_in_both(tmp_path: Path) -> None:
    entries = [bytes(range(256)), b"\0", b"\xff\xfe", os.urandom(1000)]
    with Original(tmp_path / "node.db", id="foobar", valueEncoding="hex") as node:
        for entry in entries:
            node.append(entry.hex())
    with scuttleup.open(tmp_path / "ours.db", id="foobar") as logs:
        logs.extend(entries)
    assert contents(tmp_path / "ours.db") == contents(tmp_path / "node.db")

    with scuttleup.open(tmp_path / "node.db") as logs:
        assert [change.entry for change in logs.create_read_stream()] == entries
    with Original(tmp_path / "ours.db", valueEncoding="hex") as node:
        assert [bytes.fromhex(change.entry) for change in node.read()] == entries


def test_an_id_that_either_made_is_the_id_in_the_other(tmp_path: Path) -> None:
    with Original(tmp_path / "node.db") as node:
        made_by_node = node.id
    with scuttleup.open(tmp_path / "node.db") as logs:
        assert logs.id == made_by_node

    with scuttleup.open(tmp_path / "ours.db") as logs:
        made_here = logs.id
    with Original(tmp_path / "ours.db") as node:
        assert node.id == made_here


def test_a_new_id_replaces_the_stored_one_for_both(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    with Original(path, id="first"):
        pass
    with scuttleup.open(path, id="second"):
        pass
    with Original(path) as node:
        assert node.id == "second"


def test_logs_of_several_peers_are_the_same_in_both(tmp_path: Path) -> None:
    peers = ["foobar", "a", "a!", "a b", "é", "\x01", "þ", "0", "us", "u"]
    changes = [Change(peer, seq, f"{peer} {seq}") for seq in range(1, 12) for peer in peers]
    with Original(tmp_path / "node.db", id="us", valueEncoding="utf-8") as node:
        node.write(changes)
        node.append("mine")
    with scuttleup.open(tmp_path / "ours.db", id="us", value_encoding="utf-8") as logs:
        assert logs.write(changes) == len(changes)
        logs.append("mine")
    assert contents(tmp_path / "ours.db") == contents(tmp_path / "node.db")

    every = sorted([*changes, Change("us", 12, "mine")])
    with scuttleup.open(tmp_path / "node.db", value_encoding="utf-8") as logs:
        assert sorted(logs.create_read_stream()) == every
        heads = logs.head
    with Original(tmp_path / "ours.db", valueEncoding="utf-8") as node:
        assert sorted(node.read()) == every
        assert node.head == heads == dict.fromkeys(peers, 11) | {"us": 12}


def test_numbers_of_every_width_are_the_same_in_both(tmp_path: Path) -> None:
    changes = [Change("them", seq, f"entry {seq}") for seq in SEQS]
    with Original(tmp_path / "node.db", id="us", valueEncoding="utf-8") as node:
        node.write(changes)
    with scuttleup.open(tmp_path / "ours.db", id="us", value_encoding="utf-8") as logs:
        assert logs.write(changes) == len(SEQS)
    assert contents(tmp_path / "ours.db") == contents(tmp_path / "node.db")

    with scuttleup.open(tmp_path / "node.db", value_encoding="utf-8") as logs:
        assert logs.head == {"them": MAX_SEQ}
        assert list(logs.create_read_stream()) == changes
        assert [logs.entry("them", seq) for seq in SEQS] == [change.entry for change in changes]
    with Original(tmp_path / "ours.db", valueEncoding="utf-8") as node:
        assert node.head == {"them": MAX_SEQ}
        assert node.read() == changes
        assert [node.entry("them", seq, "utf-8") for seq in SEQS] == [c.entry for c in changes]


@pytest.mark.parametrize("seq", [250, 506, 65786, 16777466])
def test_our_log_goes_on_over_a_change_of_the_width(tmp_path: Path, seq: int) -> None:
    """The last number of one width is Node's, the first two of the next one ours, then Node's."""
    path = tmp_path / "shared.db"
    every = [Change("us", seq + more, f"entry {more}") for more in range(4)]
    with Original(path, id="us", valueEncoding="utf-8") as node:
        node.write(every[:1])
    with scuttleup.open(path, value_encoding="utf-8") as logs:
        assert [logs.append("entry 1"), logs.append("entry 2")] == every[1:3]
    with Original(path, valueEncoding="utf-8") as node:
        assert node.append("entry 3") == every[3]
        assert node.read() == every
    with scuttleup.open(path, value_encoding="utf-8") as logs:
        assert list(logs.create_read_stream()) == every


def test_the_original_opens_a_database_in_which_we_deleted_a_newest_entry(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    with scuttleup.open(path, id="us", value_encoding="utf-8") as logs:
        logs.extend(["one", "two", "three"])
        logs.write([Change("them", 1, "theirs")])
        logs.delete("us", 3)
        logs.delete("them", 1)
    assert set(contents(path)) >= {"m\xffhead\xffus".encode(), "m\xffhead\xffthem".encode()}

    with Original(path, valueEncoding="utf-8") as node:
        assert node.id == "us"
        assert node.head == {"us": 2}
        assert node.read() == [Change("us", 1, "one"), Change("us", 2, "two")]


def test_a_number_of_a_deleted_entry_stays_taken_after_the_original_had_the_database(
    tmp_path: Path,
) -> None:
    path = tmp_path / "logs.db"
    with scuttleup.open(path, id="us", value_encoding="utf-8") as logs:
        logs.extend(["one", "two", "three"])
        logs.delete("us", 2)
        logs.delete("us", 3)
    with Original(path, valueEncoding="utf-8"):
        pass
    with scuttleup.open(path, value_encoding="utf-8") as logs:
        assert logs.head == {"us": 3}
        assert logs.append("four").seq == 4


def test_what_the_original_appends_after_our_deletion_is_read_and_continued(tmp_path: Path) -> None:
    """The original gives number 2 out again, as it does; then our note of it is out of date."""
    path = tmp_path / "logs.db"
    with scuttleup.open(path, id="us", value_encoding="utf-8") as logs:
        logs.extend(["one", "two"])
        logs.delete("us", 2)
    with Original(path, valueEncoding="utf-8") as node:
        assert [node.append("two again").seq, node.append("three").seq] == [2, 3]
    with scuttleup.open(path, value_encoding="utf-8") as logs:
        assert logs.append("four") == Change("us", 4, "four")
        read = [change.entry for change in logs.create_read_stream()]
        assert read == ["one", "two again", "three", "four"]


def test_what_the_original_deleted_is_gone_here(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    with Original(path, id="us", valueEncoding="utf-8") as node:
        for entry in ("one", "two", "three"):
            node.append(entry)
        node.delete("us", 2)
    with scuttleup.open(path, value_encoding="utf-8") as logs:
        assert list(logs.create_read_stream()) == [Change("us", 1, "one"), Change("us", 3, "three")]
        with pytest.raises(KeyError):
            logs.entry("us", 2)


def as_javascript_has_it(text: str) -> str:
    """`text` with each pair of surrogates as the one character that it is in JavaScript."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def has_no_index(keys: dict[str, Any]) -> bool:
    """JavaScript would move a key like "1" to the front."""
    return not any(key.isascii() and key.isdigit() for key in keys)


json_texts = st.text(st.characters()).map(as_javascript_has_it)
json_values = st.recursive(
    st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | json_texts,
    lambda inner: (
        st.lists(inner | st.none(), max_size=5)
        | st.dictionaries(json_texts, inner | st.none(), max_size=5).filter(has_no_index)
    ),
    max_leaves=10,
)


def test_json_is_stored_as_json_stringify_writes_it(tmp_path: Path) -> None:
    with (
        Original(tmp_path / "node.db", id="foobar", valueEncoding="json") as node,
        scuttleup.open(tmp_path / "ours.db", id="foobar", value_encoding="json") as logs,
    ):

        @settings(deadline=None, max_examples=100)
        @given(st.lists(json_values, min_size=1, max_size=5))
        @example(JSON_ENTRIES)
        def check(entries: list[Any]) -> None:
            for entry in entries:
                peer, seq, _ = logs.append(entry)
                assert node.append(entry).seq == seq
                ours = logs.entry(peer, seq, value_encoding="binary")
                assert ours == bytes.fromhex(node.entry(peer, seq, "hex"))

        check()


def test_a_float_is_the_same_number_in_both_however_it_is_spelled(tmp_path: Path) -> None:
    floats = [1.0, 1e21, 1e-7, 1.5e-5, 1e16, -0.0, 1e-6, 9.9e-7, 1e20, 5e-324, 1.79e308]
    choose = random.Random(2)
    floats += [choose.choice([1, -1]) * 10 ** choose.uniform(-300, 300) for _ in range(300)]
    with scuttleup.open(tmp_path / "logs.db", id="us", value_encoding="json") as logs:
        logs.append(floats)
    with Original(tmp_path / "logs.db", valueEncoding="json") as node:
        assert list(map(float, node.read()[0].entry)) == floats
        node.append(floats)
    with scuttleup.open(tmp_path / "logs.db", value_encoding="json") as logs:
        assert list(map(float, logs.entry("us", 2))) == floats


def test_bytes_that_are_no_utf8_read_as_the_same_text(tmp_path: Path) -> None:
    with (
        Original(tmp_path / "node.db", id="foobar", valueEncoding="hex") as node,
        scuttleup.open(tmp_path / "ours.db", id="foobar") as logs,
    ):

        @settings(deadline=None, max_examples=50)
        @given(st.binary() | st.text().map(lambda text: text.encode("utf-16")))
        @example(b"\xef\xbb\xbfhello")
        @example(b"\xf0\x9f\xa6 \xe2\x82 \xed\xa0\x80 \xc0\x80 \xf4\x90\x80\x80")
        def check(entry: bytes) -> None:
            peer, seq, _ = logs.append(entry)
            node.append(entry.hex())
            ours = logs.entry(peer, seq, value_encoding="utf-8")
            assert ours == node.entry(peer, seq, "utf-8")

        check()


# What the original left in LevelDB for one entry of a database whose id is "me": its key and value.
# fmt: off
RECORDED: list[tuple[str, Change, str, str]] = [
    ("utf-8", Change("us", 1, "hello world"), "63c3bf7573c3bf3031", "68656c6c6f20776f726c64"),
    ("utf-8", Change("us", 2, ""), "63c3bf7573c3bf3032", ""),
    ("utf-8", Change("us", 3, "Grüße 🦊"), "63c3bf7573c3bf3033", "4772c3bcc39f6520f09fa68a"),
    ("utf-8", Change("foobar", 250, "x"), "63c3bf666f6f626172c3bf6661", "78"),
    ("utf-8", Change("foobar", 251, "x"), "63c3bf666f6f626172c3bf66623030", "78"),
    ("utf-8", Change("foobar", 507, "x"), "63c3bf666f6f626172c3bf666330313030", "78"),
    ("utf-8", Change("foobar", 16777467, "x"), "63c3bf666f6f626172c3bf66653031303030303030", "78"),
    ("utf-8", Change("foobar", MAX_SEQ, "x"), "63c3bf666f6f626172c3bf66656666666666663034", "78"),
    ("utf-8", Change("é!", 1, "x"), "63c3bfc3a921c3bf3031", "78"),
    ("json", Change("us", 1, "hello world"), "63c3bf7573c3bf3031", "2268656c6c6f20776f726c6422"),
    ("json", Change("us", 2, {"ключ": [None, True, {}]}), "63c3bf7573c3bf3032",
        "7b22d0bad0bbd18ed187223a5b6e756c6c2c747275652c7b7d5d7d"),
    ("json", Change("us", 4, '\ud800 "\\ \x1f🦊'), "63c3bf7573c3bf3034",
        "225c7564383030205c225c5c205c7530303166f09fa68a22"),
]
# fmt: on
RECORDED_ID = (bytes.fromhex("6dc3bf6964"), b"me")


@pytest.mark.parametrize(("encoding", "change", "key", "value"), RECORDED)
def test_a_recorded_entry_is_written_and_read(
    db: Any, encoding: str, change: Change, key: str, value: str
) -> None:
    logs = Scuttleup(db, id="me", value_encoding=encoding)
    logs.write([change])
    assert list(db) == [(bytes.fromhex(key), bytes.fromhex(value)), RECORDED_ID]
    logs = Scuttleup(db, value_encoding=encoding)
    assert (logs.id, logs.head) == ("me", {change.peer: change.seq})
    assert list(logs.create_read_stream()) == [change]


@pytest.mark.parametrize("recorded_encoding", ["utf-8", "json"])
def test_the_recorded_entries_are_what_the_original_writes(
    tmp_path: Path, recorded_encoding: str
) -> None:
    recorded = [row[1:] for row in RECORDED if row[0] == recorded_encoding]
    with Original(tmp_path / "logs.db", id="me", valueEncoding=recorded_encoding) as node:
        node.write(change for change, _, _ in recorded)
    stored = [(bytes.fromhex(key), bytes.fromhex(value)) for _, key, value in recorded]
    assert contents(tmp_path / "logs.db") == dict([*stored, RECORDED_ID])


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Node."""
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("nowhere")
def test_without_node_a_test_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="Node is not installed"):
        require_node()


@pytest.mark.usefixtures("nowhere")
def test_without_node_a_test_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="Node is not installed"):
        require_node()
