"""The frames of the wire, byte for byte those of the original.

A frame is the length of a message, as a varint, and then the message. A frame of length 0 is
skipped. The first message of each side is a Handshake, every later message a Change, both in
Protocol Buffers (proto2):

    message Handshake {
      required string id = 1;
      repeated Digest head = 2;
      optional Mode mode = 3 [default = SYNC];
      optional uint32 reports = 1000;
    }
    message Digest { required string peer = 1; required uint32 seq = 2; }
    message Change { required string peer = 1; required uint32 seq = 2; required bytes entry = 3; }
    enum Mode { SYNC = 1; PUSH = 2; PULL = 3; }

If both handshakes have `reports`, which the original does not know and skips, a message may also be
a Report. The first field tells a Report from a Change, which has no such number:

    message Report {
      optional uint64 taken = 1001;
      optional uint64 lost = 1002;
      repeated Refusal refused = 1003;
      optional uint32 complete = 1004;
      optional uint64 unwanted = 1005;
    }
    message Refusal {
      required string peer = 1;
      optional uint32 seq = 2;
      required bytes reason = 3;
      optional bytes proof = 4;
    }

The source for the encoding is https://protobuf.dev/programming-guides/encoding/. As there, fields
come in any order, the last one of a kind counts, and unknown fields are skipped. A known number
with another wire type is unknown, too. Here, and not there, these are errors: a seq that is too
large for its type, text that is not UTF-8, a group (which the original refuses as well), a Change
of more than 1,000 fields, and a Change where the Handshake should be.

For example, peer `foobar`, which has two entries, begins with these two frames. The lengths, the
tags and the numbers are in hex here:

    16  0a 06 "foobar"  12 0a (0a 06 "foobar" 10 02)  18 01      id, one digest, mode SYNC
    11  0a 06 "foobar"  10 01  1a 05 "hello"                     peer, seq, entry

A tag is the number of a field, times 8, plus its wire type: 0 for a varint, 2 for bytes with their
length before them.

Theory of operation
-------------------

A remote chooses how large its messages are, so a `Decoder` keeps as little of them as possible:

* A Change is kept until all of it is there, because the entry is wanted in one piece. The largest
  has 16 MiB.
* A larger Change is not kept. All fields are read as they come and dropped, but for the peer and
  the number: whoever receives has to know in which log an entry is missing now.
* A Handshake is read as it comes, too, a digest at a time. So it may be of any size, and costs as
  much as the receiver keeps of the digests.

At most MAX_FIELD bytes are kept of a field that is read in parts. That is enough for every peer id
and every digest that can be valid, so a field that had to be cut off is known to be invalid.

So a `Decoder` remembers little between two calls: the bytes that have come and were not read, which
are less than one frame that is kept, and the state of at most one message that is read in parts. A
frame begins exactly where the frame before has ended, so a `Decoder` that has raised an error can
never find the next frame: the connection is given up.

Most changes follow the one before in the same log, and most messages have their fields in the usual
order. Both kinds are decoded by a comparison with the bytes expected. Everything else takes
the general way, field by field, which gives the same answer in two to five times the time.

Everything here raises ValueError for bytes that cannot be read. A peer id need not be valid to be
read: the receiver checks the id, since one bad id is no reason to refuse the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from operator import add
from typing import Any, Literal, NamedTuple

from ..limits import MAX_ENTRY, MAX_FIELD, MAX_FRAME, MAX_SEQ, MAX_SKIPPED

# The modes by their numbers on the wire, less one.
Mode = Literal["sync", "push", "pull"]
MODES: tuple[Mode, ...] = ("sync", "push", "pull")
# The most fields that a Change may have. A look through a hostile Change of 16 MiB took 14 s.
_MAX_FIELDS = 1000
# The most bytes that are read of a field before its contents: a tag of 5 bytes and a number of 10.
_MAX_PREFIX = 5 + 10
# How many digests are encoded at once. This takes less than 1 ms and at most 270 KiB.
_DIGESTS = 1000

# Every byte as bytes of length 1.
_BYTE = [bytes([byte]) for byte in range(256)]
# How many bytes a value takes as a varint, by its number of bits. Each byte has 7 of them.
_VARINT_SIZES = bytes(max(1, (bits + 6) // 7) for bits in range(256))


class Handshake(NamedTuple):
    """The contents of a handshake beside its digests: who speaks, and in which mode."""

    id: str
    mode: str
    # Whether the speaker sends reports, and reads them.
    reports: bool = False


class Refusal(NamedTuple):
    """A log that one side leaves out from entry `seq` on, and why."""

    peer: str
    seq: int
    reason: str
    # Where the author has signed two entries of that number: SHA-256 and signature of the other.
    proof: bytes = b""


class Report(NamedTuple):
    """How far a side has come with the changes of the other side, and with its own."""

    # How many changes came.
    taken: int = 0
    # How many of them are not in the log here, and how many are of logs that are not wanted here.
    lost: int = 0
    unwanted: int = 0
    # Whether all was sent that the other side lacked at the handshake.
    complete: bool = False
    # The logs that are left out and were not named before.
    refused: tuple[Refusal, ...] = ()


def handshake_pieces(id: str, head: Mapping[str, int], mode: str, reports: bool) -> Iterator[bytes]:
    """The frame of a Handshake in pieces, so that a long frame can be made and sent in turns.

    `id` is who speaks, `head` has the last number of every log that they hold, and `mode` is one of
    MODES. Each piece but the last has 1,000 digests. The ids have to be valid.

    >>> b"".join(handshake_pieces("foobar", {"foobar": 2}, "sync", reports=False)).hex()[:8]
    '160a0666'
    """
    # The bytes before the digests and after them: the id, and the tag and number of the mode.
    before, after = _string(1, id), b"\x18" + _varint(MODES.index(mode) + 1)
    if reports:
        after += _number(1000, 1)
    parts = [_varint(len(before) + digests_size(head) + len(after)), before]
    for count, (peer, seq) in enumerate(head.items(), 1):
        name = peer.encode()
        # Field 1 is the peer and field 2 the number. The digest itself is field 2 of the Handshake.
        digest = b"\x0a%b%b\x10%b" % (_varint(len(name)), name, _varint(seq))
        parts += (b"\x12", _varint(len(digest)), digest)
        if count % _DIGESTS == 0:
            yield b"".join(parts)
            parts = []
    yield b"".join((*parts, after))


def digests_size(head: Mapping[str, int]) -> int:
    """How many bytes the digests of `head` take in a handshake.

    The length stands before the frame, so nothing can be sent without the length. Loops in C
    compute the length in a tenth of the time that the encoding takes.
    """
    # A digest takes five bytes more than the peer and the number where both lengths take a byte.
    # They do for each id of up to 57 characters, because none of these takes more than two bytes.
    seqs = sum(bytes(map(int.bit_length, head.values())).translate(_VARINT_SIZES))
    size = len("".join(head).encode()) + seqs + 5 * len(head)
    for peer in [peer for peer in head if len(peer) > 57]:
        name = len(peer.encode())
        digest = 2 + len(_varint(name)) + name + len(_varint(head[peer]))
        size += len(_varint(name)) + len(_varint(digest)) - 2
    return size


def encode_report(report: Report) -> bytes:
    """The frame of a Report. A number that is 0 is left out.

    >>> encode_report(Report(taken=7)).hex()
    '03c83e07'
    """
    parts = [_number(1001, report.taken)]
    counts = (1002, report.lost), (1004, report.complete), (1005, report.unwanted)
    parts += [_number(number, int(value)) for number, value in counts if value]
    for peer, seq, reason, proof in report.refused:
        refusal = _string(1, peer) + (_number(2, seq) if seq else b"") + _string(3, reason)
        refusal += b"\x22" + _varint(len(proof)) + proof if proof else b""
        parts += (_varint(1003 << 3 | 2), _varint(len(refusal)), refusal)
    message = b"".join(parts)
    return _varint(len(message)) + message


def encode_changes(peer: str, first: int, entries: Iterable[bytes]) -> bytes:
    """The frames of the Changes of `peer` from number `first` on, one for each of `entries`.

    The bytes before an entry depend on three things that rarely change: the size of the entry, the
    size of the number, and the peer. So most of these bytes are made once.
    """
    parts: list[bytes] = []
    prefix_size = entry_size = 0
    for prefix, entry in zip(_change_prefixes(peer, first), entries, strict=False):
        if len(entry) != entry_size or len(prefix) != prefix_size:
            prefix_size, entry_size = len(prefix), len(entry)
            varint = _remembered if entry_size < _LARGE else _varint
            before_entry = varint(entry_size)
            before_prefix = varint(prefix_size + len(before_entry) + entry_size)
        parts += (before_prefix, prefix, before_entry, entry)
    return b"".join(parts)


def _change_prefixes(peer: str, seq: int) -> Iterator[bytes]:
    """The beginnings of the Changes of `peer`, from number `seq` on: all up to the entry's size."""
    # Up to 128 prefixes in a row differ in a single byte, because the first byte of a varint has
    # the lowest 7 bits.
    before_seq = _string(1, peer) + b"\x10"
    while seq <= MAX_SEQ:
        low, high = seq & 0x7F, seq >> 7
        lows = _BYTE[0x80 + low :] if high else _BYTE[low:0x80]
        after_low = (_varint(high) if high else b"") + b"\x1a"
        yield from map(add, map(add, repeat(before_seq), lows), repeat(after_low))
        seq += 0x80 - low


class Decoder:
    """Cuts the incoming bytes into a handshake and, then, changes.

    First take the `digests` after every `feed`, until there is a `handshake`; then the `changes`.
    An entry of more than `max_entry` bytes is not given out. Everything here raises ValueError for
    bytes that are wrong; after that the decoder cannot be used any more.

    >>> decoder = Decoder()
    >>> decoder.feed(encode_handshake("foobar", {"foobar": 2}, "sync"))
    >>> list(decoder.digests()), decoder.handshake
    ([('foobar', 2)], Handshake(id='foobar', mode='sync'))
    """

    def __init__(self, max_entry: int = MAX_ENTRY) -> None:
        # The handshake without its digests, once all of it was read.
        self.handshake: Handshake | None = None
        # The reports that came among the changes, for `decode_report`. Whoever takes them empties
        # this.
        self.reports: list[bytes] = []
        # How many bytes the frames had that came after the handshake and were read to their end.
        self.complete = 0
        self._max_entry = max_entry
        # The size of the largest Change whose entry is given out.
        self._max_frame = max_entry + MAX_FRAME - MAX_ENTRY
        # The bytes that have come and were not read yet.
        self._buffer = bytearray()
        # The message that is read in parts, if there is any.
        self._coming: _Coming | None = None
        # The fields of that message that were read, by their numbers.
        self._found: dict[int, Any] = {}

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the connection."""
        self._buffer += data

    @property
    def pending(self) -> int:
        """How many bytes have come of a frame that is not complete."""
        return len(self._buffer) + (self._coming.taken if self._coming else 0)

    @property
    def kept(self) -> int:
        """How many bytes of these are in memory."""
        return len(self._buffer)

    def digests(self) -> Iterator[tuple[str, int]]:
        """The digests of the handshake that have come: (peer, last number).

        The number is 0 for a digest that is too long to be kept, and may be 0 for others, too. When
        the last one was taken, `handshake` is there.
        """
        if self._coming is None:
            start, end = self._frame(0)
            # A frame of length 0 says nothing.
            while start == end:
                del self._buffer[:end]
                start, end = self._frame(0)
            if start == 0:
                return
            self._begin(start, end)
        assert self._coming
        for number, value in self._coming.fields(self._buffer):
            if number == 2 and isinstance(value, bytes):
                yield _decode_digest(value)
            elif number == 1 and isinstance(value, bytes):
                self._found[1] = _text(value)
            elif number == 3:
                if isinstance(value, bytes):
                    # Field 3 of a Change is its entry: bytes, where a Handshake has a number.
                    raise ValueError("a change where the handshake has to be")
                if 1 <= value <= len(MODES):
                    self._found[3] = MODES[value - 1]
            elif number == 1000:
                self._found[1000] = value == 1
        if not self._coming.left:
            self._coming = None
            if 1 not in self._found:
                raise ValueError("a handshake without an id")
            mode, reports = self._found.get(3, "sync"), self._found.get(1000, False)
            self.handshake = Handshake(self._found[1], mode, reports)

    def changes(self) -> Iterator[tuple[str, int, list[bytes]]]:
        """The changes that have come, in runs: (peer, first number, entries).

        A run ends at a gap, before a change of another log, and where the bytes that have come end.
        A run without entries stands for a single change of that number whose entry is too large.
        """
        while True:
            if self._coming is None:
                yield from self._whole_changes()
            if self._coming is None:
                return
            self._found |= _known(self._coming.fields(self._buffer))
            if self._coming.left:
                return
            self.complete += self._coming.taken
            self._coming = None
            if not {1, 2} <= self._found.keys():
                raise ValueError("a change without peer or seq")
            yield self._found[1], self._found[2], []

    def _whole_changes(self) -> Iterator[tuple[str, int, list[bytes]]]:
        """The changes that are all there, up to a change that is too large to be kept."""
        # Two bytes more than have come let `_read_on` look ahead at the end.
        pos, size, most = 0, len(self._buffer), self._max_frame
        start, end = self._frame(pos)
        buffer = b"".join((self._buffer, b"\0\0")) if end <= size else b""
        while end <= size and end - start <= most:
            pos = end
            # A first field with a number from 1001 to 1005 has these two bytes as tag.
            if start < end and 0xC8 <= buffer[start] < 0xF0 and buffer[start + 1] == 0x3E:
                self.reports.append(buffer[start:end])
            elif start < end:
                peer, first, entry = _decode_change(buffer, start, end)
                entries = [entry]
                # The tag, the length and the id of the peer. Whether the next frame begins with the
                # same peer decides if it pays to make the prefixes, which takes 1.5 µs.
                begins = buffer[start : start + 2 + buffer[start + 1]]
                if len(entry) > self._max_entry:
                    entries = []
                # The length stands before that, and takes one byte or two.
                elif buffer.startswith(begins, end + 1) or buffer.startswith(begins, end + 2):
                    pos = self._read_on(buffer, pos, _change_prefixes(peer, first + 1), entries)
                yield peer, first, entries
            # The same as `_frame` does, in line for a length of one byte.
            if pos < size and buffer[pos] < 0x80:
                start, end = pos + 1, pos + 1 + buffer[pos]
            else:
                start, end = self._frame(pos)
        del self._buffer[:pos]
        self.complete += pos
        if end - start > most:
            self._begin(start - pos, end - pos)

    def _read_on(
        self, buffer: bytes, pos: int, prefixes: Iterator[bytes], entries: list[bytes]
    ) -> int:
        """Add the entries of the Changes that begin with `prefixes`, and return where they end.

        The first bytes of a Change that follows the Change before are known, so a comparison
        decodes the Change: 0.4 µs instead of 2 µs. Lengths of one byte or two, the usual ones, are
        read in line. Where anything is unusual this stops, and the general way goes on.
        """
        # The caller has added two bytes at the end of the buffer, which have not come.
        size, limit = len(buffer) - 2, self._max_entry
        for prefix in prefixes:
            length = buffer[pos]
            at = pos + 1
            if length > 0x7F:
                if buffer[at] > 0x7F:
                    break
                length += (buffer[at] << 7) - 0x80
                at += 1
            end = at + length
            if end > size or length > limit or not buffer.startswith(prefix, at):
                break
            at += len(prefix)
            length = buffer[at]
            at += 1
            if length > 0x7F:
                length += (buffer[at] << 7) - 0x80
                at += 1
            # The entry must end where the message does. That is never so if the length takes three
            # bytes.
            if at + length != end:
                break
            entries.append(buffer[at:end])
            pos = end
        return pos

    def _begin(self, start: int, end: int) -> None:
        """Read the message from `start` to `end`, before which the length stands, in parts."""
        del self._buffer[:start]
        self._coming = _Coming(start, end - start)
        self._found = {}

    def _frame(self, pos: int) -> tuple[int, int]:
        """Where the message of the frame at `pos` begins and ends, perhaps behind the buffer.

        As long as not all of the length has come, the message seems to begin at `pos`, and to end
        behind the buffer. Raises ValueError if the message is longer than MAX_SKIPPED.
        """
        length = shift = 0
        for start in range(pos, len(self._buffer)):
            byte = self._buffer[start]
            length |= (byte & 0x7F) << shift
            # A varint has at most 10 bytes.
            if length > MAX_SKIPPED or shift > 63:
                raise ValueError(f"a frame of more than {MAX_SKIPPED} bytes")
            if byte < 0x80:
                return start + 1, start + 1 + length
            shift += 7
        return pos, len(self._buffer) + 1


class _Coming:
    """A message that is read in parts, because the whole is too large to be kept.

    The bytes that can be read are taken from the buffer, and the rest is counted.
    """

    def __init__(self, taken: int, left: int) -> None:
        # How many bytes of the frame were read, the length included.
        self.taken = taken
        # How many bytes of the message were not.
        self.left = left
        # How many of these belong to a field that was given out already. They are dropped when they
        # come.
        self._skip = 0

    def fields(self, buffer: bytearray) -> Iterator[tuple[int, int | bytes]]:
        """Take from the buffer the fields that have come: those with a varint or bytes.

        Bytes are cut off after MAX_FIELD.
        """
        self._skip -= self._drop(buffer, self._skip)
        data = bytes(buffer if len(buffer) <= self.left else buffer[: self.left])
        # A field is read as soon as all bytes of it that are ever used have come. At the end of the
        # message there is nothing to wait for.
        enough = len(data) if len(data) == self.left else len(data) - _MAX_PREFIX - MAX_FIELD + 1
        pos = 0
        while pos < enough:
            number, value, pos = _decode_field(data, pos, self.left, MAX_FIELD)
            if value is not None:
                yield number, value
        self._skip += pos - self._drop(buffer, pos)

    def _drop(self, buffer: bytearray, count: int) -> int:
        """Take so many bytes from the buffer, or all if there are fewer; return how many."""
        count = min(count, len(buffer))
        del buffer[:count]
        self.taken += count
        self.left -= count
        return count


def _decode_digest(message: bytes) -> tuple[str, int]:
    """The peer and the number in a Digest. The number is 0 if the digest was cut off."""
    size = len(message)
    # The digest was cut off, so it is too long to be valid. Only the peer is told, if that came
    # first.
    if size == MAX_FIELD:
        length, start = _decode_varint(message, 1, 5) if message[0] == 0x0A else (0, 0)
        return message[start : start + length].decode(errors="replace"), 0
    # The usual order takes half the time like this, and there may be 100,000 digests.
    end = 2 + message[1] if size > 4 and message[0] == 0x0A else 0
    if 2 <= end < min(0x82, size - 1) and message[end] == 0x10:
        last, pos = _decode_varint(message, end + 1)
        if pos == size:
            return message[2:end].decode(), _uint32(last)
    found = _known(_fields(message))
    if not {1, 2} <= found.keys():
        raise ValueError("a digest without peer or seq")
    return found[1], found[2]


def decode_report(message: bytes) -> Report:
    """A Report. A number that is missing is 0."""
    found: dict[int, Any] = {}
    refused: list[Refusal] = []
    for number, value in _fields(message):
        if isinstance(value, int):
            found[number] = value
        elif number == 1003:
            fields = dict(_fields(value))
            known = _known(fields.items())
            if not {1, 3} <= known.keys():
                raise ValueError("a refusal without peer or reason")
            reason, proof = known[3].decode(errors="replace"), fields.get(4, b"")
            proof = proof if isinstance(proof, bytes) else b""
            refused.append(Refusal(known[1], known.get(2, 0), reason, proof))
    taken, lost, complete, unwanted = (found.get(at, 0) for at in (1001, 1002, 1004, 1005))
    return Report(taken, lost, unwanted, complete == 1, tuple(refused))


def _decode_change(buffer: bytes, start: int, end: int) -> tuple[str, int, bytes]:
    """The peer, the number and the entry in the Change from `start` to `end`."""
    # The usual order takes a third of the time like this. That matters because a hostile remote may
    # send a change of another log each time, which no comparison with the change before can read.
    after_peer = start + 2 + buffer[start + 1]
    if buffer[start] == 0x0A and after_peer < min(start + 0x82, end) and buffer[after_peer] == 0x10:
        last, pos = _decode_varint(buffer, after_peer + 1, min(10, end - after_peer - 1))
        if pos < end and buffer[pos] == 0x1A:
            size, pos = _decode_varint(buffer, pos + 1, min(5, end - pos - 1))
            if pos + size == end:
                return buffer[start + 2 : after_peer].decode(), _uint32(last), buffer[pos:end]
    found = _known(_fields(buffer[start:end]))
    if len(found) < 3:
        raise ValueError("a change without peer, seq or entry")
    return found[1], found[2], found[3]


def _known(fields: Iterable[tuple[int, int | bytes]]) -> dict[int, Any]:
    """The last peer (1), number (2) and entry (3) among the fields of a Change or a Digest."""
    found: dict[int, Any] = {}
    for number, value in fields:
        if number == 2 and isinstance(value, int):
            found[2] = _uint32(value)
        elif number in (1, 3) and isinstance(value, bytes):
            found[number] = _text(value) if number == 1 else value
    return found


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message that is complete: the number, and a varint or bytes."""
    pos, end = 0, len(message)
    for _ in range(_MAX_FIELDS):
        if pos == end:
            return
        number, value, pos = _decode_field(message, pos, end, end)
        if value is not None:
            yield number, value
    if pos < end:
        raise ValueError(f"a message of more than {_MAX_FIELDS} fields")


def _decode_field(
    buffer: bytes, pos: int, end: int, most: int
) -> tuple[int, int | bytes | None, int]:
    """The number and the value of the field at `pos`, and where the next field begins.

    The value is an int or bytes, or None for a wire type that no known field has. Bytes are cut off
    after `most`. The message ends at `end`.
    """
    # A tag and a length have 32 bits, so at most 5 bytes.
    tag, pos = _decode_varint(buffer, pos, 5)
    number, wire_type = tag >> 3, tag & 7
    value: int | bytes | None = None
    if wire_type == 0:
        value, pos = _decode_varint(buffer, pos)
    elif wire_type == 2:
        length, start = _decode_varint(buffer, pos, 5)
        pos = start + length
        value = buffer[start : min(pos, start + most)]
    elif wire_type == 1:
        pos += 8
    elif wire_type == 5:
        pos += 4
    else:
        raise ValueError(f"a field of wire type {wire_type}")
    if not 0 < number < 1 << 29:
        raise ValueError(f"a field with the number {number}")
    if pos > end:
        raise ValueError("a message that ends in the middle of a field")
    return number, value, pos


def _decode_varint(buffer: bytes, pos: int, most: int = 10) -> tuple[int, int]:
    """The number that stands at `pos` in at most `most` bytes, and where it ends.

    Each byte has 7 bits of the number, the lowest bits first; the eighth bit says that more bytes
    follow.
    """
    # Most numbers have a single byte, and take a third of the time like this.
    if pos < len(buffer) and buffer[pos] < 0x80:
        return buffer[pos], pos + 1
    value = shift = 0
    for end in range(pos, min(pos + most, len(buffer))):
        value |= (buffer[end] & 0x7F) << shift
        if buffer[end] < 0x80:
            return value, end + 1
        shift += 7
    raise ValueError("a varint without an end")


def _text(value: bytes) -> str:
    """The text in a field; or the beginning of a field that was cut off, perhaps in a character."""
    if len(value) >= MAX_FIELD:
        return value[:MAX_FIELD].decode(errors="replace")
    return value.decode()


def _uint32(value: int) -> int:
    """The number `value`, if that is a uint32; else ValueError."""
    if value > MAX_SEQ:
        raise ValueError(f"the number {value} where {MAX_SEQ} is the most")
    return value


def _varint(value: int) -> bytes:
    """The bytes of a number as a varint. The usual sizes, one byte and two, are made directly."""
    if value < 0x80:
        return _BYTE[value]
    if value < 0x4000:
        return _BYTE[value & 0x7F | 0x80] + _BYTE[value >> 7]
    low_first = bytearray()
    while value > 0x7F:
        low_first.append(value & 0x7F | 0x80)
        value >>= 7
    low_first.append(value)
    return bytes(low_first)


class _Lengths(dict[int, bytes]):
    """Lengths as varints, made when they are first asked for, so of short entries alone.

    Entries of all sizes come in no order, so the same lengths are needed again and again.
    """

    def __missing__(self, length: int) -> bytes:
        self[length] = made = _varint(length)
        return made


# From this size on, an entry takes more time than its length, which is not remembered. All others
# take 1 MB at most.
_LARGE = 0x4000
_remembered = _Lengths().__getitem__


def _number(number: int, value: int) -> bytes:
    """A field with a varint: tag and value."""
    return _varint(number << 3) + _varint(value)


def _string(number: int, text: str) -> bytes:
    """A field with text: tag, length and UTF-8."""
    encoded = text.encode()
    return b"%c%b%b" % (number << 3 | 2, _varint(len(encoded)), encoded)
