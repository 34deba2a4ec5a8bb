"""The wire's frames, against Google's protobuf and what the original wrote."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from itertools import chain, permutations
from typing import Any, NamedTuple

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from google.protobuf.proto import serialize_length_prefixed
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wire import MAX, MODES, cut, frame, varint

from scuttleup.changes import expand
from scuttleup.limits import MAX_ENTRY, MAX_FIELD, MAX_FRAME, MAX_SKIPPED
from scuttleup.messages import Decoder, encode_changes, encode_handshake

AChange = tuple[str, int, bytes]

unhurried = settings(deadline=None)

# --- The oracle -----------------------------------------------------------------------------------


def google_classes() -> dict[str, Any]:
    """The message classes that protoc would make of the original's schema.proto."""
    kind = descriptor_pb2.FieldDescriptorProto
    string, uint32 = {"type": kind.TYPE_STRING}, {"type": kind.TYPE_UINT32}
    file = descriptor_pb2.FileDescriptorProto(name="schema.proto", syntax="proto2")
    modes = file.enum_type.add(name="Mode")
    for number, mode in enumerate(MODES, 1):
        modes.value.add(name=mode.upper(), number=number)
    head: Any = {"label": kind.LABEL_REPEATED, "type": kind.TYPE_MESSAGE, "type_name": ".Digest"}
    optional = {"label": kind.LABEL_OPTIONAL, "type": kind.TYPE_ENUM, "type_name": ".Mode"}
    schema: dict[str, dict[str, Any]] = {
        "Digest": {"peer": string, "seq": uint32},
        "Handshake": {"id": string, "head": head, "mode": optional | {"default_value": "SYNC"}},
        "Change": {"peer": string, "seq": uint32, "entry": {"type": kind.TYPE_BYTES}},
    }
    for name, fields in schema.items():
        message = file.message_type.add(name=name).field
        for number, (field, options) in enumerate(fields.items(), 1):
            message.add(name=field, number=number, **({"label": kind.LABEL_REQUIRED} | options))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in schema
    }


Google = google_classes()


def google_handshake(id: str, head: dict[str, int], mode: str | None) -> Any:
    digests = [Google["Digest"](peer=peer, seq=seq) for peer, seq in head.items()]
    number = None if mode is None else MODES.index(mode) + 1
    return Google["Handshake"](id=id, head=digests, mode=number)


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
    head = {digest.peer: digest.seq for digest in read.head}
    return Handshake(read.id, head, MODES[read.mode - 1])


# --- Ours -----------------------------------------------------------------------------------------


class Handshake(NamedTuple):
    id: str
    head: dict[str, int]
    mode: str


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
    id, mode = decoder.handshake
    return Handshake(id, head, mode)


def decoded(decoder: Decoder, *pieces: bytes) -> Iterator[AChange]:
    for piece in pieces:
        decoder.feed(piece)
        for run in decoder.changes():
            yield from ((c.peer, c.seq, c.entry) for c in expand(*run))


def decode_changes(*pieces: bytes) -> list[AChange]:
    decoder = Decoder()
    changes = list(decoded(decoder, *pieces))
    assert not decoder.pending
    return changes


def we_read(name: str, message: bytes) -> Any:
    """What we make of `message`, or the ValueError that we raise."""
    try:
        if name == "Handshake":
            return decode_handshake(message)
        (change,) = decode_changes(frame(message))
        return change
    except ValueError as error:
        return error


def is_stricter_than_google(error: object) -> bool:
    """Whether it is an error that protobuf does not know, one of those we want."""
    return isinstance(error, UnicodeDecodeError) or (
        isinstance(error, ValueError)
        and any(
            reason in str(error)
            for reason in (f"{MAX} is the most", "a change where the handshake", "wire type 3")
        )
    )


def assert_read_alike(name: str, message: bytes) -> None:
    ours, theirs = we_read(name, message), google_reads(name, message)
    if not is_stricter_than_google(ours):
        assert (None if isinstance(ours, ValueError) else ours) == theirs, ours


# --- What is generated ----------------------------------------------------------------------------

texts = st.text(max_size=8) | st.sampled_from(["x" * 127, "x" * 128, "ü" * 127])
entries = st.binary(max_size=12) | st.sampled_from(
    [bytes(size) for size in (115, 127, 128, 300, 16383, 16384)]
)
# Around every change of a varint's width.
edges = [1, *chain.from_iterable((2**bits - 1, 2**bits) for bits in (7, 14, 21, 28)), MAX - 1, MAX]
seqs = st.integers(0, MAX) | st.sampled_from(edges)
heads = st.dictionaries(texts, seqs, max_size=4)
# A tag or a length is one of 32 bits: five bytes at most.
widths = st.just(1) | st.integers(1, 5)
unknown_numbers = st.integers(4, 2**29 - 1) | st.sampled_from([4, 15, 16, 19000, 2**29 - 1])


@st.composite
def fields(draw: st.DrawFn, number: int, wire_type: int, payload: bytes | int) -> bytes:
    """One field as any encoder may write it, with varints longer than they need be."""
    tag = varint(number << 3 | wire_type, draw(widths))
    if isinstance(payload, int):
        return tag + varint(payload, draw(st.just(1) | st.integers(1, 10)))
    if wire_type == 2:
        return tag + varint(len(payload), draw(widths)) + payload
    return tag + payload


@st.composite
def strange_fields(draw: st.DrawFn) -> bytes:
    """A field that is to be skipped."""
    number = draw(unknown_numbers)
    wire_type = draw(st.sampled_from([0, 1, 2, 5]))
    if wire_type == 0:
        return draw(fields(number, 0, draw(st.integers(0, 2**64 - 1))))
    if wire_type == 2:
        return draw(fields(number, 2, draw(st.binary(max_size=8))))
    size = 8 if wire_type == 1 else 4
    return draw(fields(number, wire_type, draw(st.binary(min_size=size, max_size=size))))


@st.composite
def known_fields(draw: st.DrawFn, name: str, number: int) -> bytes:
    """A field of the schema with a value of its own type."""
    if name == "Handshake" and number == 2:
        return draw(fields(2, 2, draw(messages("Digest"))))
    if name == "Handshake" and number == 3:
        # An unknown mode is an unknown field. A negative one takes ten bytes.
        mode = draw(st.integers(0, 4) | st.sampled_from([2**31 - 1, 2**64 - 1]))
        return draw(fields(3, 0, mode))
    if number == 2:
        return draw(fields(2, 0, draw(seqs)))
    if number == 3:
        return draw(fields(3, 2, draw(entries)))
    return draw(fields(1, 2, draw(texts).encode()))


@st.composite
def messages(draw: st.DrawFn, name: str) -> bytes:
    """A message as a perverse encoder writes it: perhaps with too little, always well-formed."""
    numbers = draw(st.lists(st.integers(1, 3), max_size=3))
    if draw(st.integers(0, 9)):  # mostly with all that is required
        numbers += {"Digest": [1, 2], "Handshake": [1], "Change": [1, 2, 3]}[name]
    if name == "Digest":
        numbers = [number for number in numbers if number < 3]
    parts = [draw(known_fields(name, number)) for number in numbers]
    parts += draw(st.lists(strange_fields(), max_size=2))
    if draw(st.booleans()):
        # A known number with a wire type that it has not.
        wrong = {"Digest": (1, 0), "Handshake": (2, 5), "Change": (3, 1)}[name]
        size = {0: 1, 5: 4, 1: 8}[wrong[1]]
        parts.append(varint(wrong[0] << 3 | wrong[1]) + bytes(size))
    return b"".join(draw(st.permutations(parts)))


# --- Our frames -----------------------------------------------------------------------------------


@unhurried
@given(texts, heads, st.sampled_from(MODES))
def test_our_handshake_is_the_one_that_protobuf_writes(
    id: str, head: dict[str, int], mode: str
) -> None:
    theirs = io.BytesIO()
    serialize_length_prefixed(google_handshake(id, head, mode), theirs)
    assert encode_handshake(id, head, mode) == theirs.getvalue()
    message = google_handshake(id, head, mode).SerializeToString()
    assert decode_handshake(message) == (id, head, mode)


@unhurried
@given(texts, seqs, st.lists(entries, max_size=5), st.sampled_from([0, 1, 130]))
def test_our_changes_are_those_that_protobuf_writes(
    peer: str, first: int, some: list[bytes], more: int
) -> None:
    some = (some + [b"more"] * more)[: MAX + 1 - first]
    theirs = io.BytesIO()
    for seq, entry in enumerate(some, first):
        serialize_length_prefixed(Google["Change"](peer=peer, seq=seq, entry=entry), theirs)
    assert encode_changes(peer, first, some) == theirs.getvalue()


# --- Their frames ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Handshake", "Change"])
@settings(unhurried, max_examples=60)
@given(data=st.data())
def test_any_order_repetition_and_unknown_fields_are_read_as_protobuf_does(
    name: str, data: st.DataObject
) -> None:
    assert_read_alike(name, data.draw(messages(name)))


@pytest.mark.parametrize("name", ["Handshake", "Change"])
@settings(unhurried, max_examples=25)
@given(data=st.data())
def test_a_message_cut_at_any_byte_is_read_as_protobuf_does(name: str, data: st.DataObject) -> None:
    message = data.draw(messages(name).filter(lambda message: len(message) < 1000))
    for end in range(1, len(message)):
        assert_read_alike(name, message[:end])


@settings(unhurried, max_examples=60)
@given(messages("Change"), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4))
def test_a_change_with_bytes_altered_is_read_as_protobuf_does(
    message: bytes, alterations: list[tuple[int, int]]
) -> None:
    altered = bytearray(message or b"\0")
    for at, byte in alterations:
        altered[at % len(altered)] = byte
    assert_read_alike("Change", bytes(altered))


@unhurried
@given(st.binary(min_size=1, max_size=12))
def test_random_bytes_are_read_as_protobuf_does(message: bytes) -> None:
    assert_read_alike("Change", message)


GOOD = bytes.fromhex("0a0166 1001 1a0165")  # Change("f", 1, b"e")
GOOD_FRAME = frame(GOOD)


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
    "8 bytes cut off": GOOD + bytes.fromhex("2100000000000000"),
    "4 bytes cut off": GOOD + bytes.fromhex("25000000"),
    "no peer": bytes.fromhex("1001 1a0165"),
    "no seq": bytes.fromhex("0a0166 1a0165"),
    "no entry": bytes.fromhex("0a0166 1001"),
    "a peer of the wrong wire type": bytes.fromhex("0801 1001 1a0165"),
    "a seq of the wrong wire type": bytes.fromhex("0a0166 120101 1a0165"),
    "an entry of the wrong wire type": bytes.fromhex("0a0166 1001 1801"),
}


@pytest.mark.parametrize("message", RULES.values(), ids=RULES.keys())
def test_the_rules_of_protobuf_hold(message: bytes) -> None:
    assert_read_alike("Change", message)


@pytest.mark.parametrize("mode", [0, 4, 2**31 - 1, 2**64 - 1])
def test_an_unknown_mode_leaves_the_one_before_it(mode: int) -> None:
    before = google_handshake("f", {"g": 1}, "push").SerializeToString()
    message = before + b"\x18" + varint(mode)
    assert decode_handshake(message) == google_reads("Handshake", message)
    assert decode_handshake(message).mode == "push"


def test_a_known_number_with_another_wire_type_is_unknown() -> None:
    message = b"\x0a\x01f" + b"\x10\x05" + b"\x08\x05"
    assert decode_handshake(message) == google_reads("Handshake", message)


def changed_bytes(data: bytes) -> Iterator[bytes]:
    """`data` with every byte in turn set to every value, one added or the last one missing."""
    for at in range(len(data)):
        yield from (data[:at] + bytes([byte]) + data[at + 1 :] for byte in range(256))
    yield from (data + bytes([byte]) for byte in range(256))
    yield data[:-1]


@pytest.mark.parametrize(
    "digest",
    [
        Google["Digest"](peer=peer, seq=seq).SerializeToString()
        for peer, seq in [("f", 1), ("far", 300), ("f" * 127, 1), ("\x10" * 128, MAX), ("", 1)]
    ],
    ids=len,
)
def test_a_digest_near_the_usual_one_is_read_as_protobuf_does(digest: bytes) -> None:
    """Usual digests are not read field by field. What takes this short cut is to be one."""
    for changed in [*changed_bytes(digest), digest + digest, digest + b"\x10\x05"]:
        assert_read_alike("Handshake", b"\x0a\x01g\x12" + frame(changed))


def test_the_last_digest_of_a_log_counts() -> None:
    digests = [Google["Digest"](peer="f", seq=seq) for seq in (3, 1, 2)]
    message = Google["Handshake"](id="g", head=digests).SerializeToString()
    assert decode_handshake(message).head == {"f": 2}


# --- Where we are stricter than protobuf ----------------------------------------------------------


@pytest.mark.parametrize("seq", [MAX + 1, MAX + 2, 2**63, 2**64 - 1])
def test_a_number_above_uint32_is_an_error_and_not_cut_to_size(seq: int) -> None:
    """Cut to size, 2**32 + 1 would be stored as entry 1."""
    seq_field = b"\x10" + varint(seq)
    with pytest.raises(ValueError, match=rf"number {seq} where {MAX} is the most"):
        decode_changes(frame(b"\x0a\x01f" + seq_field + b"\x1a\x00"))
    digest = b"\x0a\x01f" + seq_field
    with pytest.raises(ValueError, match=rf"number {seq} where {MAX} is the most"):
        decode_handshake(b"\x0a\x01f\x12" + frame(digest))


@pytest.mark.parametrize("id", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"ok\x80"])
def test_an_id_that_is_not_utf8_is_an_error(id: bytes) -> None:
    """Two ids that differ in such bytes alone would become one log."""
    with pytest.raises(UnicodeDecodeError):
        decode_changes(frame(b"\x0a" + frame(id) + b"\x10\x01\x1a\x00"))
    with pytest.raises(UnicodeDecodeError):
        decode_handshake(b"\x0a" + frame(id))
    with pytest.raises(UnicodeDecodeError):
        decode_handshake(b"\x0a\x01f\x12" + frame(b"\x0a" + frame(id) + b"\x10\x01"))


def test_a_change_is_not_taken_for_a_handshake() -> None:
    """Protobuf would: a handshake's id is where a change has its peer, the rest is unknown."""
    with pytest.raises(ValueError, match="a change where the handshake has to be"):
        decode_handshake(GOOD)


@pytest.mark.parametrize("group", ["23 1005 24", "13 1005 14", "23 24", "23", "24"])
def test_a_group_is_an_error(group: str) -> None:
    """The original refuses it as well."""
    with pytest.raises(ValueError, match=r"a field of wire type [34]"):
        decode_changes(frame(GOOD + bytes.fromhex(group)))
    with pytest.raises(ValueError, match=r"a field of wire type [34]"):
        decode_handshake(b"\x0a\x01g" + bytes.fromhex(group))


def test_a_change_has_at_most_1000_fields() -> None:
    """One of 16 MiB would keep the event loop busy for many seconds."""
    unknown = b"\x20\x00"
    assert decode_changes(frame(GOOD + unknown * 997)) == [("f", 1, b"e")]
    with pytest.raises(ValueError, match="more than 1000 fields"):
        decode_changes(frame(GOOD + unknown * 998))
    assert decode_handshake(b"\x0a\x01g" + unknown * 2000).id == "g"


# --- Frames ---------------------------------------------------------------------------------------


@unhurried
@given(
    st.lists(
        st.tuples(texts, seqs.filter(lambda seq: seq <= MAX - 200), st.lists(entries, max_size=4)),
        max_size=4,
    ),
    st.lists(st.integers(1, 9) | st.integers(1, 2000), min_size=1),
)
@example([("far", MAX - 1, [b"a", b"b"]), ("far", 1, [b"c"])], [1000])
@example([("far", 125, [bytes(size) for size in (0, 1, 100, 127, 128, 20_000, 3)])], [1])
def test_any_cutting_of_the_bytes_gives_the_same_changes(
    runs: list[tuple[str, int, list[bytes]]], sizes: list[int]
) -> None:
    data = b"".join(encode_changes(*run) for run in runs)
    changes = [tuple(change) for run in runs for change in expand(*run)]
    assert decode_changes(*cut(data, sizes)) == changes


def test_a_run_of_one_log_comes_in_one_piece() -> None:
    """What comes after it, the check and the store, takes its time for each run."""
    some = [b"%d" % seq for seq in range(1000)]
    decoder = Decoder()
    decoder.feed(encode_changes("far", 1, some) + encode_changes("near", 7, some))
    assert list(decoder.changes()) == [("far", 1, some), ("near", 7, some)]
    of_all_sizes = [bytes(size) for size in [*range(300), 16_370, 0]]
    decoder.feed(encode_changes("far", 1, of_all_sizes))
    assert list(decoder.changes()) == [("far", 1, of_all_sizes)]


@settings(unhurried, max_examples=60)
@given(messages("Change").filter(lambda message: google_reads("Change", message) is not None))
def test_a_change_in_other_words_among_usual_ones_is_read(message: bytes) -> None:
    """The usual ones are compared with what is expected and not read field by field."""
    peer, seq, entry = google_reads("Change", message)
    before = encode_changes(peer, max(seq - 2, 0), [b"a", b"b"][: min(seq, 2)])
    after = encode_changes(peer, seq + 1, [b"c"][: MAX - seq])
    decoder = Decoder()
    changes = list(decoded(decoder, before + frame(message) + after))
    assert changes[min(seq, 2)] == (peer, seq, entry)
    assert [change[1] for change in changes] == [
        *range(max(seq - 2, 0), seq),
        *range(seq, min(seq + 1, MAX) + 1),
    ]


@pytest.mark.parametrize("size", [1, 120, 121, 130, 300])
def test_a_frame_near_the_one_that_is_expected_is_read_as_it_is_alone(size: int) -> None:
    expected = encode_changes("far", 2, [bytes(size)])
    shown = encode_changes("far", 1, [b""])
    for changed in changed_bytes(expected[:12]):
        data = changed + expected[12:]
        alone, after = Decoder(), Decoder()
        try:
            changes = list(decoded(alone, data))
        except ValueError as error:
            with pytest.raises(ValueError, match=re.escape(str(error))):
                list(decoded(after, shown + data))
        else:
            assert list(decoded(after, shown + data)) == [("far", 1, b""), *changes]
            assert alone.pending == after.pending


@pytest.mark.parametrize("cutting", [[1], [10_000]], ids=["byte by byte", "at once"])
def test_frames_of_length_0_are_skipped(cutting: list[int]) -> None:
    nothing = b"\0" * 5 + b"\x80\0" + b"\x80\x80\x80\0"
    changes = [nothing + encode_changes("f", seq, [b"e"]) for seq in (1, 2, 3)]
    pieces = cut(b"".join([*changes, nothing]), cutting)
    assert decode_changes(*pieces) == [("f", 1, b"e"), ("f", 2, b"e"), ("f", 3, b"e")]


@pytest.mark.parametrize("cutting", [[1], [10_000]], ids=["byte by byte", "at once"])
def test_frames_of_length_0_before_the_handshake_are_skipped(cutting: list[int]) -> None:
    """Kept, they would be memory without a limit, and read again with every byte that comes."""
    decoder = Decoder()
    for piece in cut(b"\0" * 1000 + b"\x80\0" + encode_handshake("f", {}, "pull"), cutting):
        decoder.feed(piece)
        assert list(decoder.digests()) == []
    assert decoder.handshake == ("f", "pull")
    assert not decoder.pending


@pytest.mark.parametrize("width", range(1, 11))
def test_a_length_may_be_longer_than_it_need_be(width: int) -> None:
    frames = b"".join(
        varint(len(GOOD), width) + GOOD[:4] + bytes([seq]) + GOOD[5:] for seq in (1, 2)
    )
    assert decode_changes(frames) == [("f", 1, b"e"), ("f", 2, b"e")]
    assert decode_changes(*cut(frames, [1])) == [("f", 1, b"e"), ("f", 2, b"e")]


@pytest.mark.parametrize("first", [b"", GOOD_FRAME], ids=["first", "later"])
@pytest.mark.parametrize("byte", [b"\x80", b"\xff", b"\x81"])
def test_a_length_without_an_end_or_above_1_gib_is_refused(byte: bytes, first: bytes) -> None:
    """By its last byte: not one byte of the message has to come."""
    too_long = varint(MAX_SKIPPED + 1)
    for length in (byte * 11, too_long, varint(2**40)):
        with pytest.raises(ValueError, match="a frame of more than 1073741824 bytes"):
            decode_changes(first + length)
    # A length of which only a part is there says nothing of how much is to be waited for.
    for at in range(1, len(too_long)):
        with pytest.raises(ValueError, match="a frame of more than 1073741824 bytes"):
            decode_changes(first + too_long[:at], too_long[at:])


# --- What is too large to be kept -----------------------------------------------------------------


@pytest.mark.parametrize("cutting", [[1], [300], [10**6]], ids=str)
@pytest.mark.parametrize("most", [10, 100, 200, 20_000])
def test_an_entry_that_is_too_large_is_not_given_out_and_what_follows_is(
    most: int, cutting: list[int]
) -> None:
    entries = [b"a", bytes(most), bytes(most + 1), b"b", bytes(most + 300), bytes(3 * most), b"c"]
    decoder = Decoder(most)
    runs = []
    for piece in cut(encode_changes("far", 125, entries), cutting):
        decoder.feed(piece)
        runs += list(decoder.changes())
        assert decoder.pending <= most + 269 + MAX_FIELD + len(piece) or not decoder._buffer
    given = {(seq, entry) for _, first, some in runs for seq, entry in enumerate(some, first)}
    assert given == {(125, b"a"), (126, bytes(most)), (128, b"b"), (131, b"c")}
    assert [first for _, first, some in runs if not some] == [127, 129, 130]
    assert {peer for peer, _, _ in runs} == {"far"}
    assert not decoder.pending


def test_the_fields_of_a_skipped_change_come_in_any_order() -> None:
    """And the last of a kind counts."""
    near, far = b"\x0a\x04near", b"\x0a\x03far"
    others = [b"\x10\x07", b"\x1a" + frame(bytes(2000)), b"\x22" + frame(b"?" * 1500)]
    for parts in permutations([near, far, *others]):
        decoder = Decoder(100)
        decoder.feed(frame(b"".join(parts)) + encode_changes("us", 1, [b"x"]))
        last = "far" if parts.index(far) > parts.index(near) else "near"
        assert list(decoder.changes()) == [(last, 7, []), ("us", 1, [b"x"])]


def test_a_skipped_change_without_a_peer_or_a_number_is_an_error() -> None:
    """As it would be if it were kept: it is not known what is missing now."""
    for fields in (b"\x10\x07", b"\x0a\x03far", b"\x10\x07\x23", b"\x0a\x03\xff\xff\xff"):
        with pytest.raises(ValueError, match=r"peer or seq|wire type|codec"):
            list(decoded(Decoder(100), frame(b"\x1a" + frame(bytes(2000)) + fields)))


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


def test_an_id_without_an_end_is_cut_off() -> None:
    """It is too long to be one, and that is all that is wanted of it. Here in half a character."""
    long = ("a" + "ü" * 10_000).encode()
    ((peer, seq, entry),) = decode_changes(frame(b"\x0a" + frame(long) + b"\x10\x01\x1a\x01x"))
    assert (len(peer), peer[:4], seq, entry) == (513, "aüüü", 1, b"x")
    digests = decode_handshake(
        b"\x0a\x01g\x12" + frame(b"\x0a" + frame(long) + b"\x10\x01") + b"\x12\x05\x0a\x01f\x10\x02"
    ).head
    assert [(peer[:4], seq) for peer, seq in digests.items()] == [("aüüü", 0), ("f", 2)]


@unhurried
@given(messages("Handshake"), st.lists(st.integers(1, 9) | st.integers(1, 2000), min_size=1))
def test_a_handshake_is_the_same_however_it_is_cut(message: bytes, sizes: list[int]) -> None:
    def read(sizes: list[int]) -> Any:
        try:
            return decode_handshake(message, sizes)
        except ValueError as error:
            return str(error)

    assert read(sizes) == read([MAX_FRAME])


def test_a_handshake_of_many_logs_is_read_as_it_comes() -> None:
    """A part of it is never kept, and its digests are there before its end."""
    head = {f"{seq:032}": seq for seq in range(1, 20_001)}
    decoder = Decoder()
    found: dict[str, int] = {}
    for piece in cut(encode_handshake("far", head, "sync"), [1000]):
        assert decoder.pending == 0 or found or decoder.pending < 5000
        decoder.feed(piece)
        found.update(decoder.digests())
        assert len(decoder._buffer) < 2 * MAX_FIELD
    assert found == head
    assert decoder.handshake == ("far", "sync")


def test_what_came_before_an_error_is_read() -> None:
    decoder = Decoder()
    decoder.feed(encode_changes("f", 1, [b"a", b"b"]) + frame(b"\x0a\x01f") + frame(GOOD))
    changes = decoder.changes()
    assert next(changes) == ("f", 1, [b"a", b"b"])
    with pytest.raises(ValueError, match="a change without peer, seq or entry"):
        next(changes)


# --- The original ---------------------------------------------------------------------------------

# Recorded from scuttleup 3.3.0 on Node 20.
HANDSHAKES = [
    ("160a06666f6f626172120a0a06666f6f62617210021801", "foobar", {"foobar": 2}, "sync"),
    (
        "230a06666f6f626172120a0a06666f6f6261721003120b0a0366617210ffffffff0f1802",
        "foobar",
        {"foobar": 3, "far": MAX},
        "push",
    ),
    ("160a06c3bcf09f9880120a0a06c3bcf09f988010011803", "ü😀", {"ü😀": 1}, "pull"),
]
RUNS: list[tuple[str, str, int, list[bytes]]] = [
    ("110a06666f6f62617210011a0568656c6c6f", "foobar", 1, [b"hello"]),
    (
        "110a06666f6f62617210011a0568656c6c6f0c0a06666f6f62617210021a00"
        "d5010a06666f6f62617210031ac801" + "78" * 200,
        "foobar",
        1,
        [b"hello", b"", b"x" * 200],
    ),
    ("0c0a0366617210ac021a0200ff", "far", 300, [b"\x00\xff"]),
    ("110a0366617210ffffffff0f1a046c617374", "far", MAX, [b"last"]),
    ("180a06c3bcf09f988010011a0c6772c3bcc39f6520f09f9880", "ü😀", 1, ["grüße 😀".encode()]),
]


@pytest.mark.parametrize(("recorded", "id", "head", "mode"), HANDSHAKES)
def test_a_handshake_is_the_original_s(
    recorded: str, id: str, head: dict[str, int], mode: str
) -> None:
    data = bytes.fromhex(recorded)
    assert encode_handshake(id, head, mode) == data
    assert decode_handshake(data[1:]) == Handshake(id, head, mode)


@pytest.mark.parametrize(("recorded", "peer", "first", "some"), RUNS)
def test_changes_are_the_original_s(
    recorded: str, peer: str, first: int, some: list[bytes]
) -> None:
    data = bytes.fromhex(recorded)
    assert encode_changes(peer, first, some) == data
    assert decode_changes(data) == [(peer, seq, entry) for seq, entry in enumerate(some, first)]
