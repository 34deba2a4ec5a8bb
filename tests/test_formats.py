"""Keys, encodings and the printed line: one format each, held against what it promises."""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scuttleup import Change
from scuttleup.encodings import find_encoding
from scuttleup.keys import change_keys, check_peer, check_seq, log_prefix, pack_seq, unpack_seq
from scuttleup.limits import MAX_SEQ

# --- Keys ---

# Numbers on both sides of every change of the key's width, and of what a byte and a word hold.
BORDERS = [1, 250, 251, 506, 507, 65786, 65787, 66042, 66043, 16777466, 16777467]
BORDERS += [16843258, 16843259, 2**31, MAX_SEQ]
seqs = st.integers(1, MAX_SEQ) | st.integers(1, 70_000) | st.sampled_from(BORDERS)


@pytest.mark.parametrize(
    ("seq", "digits"),
    [
        (1, b"01"),
        (250, b"fa"),
        (251, b"fb00"),
        (506, b"fbff"),
        (507, b"fc0100"),
        (65786, b"fcffff"),
        (65787, b"fd010000"),
        (16777466, b"fdffffff"),
        (16777467, b"fe01000000"),
        (4294967295, b"feffffff04"),
    ],
)
def test_a_number_is_packed_as_the_original_packs_it(seq: int, digits: bytes) -> None:
    assert pack_seq(seq) == digits
    assert unpack_seq(digits) == seq


@given(seqs)
def test_a_packed_number_unpacks_to_itself(seq: int) -> None:
    assert unpack_seq(pack_seq(seq)) == seq


@given(seqs, seqs)
def test_packed_numbers_sort_as_the_numbers_do(one: int, other: int) -> None:
    assert (pack_seq(one) < pack_seq(other)) == (one < other)


# No digits; a zero; other spellings; one below 0; one too small for its width; one too large.
NO_NUMBERS = [b"", b"fb", b"ff", b"01\xff", b"zz", b"00", b"0", b"1", b"FA", b"+1", b" 1", b"0_1"]
NO_NUMBERS += [b"fb-fff"]
NO_NUMBERS += [b"fc0000", b"fc00ff", b"fd00ffff", b"fe00ffffff"]
NO_NUMBERS += [b"feffffff05", b"feffffffff", b"ff0000000000"]


@pytest.mark.parametrize("digits", NO_NUMBERS)
def test_a_number_has_one_spelling_only(digits: bytes) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(digits))):
        unpack_seq(digits)


@given(st.binary(max_size=12) | st.text("0123456789abcdefABF _+-x").map(str.encode))
def test_only_what_a_number_was_packed_to_unpacks(digits: bytes) -> None:
    with suppress(ValueError):
        assert pack_seq(unpack_seq(digits)) == digits


@pytest.mark.parametrize("border", BORDERS)
def test_keys_run_on_over_a_border(border: int) -> None:
    first = max(border - 300, 1)
    last = min(border + 300, MAX_SEQ)
    keys = [log_prefix("peer") + pack_seq(seq) for seq in range(first, last + 1)]
    assert list(change_keys(log_prefix("peer"), first, last - first + 1)) == keys == sorted(keys)


def test_the_keys_of_a_log_end_at_the_last_number() -> None:
    assert list(change_keys(b"", MAX_SEQ - 1, 2)) == [b"feffffff03", b"feffffff04"]


def test_a_key_is_that_of_the_original() -> None:
    assert log_prefix("foobar") + pack_seq(507) == "c\xfffoobar\xfffc0100".encode()


@given(st.text(min_size=1, max_size=8))
def test_a_peer_id_holds_only_what_the_original_finds_again(peer: str) -> None:
    if all(character < "\xff" for character in peer):
        assert check_peer(peer) == peer
    else:
        with pytest.raises(ValueError, match="peer id") as caught:
            check_peer(peer)
        assert repr(peer) in str(caught.value)


@given(st.integers())
def test_a_number_is_checked_against_both_ends(seq: int) -> None:
    if 1 <= seq <= 4294967295:
        assert check_seq(seq) == seq
    else:
        with pytest.raises(ValueError, match=str(seq)):
            check_seq(seq)


# --- Encodings ---


@given(st.binary())
def test_binary_entries_come_back_as_they_went_in(entry: bytes) -> None:
    binary = find_encoding("binary")
    assert binary.encode(entry) == entry
    assert binary.decode(entry) == entry


@given(st.text())
def test_text_comes_back_as_it_went_in(entry: str) -> None:
    utf8 = find_encoding("utf-8")
    assert utf8.encode(entry) == entry.encode()
    assert utf8.decode(utf8.encode(entry)) == entry


@given(st.text())
def test_text_in_a_binary_log_is_stored_as_utf8(entry: str) -> None:
    assert find_encoding("binary").encode(entry) == entry.encode()


@given(st.binary())
def test_bytes_that_are_no_text_are_read_as_replacement_characters(entry: bytes) -> None:
    assert find_encoding("utf-8").decode(entry) == entry.decode("utf-8", "replace")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values)
def test_json_comes_back_as_it_went_in(entry: Any) -> None:
    encoding = find_encoding("json")
    assert encoding.decode(encoding.encode(entry)) == entry


@given(json_values)
def test_json_is_valid_and_compact(entry: Any) -> None:
    text = find_encoding("json").encode(entry).decode()
    outside_strings = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    assert json.loads(text) == entry
    assert not re.search(r"\s", outside_strings)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (None, "null"),
        (True, "true"),
        ("hello world", '"hello world"'),
        ({"a": [1, 2.5, None], "b": {}}, '{"a":[1,2.5,null],"b":{}}'),
        ("é€😀\u2028\x7f\xff", '"é€😀\u2028\x7f\xff"'),
        ('"\\/\b\f\n\r\t\x00\x1f', r'"\"\\/\b\f\n\r\t\u0000\u001f"'),
        ("\ud800", '"\\ud800"'),
        ("a\udfffb", '"a\\udfffb"'),
        ([1.5, 0.1, -2.25], "[1.5,0.1,-2.25]"),
    ],
)
def test_json_is_written_as_by_javascript(entry: Any, text: str) -> None:
    assert find_encoding("json").encode(entry) == text.encode()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_have_is_refused(number: float) -> None:
    """JavaScript writes null: then the number would be lost."""
    with pytest.raises(ValueError, match=re.escape(repr(number))):
        find_encoding("json").encode(number)


@pytest.mark.parametrize("text", [b"", b"{", b"'a'", b"1 2", b"\xff", b"NaN", b"-Infinity"])
def test_what_is_no_json_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  json's own words differ between versions
        find_encoding("json").decode(text)


def test_json_too_deep_to_read_is_a_value_error() -> None:
    """Any peer can write it; a RecursionError would end the program that reads."""
    with pytest.raises(ValueError):  # noqa: PT011
        find_encoding("json").decode(b"[" * 200_000)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("binary", 1),
        ("binary", None),
        ("binary", [b"x"]),
        ("utf-8", b"hello"),
        ("utf-8", 3.5),
        ("utf-8", None),
        ("json", {1, 2}),
        ("json", b"hello"),
        ("json", 1j),
        ("json", [{"deep": b"inside"}]),
    ],
)
def test_an_entry_of_the_wrong_type_is_named(name: str, entry: object) -> None:
    with pytest.raises(TypeError, match="entry") as caught:
        find_encoding(name).encode(entry)
    assert repr(entry) in str(caught.value)


@pytest.mark.parametrize("name", ["binary", "utf-8"])
def test_text_that_has_no_utf8_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"\\ud800"):
        find_encoding(name).encode("a\ud800")


@pytest.mark.parametrize("name", ["utf8", "UTF-8", "", None, 8, [], b"utf-8"])
def test_an_unknown_encoding_is_named_beside_the_known_ones(name: Any) -> None:
    with pytest.raises(ValueError, match="'binary', 'utf-8', 'json'") as caught:
        find_encoding(name)
    assert repr(name) in str(caught.value)


# --- The printed line ---


def test_a_change_prints_as_in_the_exercise() -> None:
    assert str(Change("id", 1, "hello world")) == "{peer: 'id', seq: 1, entry: 'hello world'}"
    assert str(Change("é", 2, "grüße 😀")) == "{peer: 'é', seq: 2, entry: 'grüße 😀'}"


EVERY = "".join(map(chr, range(0x110000)))


@pytest.mark.parametrize(
    "entry", [EVERY, bytes(range(256)), {EVERY: [EVERY]}], ids=["text", "bytes", "json"]
)
def test_no_control_character_reaches_the_output(entry: object) -> None:
    """Such as an escape, a line's end, or a change of the direction of writing."""
    assert str(Change(EVERY, 1, entry)).isprintable()
