"""A database of the original is a database of ours, key by key, and the other way round."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from interop import Original, require_node
from leveldb import contents

import scuttleup
from scuttleup import Change

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

TEXTS = ["hello world", "", "Grüße, мир, 世界 \x00\n", "🦊👩‍👩‍👧", "x" * 2**20, "é" * 2**19]
CHANGES = {
    "several peers": [
        Change(peer, seq, f"{peer} {seq}")
        for seq in range(1, 12)
        for peer in ["foobar", "a", "a!", "a b", "é", "\x01", "þ", "0", "us", "u"]
    ],
    "numbers of every width": [Change("them", seq, f"entry {seq}") for seq in SEQS],
}


@pytest.mark.parametrize(
    ("encoding", "entries"), [("binary", TEXTS), ("utf-8", TEXTS), ("json", JSON_ENTRIES)]
)
def test_each_stores_what_the_other_does_and_reads_and_continues_it(
    tmp_path: Path, encoding: Any, entries: list[Any]
) -> None:
    """Node, then we, then Node again append all entries to one log, under one id."""
    path, count = tmp_path / "shared.db", len(entries)
    every = [Change("foobar", seq, entry) for seq, entry in enumerate(entries * 3, 1)]
    texts: Any = (
        "utf-8" if encoding == "binary" else encoding
    )  # Node's bytes would not pass as JSON

    with Original(path, id="foobar", valueEncoding=encoding) as node:
        for entry in entries:
            node.append(entry)
    with scuttleup.open(path, value_encoding=encoding) as logs:
        assert list(logs.create_read_stream(value_encoding=texts)) == every[:count]
        assert logs.extend(entries)[0].seq == count + 1
    with Original(path, valueEncoding=texts) as node:
        assert node.read() == every[: 2 * count]
        for entry in entries:
            node.append(entry)
    with scuttleup.open(path, value_encoding=encoding) as logs:
        assert list(logs.create_read_stream(value_encoding=texts)) == every
    with scuttleup.open(tmp_path / "ours.db", id="foobar", value_encoding=encoding) as logs:
        logs.extend(entries * 3)
    assert contents(path) == contents(tmp_path / "ours.db")


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_what_came_from_elsewhere_is_the_same_in_both(
    tmp_path: Path, changes: list[Change]
) -> None:
    with Original(tmp_path / "node.db", id="us", valueEncoding="utf-8") as node:
        node.write(changes)
    with scuttleup.open(tmp_path / "ours.db", id="us", value_encoding="utf-8") as logs:
        assert logs.write(changes) == len(changes)
    assert contents(tmp_path / "ours.db") == contents(tmp_path / "node.db")

    heads = {peer: seq for peer, seq, _ in changes}
    with scuttleup.open(tmp_path / "node.db", value_encoding="utf-8") as logs:
        assert logs.head == heads
        assert sorted(logs.create_read_stream()) == sorted(changes)
    with Original(tmp_path / "ours.db", valueEncoding="utf-8") as node:
        assert node.head == heads
        assert sorted(node.read()) == sorted(changes)
        assert all(node.entry(peer, seq, "utf-8") == entry for peer, seq, entry in changes)


def test_the_id_that_either_stored_is_that_of_both(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    with Original(path) as node:
        made_by_node = node.id
    with scuttleup.open(path) as logs:
        assert logs.id == made_by_node
    scuttleup.open(path, id="given here").close()
    with Original(path) as node:
        assert node.id == "given here"


def test_the_original_lacks_the_newest_entry_that_we_deleted_and_we_know_its_number(
    tmp_path: Path,
) -> None:
    path = tmp_path / "logs.db"
    with scuttleup.open(path, id="us", value_encoding="utf-8") as logs:
        logs.extend(["one", "two", "three"])
        logs.write([Change("them", 1, "theirs")])
        logs.delete("us", 3)
        logs.delete("them", 1)
    with Original(path, valueEncoding="utf-8") as node:
        assert node.id == "us"
        assert node.head == {"us": 2}
        assert node.read() == [Change("us", 1, "one"), Change("us", 2, "two")]
    with scuttleup.open(path, value_encoding="utf-8") as logs:
        assert logs.head == {"us": 3, "them": 1}
        assert logs.append("four").seq == 4


def test_what_the_original_appends_and_deletes_after_our_deletion_is_what_we_have(
    tmp_path: Path,
) -> None:
    """The original gives out number 2 again, and then our note of it is out of date."""
    path = tmp_path / "logs.db"
    with scuttleup.open(path, id="us", value_encoding="utf-8") as logs:
        logs.extend(["one", "two"])
        logs.delete("us", 2)
    with Original(path, valueEncoding="utf-8") as node:
        later = [node.append("two again"), node.append("three")]
        node.call("del", "us", 1)
    with scuttleup.open(path, value_encoding="utf-8") as logs:
        later.append(logs.append("four"))
        assert [change.seq for change in later] == [2, 3, 4]
        assert list(logs.create_read_stream()) == later


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

        @settings(max_examples=100)
        @given(st.lists(json_values, min_size=1, max_size=5))
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


def test_bytes_that_are_no_text_are_stored_as_they_are_and_read_as_the_same_text(
    tmp_path: Path,
) -> None:
    with (
        Original(tmp_path / "node.db", id="foobar", valueEncoding="hex") as node,
        scuttleup.open(tmp_path / "ours.db", id="foobar") as logs,
    ):

        @settings(max_examples=50)
        @given(st.binary() | st.text().map(lambda text: text.encode("utf-16")))
        @example(bytes(range(256)))
        @example(b"\xef\xbb\xbfhello")
        @example(b"\xf0\x9f\xa6 \xe2\x82 \xed\xa0\x80 \xc0\x80 \xf4\x90\x80\x80")
        def check(entry: bytes) -> None:
            peer, seq, _ = logs.append(entry)
            node.append(entry.hex())
            ours = logs.entry(peer, seq, value_encoding="utf-8")
            assert ours == node.entry(peer, seq, "utf-8")

        check()
    assert contents(tmp_path / "ours.db") == contents(tmp_path / "node.db")


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)]
)
def test_without_node_a_test_is_skipped_but_fails_in_ci(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(outcome, match="Node is not installed"):
        require_node()
