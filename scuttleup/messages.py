"""The frames of the wire, byte for byte those of the original.

A frame is a varint, the length, and as many bytes, a message; one of length 0 is skipped. The
first message of each side is a Handshake, every later one a Change, in Protocol Buffers (proto2):

    message Handshake {
      required string id = 1;
      repeated Digest head = 2;
      optional Mode mode = 3 [default = SYNC];
    }
    message Digest { required string peer = 1; required uint32 seq = 2; }
    message Change { required string peer = 1; required uint32 seq = 2; required bytes entry = 3; }
    enum Mode { SYNC = 1; PUSH = 2; PULL = 3; }

Encoding: https://protobuf.dev/programming-guides/encoding/. As there, fields come in any order,
the last of a kind counts, and unknown ones (a known number with another wire type is unknown, too)
are skipped. Unlike there, these are errors: a seq too large for its type, text that is not UTF-8, a
group, which the original refuses as well, a Change of more than 1,000 fields, and a Change where
the Handshake should be.

Theory of operation
-------------------

A remote chooses how large its messages are, so a `Decoder` keeps as little of them as it can:

* A Change is kept until all of it is there, because its entry is wanted in one piece. It may be
  as large as the largest entry and what a frame has beside it, 16 MiB in all.
* A larger Change is not kept. Its fields are read as they come and dropped, but for the peer and
  the number: whoever receives has to know in which log an entry is missing now.
* A Handshake is read as it comes, too, a digest at a time. So it may be of any size, and what it
  costs is what the receiver keeps of the digests.

Of a field that is read as it comes MAX_FIELD bytes are kept at the most. They are enough for every
peer id and every digest that can be valid, so what had to be cut off is known to be invalid.

Everything here raises ValueError for what it cannot read. A peer id need not be valid to be read:
whoever gets it checks it, since one bad id is no reason to refuse the rest of what a remote sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from operator import add
from typing import Any, NamedTuple

from .limits import MAX_ENTRY, MAX_FIELD, MAX_FRAME, MAX_SEQ, MAX_SKIPPED

MODES = ("sync", "push", "pull")  # 1, 2 and 3
# Of a Change: to look through a hostile one of 16 MiB took 14 s.
_MAX_FIELDS = 1000
# The most that the tag, the length or the number of a field take: three varints of 5 and 10 bytes.
_MAX_PREFIX = 5 + 10
# How many digests are encoded at once: less than 1 ms, and at most 270 KiB.
_DIGESTS = 1000

_BYTE = [bytes([byte]) for byte in range(256)]
# By the number of bits of a value below 2**32: how many bytes it takes as a varint.
_VARINT_SIZES = bytes(max(1, (bits + 6) // 7) for bits in range(256))


class Handshake(NamedTuple):
    """What a handshake says beside its digests: who speaks, and in which mode."""

    id: str
    mode: str


def encode_handshake(id: str, head: Mapping[str, int], mode: str) -> bytes:
    """The frame of a Handshake: who speaks, the last number of every log it has, its mode."""
    return b"".join(handshake_pieces(id, head, mode))


def handshake_pieces(id: str, head: Mapping[str, int], mode: str) -> Iterator[bytes]:
    """The same frame in pieces, so that a long one can be made and sent in turns.

    The ids have to be valid ones.
    """
    before, after = _string(1, id), b"\x18" + _varint(MODES.index(mode) + 1)
    parts = [_varint(len(before) + digests_size(head) + len(after)), before]
    for count, (peer, seq) in enumerate(head.items(), 1):
        name = peer.encode()
        digest = b"\x0a%b%b\x10%b" % (_varint(len(name)), name, _varint(seq))
        parts += (b"\x12", _varint(len(digest)), digest)
        if count % _DIGESTS == 0:
            yield b"".join(parts)
            parts = []
    yield b"".join((*parts, after))


def digests_size(head: Mapping[str, int]) -> int:
    """How many bytes the digests of `head` take in a handshake."""
    # The length of a frame stands before it, so it is needed before anything can be sent. It is
    # computed with loops in C as far as possible: 0.06 µs a log, where encoding takes 0.7 µs.
    # Five bytes more than the peer and the number is right wherever both lengths take one byte.
    # That is so for each id of up to 57 characters, which are below U+00FF: two bytes at most.
    seqs = sum(bytes(map(int.bit_length, head.values())).translate(_VARINT_SIZES))
    size = len("".join(head).encode()) + seqs + 5 * len(head)
    for peer in [peer for peer in head if len(peer) > 57]:
        name = len(peer.encode())
        digest = 2 + len(_varint(name)) + name + len(_varint(head[peer]))
        size += len(_varint(name)) + len(_varint(digest)) - 2
    return size


def encode_changes(peer: str, first: int, entries: Iterable[bytes]) -> bytes:
    """The frames of the Changes of `peer` from number `first` on."""
    # What stands before an entry depends on three things that rarely change: 0.4 µs an entry.
    parts: list[bytes] = []
    prefix_size = entry_size = 0
    for prefix, entry in zip(_change_prefixes(peer, first), entries, strict=False):
        if len(entry) != entry_size or len(prefix) != prefix_size:
            prefix_size, entry_size = len(prefix), len(entry)
            before_entry = _varint(entry_size)
            before_prefix = _varint(prefix_size + len(before_entry) + entry_size)
        parts += (before_prefix, prefix, before_entry, entry)
    return b"".join(parts)


def _change_prefixes(peer: str, seq: int) -> Iterator[bytes]:
    """What the Changes of `peer` begin with, from number `seq` on: all up to the entry's size."""
    # A varint's first byte has the lowest 7 bits: up to 128 prefixes in a row differ in that alone.
    before_seq = _string(1, peer) + b"\x10"
    while seq <= MAX_SEQ:
        low, high = seq & 0x7F, seq >> 7
        lows = _BYTE[0x80 + low :] if high else _BYTE[low:0x80]
        after_low = (_varint(high) if high else b"") + b"\x1a"
        yield from map(add, map(add, repeat(before_seq), lows), repeat(after_low))
        seq += 0x80 - low


class Decoder:
    """Cuts what comes in into a handshake and, after it, changes.

    First take the `digests` after every `feed`, until there is a `handshake`; then the `changes`.
    An entry of more than `max_entry` bytes is not given out.
    """

    def __init__(self, max_entry: int = MAX_ENTRY) -> None:
        self.handshake: Handshake | None = None  # once all of it was read
        self.ended = 0  # how many bytes the frames had that came after it and were read
        self._max_entry = max_entry
        self._max_frame = max_entry + MAX_FRAME - MAX_ENTRY
        self._buffer = bytearray()  # what has come and was not read yet
        self._coming: _Coming | None = None  # the message that is read as it comes, if there is one
        self._found: dict[int, Any] = {}  # by number: what was read of the fields of that message

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the connection."""
        self._buffer += data

    @property
    def pending(self) -> int:
        """How many bytes have come of a frame that is not all there."""
        return len(self._buffer) + (self._coming.taken if self._coming else 0)

    def digests(self) -> Iterator[tuple[str, int]]:
        """The digests of the handshake that have come: (peer, last number).

        The number may be 0, as it is for a digest that is too long to be kept.
        """
        if self._coming is None:
            start, end = self._frame(0)
            while start == end:  # an empty one
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
                    raise ValueError("a change where the handshake has to be")
                if 1 <= value <= len(MODES):
                    self._found[3] = MODES[value - 1]
        if not self._coming.left:
            self._coming = None
            if 1 not in self._found:
                raise ValueError("a handshake without an id")
            self.handshake = Handshake(self._found[1], self._found.get(3, "sync"))

    def changes(self) -> Iterator[tuple[str, int, list[bytes]]]:
        """The changes that have come, in runs: (peer, first number, entries).

        A run without entries stands for one change of that number whose entry is too large.
        """
        while True:
            if self._coming is None:
                yield from self._whole_changes()
            if self._coming is None:
                return
            self._found |= _known(self._coming.fields(self._buffer))
            if self._coming.left:
                return
            self.ended += self._coming.taken
            self._coming = None
            if not {1, 2} <= self._found.keys():
                raise ValueError("a change without peer or seq")
            yield self._found[1], self._found[2], []

    def _whole_changes(self) -> Iterator[tuple[str, int, list[bytes]]]:
        """The changes that are all there, up to one that is too large to be kept."""
        pos, size, most = 0, len(self._buffer), self._max_frame
        start, end = self._frame(pos)
        buffer = b"".join((self._buffer, b"\0\0")) if end <= size else b""
        while end <= size and end - start <= most:
            pos = end
            if start < end:
                peer, first, entry = _decode_change(buffer, start, end)
                entries = [entry]
                begins = buffer[start : start + 2 + buffer[start + 1]]
                if len(entry) > self._max_entry:
                    entries = []
                # Whether the next one begins with the same peer. If not, this saves 1.5 µs.
                elif buffer.startswith(begins, end + 1) or buffer.startswith(begins, end + 2):
                    pos = self._read_on(buffer, pos, _change_prefixes(peer, first + 1), entries)
                yield peer, first, entries
            if pos < size and buffer[pos] < 0x80:
                start, end = pos + 1, pos + 1 + buffer[pos]
            else:
                start, end = self._frame(pos)
        del self._buffer[:pos]
        self.ended += pos
        if end - start > most:
            self._begin(start - pos, end - pos)

    def _read_on(
        self, buffer: bytes, pos: int, prefixes: Iterator[bytes], entries: list[bytes]
    ) -> int:
        """Add the entries of the Changes that begin with `prefixes` and return where they end."""
        # Most Changes follow the one before in the same log. What those begin with is known, so
        # a comparison decodes them: 0.4 µs instead of 2 µs. Sizes of one or two bytes, the usual
        # ones, are read in line; two bytes more in `buffer` let that look ahead at the end.
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
            if at + length != end:  # as always if that size has more than two bytes
                break
            entries.append(buffer[at:end])
            pos = end
        return pos

    def _begin(self, start: int, end: int) -> None:
        """Read the message from `start` to `end`, before which its length stands, as it comes."""
        del self._buffer[:start]
        self._coming = _Coming(start, end - start)
        self._found = {}

    def _frame(self, pos: int) -> tuple[int, int]:
        """Where the message of the frame at `pos` begins and ends, perhaps behind the buffer.

        As long as its length is not all there it seems to begin at `pos` and not to have ended.
        """
        length = shift = 0
        for start in range(pos, len(self._buffer)):
            byte = self._buffer[start]
            length |= (byte & 0x7F) << shift
            if length > MAX_SKIPPED or shift > 63:  # a varint has at most 10 bytes
                raise ValueError(f"a frame of more than {MAX_SKIPPED} bytes")
            if byte < 0x80:
                return start + 1, start + 1 + length
            shift += 7
        return pos, len(self._buffer) + 1


class _Coming:
    """A message that is read as it comes, because it is too large to be kept."""

    def __init__(self, taken: int, left: int) -> None:
        self.taken = taken  # how many bytes of the frame were read, its length included
        self.left = left  # how many bytes of the message were not
        self._skip = 0  # how many of these belong to a field that was given out: they are dropped

    def fields(self, buffer: bytearray) -> Iterator[tuple[int, int | bytes]]:
        """Read what has come, and take it from the buffer: the fields with a varint or bytes.

        Bytes are cut off after MAX_FIELD.
        """
        self._skip -= self._drop(buffer, self._skip)
        data = bytes(buffer if len(buffer) <= self.left else buffer[: self.left])
        # A field is read when as much is there as is ever looked at of one.
        enough = len(data) if len(data) == self.left else len(data) - _MAX_PREFIX - MAX_FIELD + 1
        pos = 0
        while pos < enough:
            number, value, pos = _decode_field(data, pos, self.left, MAX_FIELD)
            if value is not None:
                yield number, value
        self._skip += pos - self._drop(buffer, pos)

    def _drop(self, buffer: bytearray, count: int) -> int:
        """Take so many bytes from the buffer, or all if it has fewer; return how many."""
        count = min(count, len(buffer))
        del buffer[:count]
        self.taken += count
        self.left -= count
        return count


def _decode_digest(message: bytes) -> tuple[str, int]:
    size = len(message)
    if size == MAX_FIELD:  # cut off: its peer is told, if that came first, and nothing else
        length, start = _decode_varint(message, 1, 5) if message[0] == 0x0A else (0, 0)
        return message[start : start + length].decode(errors="replace"), 0
    # The usual order in half the time, for there may be 100,000 of them.
    end = 2 + message[1] if size > 4 and message[0] == 0x0A else 0
    if 2 <= end < min(0x82, size - 1) and message[end] == 0x10:
        last, pos = _decode_varint(message, end + 1)
        if pos == size:
            return message[2:end].decode(), _uint32(last)
    found = _known(_fields(message))
    if not {1, 2} <= found.keys():
        raise ValueError("a digest without peer or seq")
    return found[1], found[2]


def _decode_change(buffer: bytes, start: int, end: int) -> tuple[str, int, bytes]:
    # The usual order in a third of the time: a hostile remote may send a log for each change.
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
    """The fields of a message that is all there, those with a varint or bytes."""
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
    """The number and the value of the field at `pos`, and where the next one begins.

    The value is None for a type of which no field is known; bytes are cut off after `most`.
    """
    tag, pos = _decode_varint(buffer, pos, 5)  # of 32 bits, as a length
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
    if pos < len(buffer) and buffer[pos] < 0x80:
        return buffer[pos], pos + 1  # most are this short, and take a third of the time here
    value = shift = 0
    for end in range(pos, min(pos + most, len(buffer))):
        value |= (buffer[end] & 0x7F) << shift
        if buffer[end] < 0x80:
            return value, end + 1
        shift += 7
    raise ValueError("a varint without an end")


def _text(value: bytes) -> str:
    if len(value) >= MAX_FIELD:  # cut off, perhaps within a character
        return value[:MAX_FIELD].decode(errors="replace")
    return value.decode()


def _uint32(value: int) -> int:
    if value > MAX_SEQ:
        raise ValueError(f"the number {value} where {MAX_SEQ} is the most")
    return value


def _varint(value: int) -> bytes:
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


def _string(number: int, text: str) -> bytes:
    encoded = text.encode()
    return b"%c%b%b" % (number << 3 | 2, _varint(len(encoded)), encoded)
