"""The wire's frames, against Google's protobuf and what the original wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import permutations
from typing import Any

import pytest
from google.protobuf import message_factory, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from wire import MAX, MODES, cut, encode_handshake, frame, string, varint

from scuttleup.changes import expand
from scuttleup.limits import MAX_ENTRY, MAX_FIELD, MAX_FRAME, MAX_SKIPPED
from scuttleup.replication.messages import Decoder, encode_changes

Strategy = st.SearchStrategy[Any]
Handshake = tuple[str, dict[str, int], str]  # the id, the head and the mode
Run = tuple[str, int, list[bytes]]  # the peer, the first number and the entries
Read = Callable[[bytes], object]

# --- The oracle -----------------------------------------------------------------------------------

# What protoc would make of the original's schema.proto.
SCHEMA = """
name: "schema.proto"
enum_type { name: "Mode"
  value { name: "SYNC" number: 1 } value { name: "PUSH" number: 2 } value { name: "PULL" number: 3 }
}
message_type { name: "Digest"
  field { number: 1 label: LABEL_REQUIRED type: TYPE_STRING name: "peer" }
  field { number: 2 label: LABEL_REQUIRED type: TYPE_UINT32 name: "seq" }
}
message_type { name: "Handshake"
  field { number: 1 label: LABEL_REQUIRED type: TYPE_STRING name: "id" }
  field { number: 2 label: LABEL_REPEATED type_name: "Digest" name: "head" }
  field { number: 3 label: LABEL_OPTIONAL type_name: "Mode" name: "mode" default_value: "SYNC" }
}
message_type { name: "Change"
  field { number: 1 label: LABEL_REQUIRED type: TYPE_STRING name: "peer" }
  field { number: 2 label: LABEL_REQUIRED type: TYPE_UINT32 name: "seq" }
  field { number: 3 label: LABEL_REQUIRED type: TYPE_BYTES name: "entry" }
}
"""
Google: dict[str, Any] = message_factory.GetMessages(
    [text_format.Parse(SCHEMA, FileDescriptorProto())]
)


def google_reads(name: str, message: bytes) -> Any:
    """What protobuf makes of `message`, None if it is in error."""
    try:
        read = Google[name].FromString(message)
    except DecodeError:
        return None
    if not read.IsInitialized():
        return None
    if name == "Change":
        return read.peer, read.seq, read.entry
    return read.id, {digest.peer: digest.seq for digest in read.head}, MODES[read.mode - 1]


# --- Ours -----------------------------------------------------------------------------------------


def decode_handshake(message: bytes, sizes: Iterable[int] = (MAX_FRAME,)) -> Handshake:
    """The handshake, which comes in pieces of `sizes`."""
    decoder = Decoder()
    head: dict[str, int] = {}
    for piece in cut(frame(message), sizes):
        assert decoder.handshake is None
        decoder.feed(piece)
        head.update(decoder.digests())
    if not decoder.handshake:
        raise ValueError("no message at all")
    assert not decoder.pending
    return decoder.handshake.id, head, decoder.handshake.mode


def decode_changes(*pieces: bytes, most: int = MAX_ENTRY) -> list[Any]:
    """The changes, and behind them how many bytes are left, if any are."""
    decoder = Decoder(most)
    changes: list[Any] = []
    for piece in pieces:
        decoder.feed(piece)
        for run in decoder.changes():
            changes += expand(*run)
    return [*changes, decoder.pending] if decoder.pending else changes


def decode_change(message: bytes) -> Any:
    (change,) = decode_changes(frame(message))
    return change


def attempt(read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` returns, or what its ValueError says."""
    try:
        return read(*arguments)
    except ValueError as error:
        return str(error)


# The errors that protobuf does not know and we want.
STRICTER = f"{MAX} is the most|a change where the handshake|wire type 3|codec can't decode"


def assert_read_alike(name: str, message: bytes) -> None:
    if name == "Change" and re.match(rb"[\xc8-\xef]\x3e", message):
        return  # its first field makes it a Report
    ours = attempt(decode_handshake if name == "Handshake" else decode_change, message)
    if isinstance(ours, str):
        assert google_reads(name, message) is None or re.search(STRICTER, ours), ours
    else:
        assert ours == google_reads(name, message)


# --- What is generated ----------------------------------------------------------------------------

texts = st.text(max_size=8) | st.sampled_from(["x" * 127, "x" * 128, "ü" * 127])
entries = st.binary(max_size=12) | st.sampled_from([115, 127, 128, 300, 16383, 16384]).map(bytes)
# Around every change of a varint's width.
edges = [1, *(2**bits - less for bits in (7, 14, 21, 28) for less in (0, 1)), MAX - 1, MAX]
seqs = st.integers(0, MAX) | st.sampled_from(edges)
heads = st.dictionaries(texts, seqs, max_size=4)
# The sizes of the pieces in which bytes come.
sizes = st.lists(st.integers(1, 9) | st.integers(1, 2000), min_size=1)
# New values for bytes, by the place of each.
alterations = st.dictionaries(st.integers(0), st.integers(0, 255), max_size=4)
# A tag or a length is one of 32 bits: five bytes at most.
widths = st.just(1) | st.integers(1, 5)


@st.composite
def fields(draw: st.DrawFn, numbers: Strategy, wire_type: int, payloads: Strategy) -> bytes:
    """One field as any encoder may write it, with varints longer than they need be."""
    tag, payload = varint(draw(numbers) << 3 | wire_type, draw(widths)), draw(payloads)
    if wire_type == 0:
        return tag + varint(payload, draw(st.just(1) | st.integers(1, 10)))
    length = varint(len(payload), draw(widths)) if wire_type == 2 else b""
    return tag + length + bytes(payload)


@st.composite
def messages(draw: st.DrawFn, name: str) -> bytes:
    """A message as a perverse encoder writes it: perhaps with too little, always well-formed."""
    required, optional = KNOWN[name]
    parts = draw(st.lists(st.one_of(required + optional), max_size=3))
    if draw(st.integers(0, 9)):  # mostly with all that is required
        parts += draw(st.tuples(*required))
    parts += draw(st.lists(strange_fields, max_size=2))
    return b"".join(draw(st.permutations(parts)))


one, two, three = map(st.just, (1, 2, 3))
unknown = st.integers(4, 2**29 - 1) | st.sampled_from([4, 15, 16, 19000, 2**29 - 1])
# Fields that are to be skipped, some because a known number has a wire type that it has not.
strange_fields = st.one_of(
    fields(unknown | one, 0, st.integers(0, 2**64 - 1)),
    fields(unknown | one | two | three, 1, st.binary(min_size=8, max_size=8)),
    fields(unknown, 2, st.binary(max_size=8)),
    fields(unknown | one | two | three, 5, st.binary(min_size=4, max_size=4)),
)
# An unknown mode is an unknown field. A negative one takes ten bytes.
modes = st.integers(0, 4) | st.sampled_from([2**31 - 1, 2**64 - 1])
ids, numbers = fields(one, 2, texts.map(str.encode)), fields(two, 0, seqs)
# Of a longer digest we keep a part, see `test_an_id_that_is_far_too_long_is_cut_off`.
digests = messages("Digest").filter(lambda digest: len(digest) <= MAX_FIELD)
# By the message: the fields that it needs, and those that it may have.
KNOWN: dict[str, tuple[list[Strategy], list[Strategy]]] = {
    "Digest": ([ids, numbers], []),
    "Handshake": ([ids], [fields(two, 2, digests), fields(three, 0, modes)]),
    "Change": ([ids, numbers, fields(three, 2, entries)], []),
}


# --- As protobuf does -----------------------------------------------------------------------------


@given(texts, heads, st.sampled_from(MODES))
def test_protobuf_writes_the_same_handshake(id: str, head: dict[str, int], mode: str) -> None:
    digests = [{"peer": peer, "seq": seq} for peer, seq in head.items()]
    message = Google["Handshake"](id=id, head=digests, mode=mode.upper()).SerializeToString()
    assert encode_handshake(id, head, mode) == frame(message)
    assert decode_handshake(message) == (id, head, mode)


@given(texts, seqs, st.lists(entries, max_size=5) | st.just([b"more"] * 130))
def test_protobuf_writes_the_same_changes(peer: str, first: int, some: list[bytes]) -> None:
    theirs = b""
    for seq, entry in enumerate(some[: MAX + 1 - first], first):
        theirs += frame(Google["Change"](peer=peer, seq=seq, entry=entry).SerializeToString())
    assert encode_changes(peer, first, some) == theirs


@pytest.mark.parametrize("name", ["Handshake", "Change"])
@settings(max_examples=60)
@given(data=st.data())
def test_protobuf_reads_a_well_formed_message_alike(name: str, data: st.DataObject) -> None:
    """With fields in any order, repeated and unknown, whole and cut at any byte."""
    message = data.draw(messages(name))
    for end in range(max(1, len(message) - 200), len(message) + 1):
        assert_read_alike(name, message[:end])


@settings(max_examples=120)
@given(messages("Change").filter(len) | st.binary(min_size=1, max_size=12), alterations)
def test_protobuf_reads_altered_bytes_alike(message: bytes, alterations: dict[int, int]) -> None:
    altered = bytearray(message)
    for at, byte in alterations.items():
        altered[at % len(altered)] = byte
    assert_read_alike("Change", bytes(altered))


GOOD = bytes.fromhex("0a0166 1001 1a0165")  # Change("f", 1, b"e")
RULES = {
    "the last of a kind": GOOD + bytes.fromhex("1002 0a0167 1a00"),
    "a varint of ten bytes": bytes.fromhex("0a0166 1081808080808080808000 1a0165"),
    "a varint of eleven bytes": bytes.fromhex("0a0166 108180808080808080808000 1a0165"),
    "a tag of five bytes": bytes.fromhex("8a808080000166 1001 1a0165"),
    "a tag of six bytes": bytes.fromhex("8a80808080000166 1001 1a0165"),
    "a length of five bytes": bytes.fromhex("0a818080800066 1001 1a0165"),
    "a length of six bytes": bytes.fromhex("0a81808080800066 1001 1a0165"),
    "a length behind the end": GOOD + bytes.fromhex("2205"),
    "a length of 2**31": GOOD + bytes.fromhex("228080808008"),
    "a length of 2**64 - 1": GOOD + bytes.fromhex("22ffffffffffffffffff01"),
    "the field number 0": GOOD + bytes.fromhex("0000"),
    "the greatest field number": GOOD + varint((2**29 - 1) << 3) + b"\0",
    "a field number too great": GOOD + varint(2**29 << 3) + b"\0",
    "wire type 6": GOOD + bytes.fromhex("26"),
    "wire type 7": GOOD + bytes.fromhex("27"),
    "a peer of the wrong wire type": bytes.fromhex("0801 1001 1a0165"),
    "a seq of the wrong wire type": bytes.fromhex("0a0166 120101 1a0165"),
    "an entry of the wrong wire type": bytes.fromhex("0a0166 1001 1801"),
}


@pytest.mark.parametrize("message", RULES.values(), ids=RULES.keys())
def test_the_rules_of_protobuf_hold(message: bytes) -> None:
    assert_read_alike("Change", message)


def changed_bytes(data: bytes) -> Iterator[bytes]:
    """`data` with every byte in turn set to every value, one added or the last one missing."""
    for at in range(len(data)):
        yield from (data[:at] + bytes([byte]) + data[at + 1 :] for byte in range(256))
    yield from (data + bytes([byte]) for byte in range(256))
    yield data[:-1]


HEADS = [(b"f", 1), (b"far", 300), (b"f" * 127, 1), (b"\x10" * 128, MAX), (b"", 1)]
DIGESTS = [string(1, peer) + b"\x10" + varint(seq) for peer, seq in HEADS]


@pytest.mark.parametrize("digest", DIGESTS, ids=len)
def test_a_digest_near_the_usual_one_is_read_as_protobuf_does(digest: bytes) -> None:
    """Usual digests are not read field by field. Nothing else may take this short cut."""
    for changed in [*changed_bytes(digest), digest + digest, digest + b"\x10\x05"]:
        assert_read_alike("Handshake", b"\x0a\x01g" + string(2, changed))


# --- Where we are stricter than protobuf ----------------------------------------------------------

# Each reads the fields of a peer and a number: in a change, in a digest, in a handshake.
READS: list[Read] = [
    lambda fields: decode_change(fields + b"\x1a\x00"),
    lambda fields: decode_handshake(b"\x0a\x01g" + string(2, fields)),
    decode_handshake,
]


@pytest.mark.parametrize("read", READS[:2])
@pytest.mark.parametrize("seq", [MAX + 1, MAX + 2, 2**63, 2**64 - 1])
def test_a_number_above_uint32_is_an_error_and_not_cut_to_size(seq: int, read: Read) -> None:
    """Cut to size, 2**32 + 1 would be stored as entry 1."""
    with pytest.raises(ValueError, match=rf"number {seq} where {MAX} is the most"):
        read(b"\x0a\x01f\x10" + varint(seq))


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("id", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"ok\x80"])
def test_an_id_that_is_not_utf8_is_an_error(id: bytes, read: Read) -> None:
    """Two ids that differ in such bytes alone would become one log."""
    with pytest.raises(UnicodeDecodeError):
        read(string(1, id) + b"\x10\x01")


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("group", ["23 1005 24", "13 1005 14", "23 24", "23", "24"])
def test_a_group_is_an_error(group: str, read: Read) -> None:
    """The original refuses it as well."""
    with pytest.raises(ValueError, match=r"a field of wire type [34]"):
        read(b"\x0a\x01f\x10\x01" + bytes.fromhex(group))


def test_a_change_is_not_taken_for_a_handshake() -> None:
    """Protobuf would: a handshake's id is where a change has its peer, and the rest is skipped."""
    with pytest.raises(ValueError, match="a change where the handshake has to be"):
        decode_handshake(GOOD)


def test_a_change_has_at_most_1000_fields() -> None:
    """One of 16 MiB would keep the event loop busy for many seconds."""
    unknown = b"\x20\x00"
    assert decode_change(GOOD + unknown * 997) == ("f", 1, b"e")
    with pytest.raises(ValueError, match="more than 1000 fields"):
        decode_change(GOOD + unknown * 998)
    assert decode_handshake(b"\x0a\x01g" + unknown * 2000) == ("g", {}, "sync")


# --- Frames ---------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(texts, seqs.filter(lambda seq: seq <= MAX - 200), st.lists(entries, max_size=4)),
        max_size=4,
    ),
    sizes,
)
@example([("far", MAX - 1, [b"a", b"b"]), ("far", 1, [b"c"])], [1000])
@example([("far", 125, [bytes(size) for size in (0, 1, 100, 127, 128, 20_000, 3)])], [1])
def test_changes_are_the_same_however_they_are_cut(runs: list[Run], sizes: list[int]) -> None:
    data = b"".join(encode_changes(*run) for run in runs)
    assert decode_changes(*cut(data, sizes)) == [c for run in runs for c in expand(*run)]


def test_a_run_of_one_log_comes_in_one_piece() -> None:
    """The check and the store, which come next, take their time for each run."""
    some = [b"%d" % seq for seq in range(1000)]
    of_all_sizes = [bytes(size) for size in [*range(300), 16_370, 0]]
    runs = [("far", 1, some), ("near", 7, some), ("far", 1, of_all_sizes)]
    decoder = Decoder()
    decoder.feed(b"".join(encode_changes(*run) for run in runs))
    assert list(decoder.changes()) == runs


@settings(max_examples=60)
@given(messages("Change"))
def test_an_unusual_change_among_usual_ones_is_read(message: bytes) -> None:
    """The usual ones are compared with what is expected and not read field by field."""
    change = google_reads("Change", message)
    assume(change and 2 <= change[1] < MAX)
    peer, seq, entry = change
    before = encode_changes(peer, seq - 2, [b"a", b"b"])
    after = encode_changes(peer, seq + 1, [b"c"])
    expected = list(expand(peer, seq - 2, [b"a", b"b", entry, b"c"]))
    assert decode_changes(before + frame(message) + after) == expected


@pytest.mark.parametrize("size", [1, 120, 121, 130, 300])
def test_a_frame_near_the_one_that_is_expected_is_read_as_it_is_alone(size: int) -> None:
    expected = encode_changes("far", 2, [bytes(size)])
    shown = encode_changes("far", 1, [b""])
    for changed in changed_bytes(expected[:12]):
        data = changed + expected[12:]
        alone, after = (attempt(decode_changes, before + data) for before in (b"", shown))
        assert after == (alone if isinstance(alone, str) else [("far", 1, b""), *alone])


@pytest.mark.parametrize("cutting", [[1], [10_000]], ids=["byte by byte", "at once"])
def test_frames_of_length_0_are_skipped(cutting: list[int]) -> None:
    """If those before the handshake were kept, they would be read at every byte."""
    nothing = b"\0" * 1000 + b"\x80\0" + b"\x80\x80\x80\0"
    decoder = Decoder()
    for piece in cut(nothing + encode_handshake("f", {}, "pull"), cutting):
        decoder.feed(piece)
        assert list(decoder.digests()) == []
    assert decoder.handshake == ("f", "pull", False)
    assert not decoder.pending
    changes = [encode_changes("f", seq, [b"e"]) for seq in (1, 2, 3)]
    pieces = cut(nothing.join([b"", *changes, b""]), cutting)
    assert decode_changes(*pieces) == [("f", seq, b"e") for seq in (1, 2, 3)]


@pytest.mark.parametrize("width", range(1, 11))
def test_a_length_may_be_longer_than_it_need_be(width: int) -> None:
    changes = [GOOD, GOOD.replace(b"\x01\x1a", b"\x02\x1a")]
    frames = b"".join(varint(len(change), width) + change for change in changes)
    for pieces in [frames], cut(frames, [1]):
        assert decode_changes(*pieces) == [("f", 1, b"e"), ("f", 2, b"e")]


TOO_LONG = [b"\x80" * 11, b"\xff" * 11, b"\x81" * 11, varint(MAX_SKIPPED + 1), varint(2**40)]


@pytest.mark.parametrize("first", [b"", frame(GOOD)], ids=["first", "later"])
@pytest.mark.parametrize("length", TOO_LONG)
def test_a_length_without_an_end_or_above_1_gib_is_refused(length: bytes, first: bytes) -> None:
    """It is refused as soon as the length is there, without a byte of the message."""
    # A length of which only a part is there says nothing of how much is to be waited for.
    for at in range(len(length)):
        with pytest.raises(ValueError, match="a frame of more than 1073741824 bytes"):
            decode_changes(first + length[:at], length[at:])


# --- What is too large to be kept -----------------------------------------------------------------


@pytest.mark.parametrize("cutting", [[1], [300], [10**6]], ids=str)
@pytest.mark.parametrize("most", [10, 100, 200, 20_000])
def test_an_entry_that_is_too_large_is_left_out(most: int, cutting: list[int]) -> None:
    entries = [b"a", bytes(most), bytes(most + 1), b"b", bytes(most + 300), bytes(3 * most), b"c"]
    decoder = Decoder(most)
    read: list[Any] = []
    for piece in cut(encode_changes("far", 125, entries), cutting):
        decoder.feed(piece)
        for peer, first, some in decoder.changes():
            read += expand(peer, first, some or [None])
        assert decoder.pending <= most + 269 + MAX_FIELD + len(piece) or not decoder._buffer
    expected = [entry if len(entry) <= most else None for entry in entries]
    assert read == list(expand("far", 125, expected))
    assert not decoder.pending


def test_the_fields_of_a_skipped_change_come_in_any_order() -> None:
    """As in protobuf, the last one of a kind counts."""
    near, far = string(1, b"near"), string(1, b"far")
    others = [b"\x10\x07", string(3, bytes(2000)), string(4, b"?" * 1500)]
    for parts in permutations([near, far, *others]):
        decoder = Decoder(100)
        decoder.feed(frame(b"".join(parts)) + encode_changes("us", 1, [b"x"]))
        last = "far" if parts.index(far) > parts.index(near) else "near"
        assert list(decoder.changes()) == [(last, 7, []), ("us", 1, [b"x"])]


def test_a_skipped_change_without_a_peer_or_a_number_is_an_error() -> None:
    """It is an error as if it were kept, because it is not known what is missing now."""
    entry = string(3, bytes(2000))
    for fields in b"\x10\x07", b"\x0a\x03far", b"\x10\x07\x23", b"\x0a\x03\xff\xff\xff":
        with pytest.raises(ValueError, match=r"peer or seq|wire type|codec"):
            decode_changes(frame(entry + fields), most=100)


def test_a_frame_of_16_mib_is_kept_and_a_larger_one_is_not() -> None:
    """The longest id and the largest number leave MAX_ENTRY for the entry."""
    peer, entry = "x" * 255, bytes(MAX_ENTRY)
    data = encode_changes(peer, MAX, [entry])
    assert len(data) == MAX_FRAME + len(varint(MAX_FRAME))
    assert decode_changes(data) == [(peer, MAX, entry)]
    decoder = Decoder()
    for piece in cut(encode_changes(peer, MAX, [entry + b"x"]), [65536]):
        decoder.feed(piece)
        assert len(decoder._buffer) < 2 * 65536
        runs = list(decoder.changes())
    assert runs == [(peer, MAX, [])]


def test_an_id_that_is_far_too_long_is_cut_off() -> None:
    """All that has to be known of it is that it is too long. Here the cut is within a character."""
    long = string(1, ("a" + "ü" * 10_000).encode())
    peer, seq, entry = decode_change(long + b"\x10\x01\x1a\x01x")
    assert (len(peer), peer[:4], seq, entry) == (513, "aüüü", 1, b"x")
    digests = string(2, long + b"\x10\x01") + string(2, b"\x0a\x01f\x10\x02")
    _, head, _ = decode_handshake(b"\x0a\x01g" + digests)
    assert [(peer[:4], seq) for peer, seq in head.items()] == [("aüüü", 0), ("f", 2)]


@given(messages("Handshake"), sizes)
def test_a_handshake_is_the_same_however_it_is_cut(message: bytes, sizes: list[int]) -> None:
    assert attempt(decode_handshake, message, sizes) == attempt(decode_handshake, message)


def test_a_handshake_of_many_logs_is_read_as_it_comes() -> None:
    """No large part of it is ever kept, and its digests are there before its end."""
    head = {f"{seq:032}": seq for seq in range(1, 20_001)}
    decoder = Decoder()
    found: dict[str, int] = {}
    for piece in cut(encode_handshake("far", head, "sync"), [1000]):
        assert decoder.pending == 0 or found or decoder.pending < 5000
        decoder.feed(piece)
        found.update(decoder.digests())
        assert len(decoder._buffer) < 2 * MAX_FIELD
    assert found == head
    assert decoder.handshake == ("far", "sync", False)


def test_what_came_before_an_error_is_read() -> None:
    decoder = Decoder()
    decoder.feed(encode_changes("f", 1, [b"a", b"b"]) + frame(b"\x0a\x01f") + frame(GOOD))
    changes = decoder.changes()
    assert next(changes) == ("f", 1, [b"a", b"b"])
    with pytest.raises(ValueError, match="a change without peer, seq or entry"):
        next(changes)
