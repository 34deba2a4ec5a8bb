"""Keys, encodings and the printed line: one format each, held against what it promises."""

from __future__ import annotations

import json
import math
import re
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scuttleup import Change
from scuttleup.encodings import Encoding, find_encoding
from scuttleup.keys import change_keys, check_peer, check_seq, log_prefix, pack_seq, unpack_seq
from scuttleup.limits import MAX_SEQ

# --- Keys ---

# Numbers on both sides of every change of the key's width, and how the original packs them.
EDGES = [1, 250, 251, 506, 507, 65786, 65787, 16777466, 16777467, 4294967295]
PACKED = b"01 fa fb00 fbff fc0100 fcffff fd010000 fdffffff fe01000000 feffffff04".split()
# And on both sides of what a byte and a word hold.
BORDERS = [*EDGES, 66042, 66043, 16843258, 16843259, 2**31]
seqs = st.integers(1, MAX_SEQ) | st.integers(1, 70_000) | st.sampled_from(BORDERS)


@pytest.mark.parametrize(("seq", "digits"), list(zip(EDGES, PACKED, strict=True)))
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
NO_NUMBERS += [b"fb-fff", b"fc0000", b"fc00ff", b"fd00ffff", b"fe00ffffff"]
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
    seqs = range(max(border - 300, 1), min(border + 300, MAX_SEQ) + 1)
    keys = [log_prefix("peer") + pack_seq(seq) for seq in seqs]
    assert list(change_keys(log_prefix("peer"), seqs[0], len(seqs))) == keys


def test_a_key_is_that_of_the_original() -> None:
    assert log_prefix("foobar") + pack_seq(507) == "c\xfffoobar\xfffc0100".encode()


@given(st.text(min_size=1, max_size=8))
def test_a_peer_id_holds_only_what_the_original_finds_again(peer: str) -> None:
    refusal = pytest.raises(ValueError, match=f"a peer id .* not {re.escape(repr(peer))}$")
    with refusal if max(peer) >= "\xff" else nullcontext():
        assert check_peer(peer) == peer


@given(st.integers())
def test_a_number_is_checked_against_both_ends(seq: int) -> None:
    with nullcontext() if 1 <= seq <= 4294967295 else pytest.raises(ValueError, match=str(seq)):
        assert check_seq(seq) == seq


# --- Encodings ---

BINARY, UTF8, JSON = map(find_encoding, ("binary", "utf-8", "json"))


@given(st.binary())
def test_binary_entries_come_back_as_they_went_in(entry: bytes) -> None:
    assert BINARY.encode(entry) == BINARY.decode(entry) == entry


@pytest.mark.parametrize("encoding", [BINARY, UTF8])
@given(entry=st.text())
def test_text_is_stored_as_utf8(encoding: Encoding, entry: str) -> None:
    assert encoding.encode(entry) == entry.encode()


@given(st.binary() | st.text().map(str.encode))
def test_what_is_read_as_text_has_replacement_characters_for_what_is_none(entry: bytes) -> None:
    assert UTF8.decode(entry) == entry.decode("utf-8", "replace")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e308, 1e308) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values)
def test_json_is_valid_and_comes_back_as_it_went_in(entry: Any) -> None:
    encoded = JSON.encode(entry)
    assert JSON.decode(encoded) == json.loads(encoded) == entry


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"a": [1, 2.5, 0.1, None], "b": {}, "": True}, '{"a":[1,2.5,0.1,null],"b":{},"":true}'),
        ("é€😀\u2028\x7f\xff", '"é€😀\u2028\x7f\xff"'),
        ('"\\/\b\f\n\r\t\x00\x1f', r'"\"\\/\b\f\n\r\t\u0000\u001f"'),
        ("\ud800b\udfff", '"\\ud800b\\udfff"'),
    ],
)
def test_json_is_written_as_by_javascript(entry: Any, text: str) -> None:
    assert JSON.encode(entry) == text.encode()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_does_not_have_is_refused(number: float) -> None:
    """JavaScript writes null: then the number would be lost."""
    with pytest.raises(ValueError, match=re.escape(repr(number))):
        JSON.encode(number)


class Unprintable:
    def __repr__(self) -> str:
        raise KeyError


def test_an_entry_that_cannot_even_be_shown_is_refused_by_its_type() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="a 'json' entry cannot be what is a list: "):
        JSON.encode(deep)
    with pytest.raises(TypeError, match="a 'utf-8' entry is a str, not what is a Unprintable"):
        UTF8.encode(Unprintable())


NO_JSON = [b"", b"{", b"'a'", b"1 2", b"\xff", b"NaN", b"-Infinity"]
NO_JSON += [b"[" * 200_000]  # any peer can send it, and a RecursionError would end its reader


@pytest.mark.parametrize("text", NO_JSON, ids=lambda text: str(text[:9]))
def test_what_is_no_json_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  json's own words differ between versions
        JSON.decode(text)


WRONG: list[tuple[Encoding, Any]] = [(BINARY, wrong) for wrong in (1, None, [b"x"])]
WRONG += [(UTF8, wrong) for wrong in (b"hello", 3.5, None)]
WRONG += [(JSON, wrong) for wrong in ({1, 2}, b"hello", 1j, [{"deep": b"inside"}])]


@pytest.mark.parametrize(("encoding", "entry"), WRONG)
def test_an_entry_of_the_wrong_type_is_named(encoding: Encoding, entry: object) -> None:
    with pytest.raises(TypeError, match=f"entry .*{re.escape(repr(entry))}"):
        encoding.encode(entry)


@pytest.mark.parametrize("encoding", [BINARY, UTF8])
def test_text_that_has_no_utf8_is_refused(encoding: Encoding) -> None:
    with pytest.raises(ValueError, match=r"\\ud800"):
        encoding.encode("a\ud800")


@pytest.mark.parametrize("name", ["utf8", "UTF-8", "", None, 8, [], b"utf-8"])
def test_an_unknown_encoding_is_named_beside_the_known_ones(name: Any) -> None:
    with pytest.raises(ValueError, match=f"'binary', 'utf-8', 'json', not {re.escape(repr(name))}"):
        find_encoding(name)


# --- The printed line ---


def test_a_change_prints_as_in_the_exercise() -> None:
    assert str(Change("id", 1, "hello world")) == "{peer: 'id', seq: 1, entry: 'hello world'}"
    assert str(Change("é", 2, "grüße 😀")) == "{peer: 'é', seq: 2, entry: 'grüße 😀'}"


EVERY = "".join(map(chr, range(0x110000)))


@pytest.mark.parametrize(
    "entry", [EVERY, bytes(range(256)), {EVERY: [EVERY]}], ids=["text", "bytes", "json"]
)
def test_no_control_character_reaches_the_output(entry: object) -> None:
    """It could be an escape, a line's end, or a change of the direction of writing."""
    assert str(Change(EVERY, 1, entry)).isprintable()
