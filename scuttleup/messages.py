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
Change or Digest of more than 1,000 fields, and a Change where the Handshake should be.

Everything here raises ValueError for what it cannot read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from operator import add
from typing import NamedTuple

MODES = ("sync", "push", "pull")  # 1, 2 and 3
_MAX_UINT32 = 2**32 - 1
_MAX_GROUPS = 100  # nested: the limit of Google's decoders
_MAX_FIELDS = 1000  # of a Change or Digest: a hostile one of 16 MiB took 14 s to look through

_BYTE = [bytes([byte]) for byte in range(256)]


class Handshake(NamedTuple):
    """Who speaks, the last number of every log that it has, and its mode."""

    id: str
    head: Mapping[str, int]
    mode: str


def encode_handshake(id: str, head: Mapping[str, int], mode: str) -> bytes:
    """The frame of a Handshake."""
    parts = [_string(1, id)]
    for peer, seq in head.items():
        name = peer.encode()
        digest = b"\x0a%b%b\x10%b" % (_varint(len(name)), name, _varint(seq))
        parts += (b"\x12", _varint(len(digest)), digest)
    parts.append(b"\x18" + _varint(MODES.index(mode) + 1))
    message = b"".join(parts)
    return _varint(len(message)) + message


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
    while seq <= _MAX_UINT32:
        low, high = seq & 0x7F, seq >> 7
        lows = _BYTE[0x80 + low :] if high else _BYTE[low:0x80]
        after_low = (_varint(high) if high else b"") + b"\x1a"
        yield from map(add, map(add, repeat(before_seq), lows), repeat(after_low))
        seq += 0x80 - low


class Decoder:
    """Cuts what comes in into messages; a frame of more than `limit` bytes is a ValueError."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()  # what is not decoded yet

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the connection."""
        self._buffer += data

    @property
    def pending(self) -> int:
        """How many bytes there are of a frame that is not all there."""
        return len(self._buffer)

    def message(self) -> bytes | None:
        """The next message, None as long as it is not all there."""
        start, end = self._frame(0)
        while start == end:  # an empty one
            del self._buffer[:end]
            start, end = self._frame(0)
        if end > len(self._buffer):
            return None
        message = bytes(self._buffer[start:end])
        del self._buffer[:end]
        return message

    def changes(self) -> Iterator[tuple[str, int, list[bytes]]]:
        """The Changes that are all there, in runs: (peer, first number, entries)."""
        pos, size = 0, len(self._buffer)
        start, end = self._frame(pos)
        buffer = b"".join((self._buffer, b"\0\0")) if end <= size else b""
        while end <= size:
            pos = end
            if start < end:
                peer, first, entry = _decode_change(buffer[start:end])
                entries = [entry]
                pos = self._read_on(buffer, pos, _change_prefixes(peer, first + 1), entries)
                yield peer, first, entries
            start, end = self._frame(pos)
        del self._buffer[:pos]

    def _read_on(
        self, buffer: bytes, pos: int, prefixes: Iterator[bytes], entries: list[bytes]
    ) -> int:
        """Add the entries of the Changes that begin with `prefixes` and return where they end."""
        # Most Changes follow the one before in the same log. What those begin with is known, so
        # a comparison decodes them: 0.5 µs instead of 5 µs. Sizes of one or two bytes, the usual
        # ones, are read in line; two bytes more in `buffer` let that look ahead at the end.
        size, limit = len(buffer) - 2, self._limit
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

    def _frame(self, pos: int) -> tuple[int, int]:
        """Where the message of the frame at `pos` begins and ends, perhaps behind the buffer."""
        length = shift = 0
        for start in range(pos, len(self._buffer)):
            byte = self._buffer[start]
            length |= (byte & 0x7F) << shift
            if length > self._limit or shift > 63:  # a varint has at most 10 bytes
                raise ValueError(f"a frame of more than {self._limit} bytes")
            if byte < 0x80:
                return start + 1, start + 1 + length
            shift += 7
        return pos, len(self._buffer) + 1


def decode_handshake(message: bytes) -> Handshake:
    """The Handshake that `message` is."""
    id: str | None = None
    head: dict[str, int] = {}
    mode = "sync"
    for number, value in _fields(message, len(message)):
        if number == 1 and isinstance(value, bytes):
            id = value.decode()
        elif number == 2 and isinstance(value, bytes):
            peer, seq = _decode_digest(value)
            head[peer] = seq
        elif number == 3 and isinstance(value, int):
            mode = MODES[value - 1] if 1 <= value <= len(MODES) else mode
        elif number == 3:
            raise ValueError("a change where the handshake has to be")
    if id is None:
        raise ValueError("a handshake without an id")
    return Handshake(id, head, mode)


def _decode_digest(message: bytes) -> tuple[str, int]:
    # The usual order in half the time, for there may be 100,000 of them.
    end = 2 + message[1] if len(message) > 4 and message[0] == 0x0A else 0
    if 2 <= end < min(0x82, len(message) - 1) and message[end] == 0x10:
        last, size = _decode_varint(message, end + 1)
        if size == len(message):
            return message[2:end].decode(), _uint32(last)
    peer = seq = None
    for number, value in _fields(message):
        if number == 1 and isinstance(value, bytes):
            peer = value.decode()
        elif number == 2 and isinstance(value, int):
            seq = _uint32(value)
    if peer is None or seq is None:
        raise ValueError("a digest without peer or seq")
    return peer, seq


def _decode_change(message: bytes) -> tuple[str, int, bytes]:
    peer = seq = entry = None
    for number, value in _fields(message):
        if number == 1 and isinstance(value, bytes):
            peer = value.decode()
        elif number == 2 and isinstance(value, int):
            seq = _uint32(value)
        elif number == 3 and isinstance(value, bytes):
            entry = value
    if peer is None or seq is None or entry is None:
        raise ValueError("a change without peer, seq or entry")
    return peer, seq, entry


def _fields(message: bytes, most: int = _MAX_FIELDS) -> Iterator[tuple[int, int | bytes]]:
    """The fields with varint or length-delimited values; the others are read and left out."""
    pos, size = 0, len(message)
    groups: list[int] = []  # that are open
    for _ in range(most):
        if pos >= size:
            break
        tag, pos = _decode_varint(message, pos, 5)  # of 32 bits, as a length
        number, wire_type = tag >> 3, tag & 7
        value: int | bytes | None = None
        if not 0 < number < 1 << 29:
            raise ValueError(f"a field with the number {number}")
        if wire_type == 0:
            value, pos = _decode_varint(message, pos)
        elif wire_type == 1:
            pos += 8
        elif wire_type == 2:
            length, start = _decode_varint(message, pos, 5)
            pos = start + length
            value = message[start:pos]
        elif wire_type == 3 and len(groups) < _MAX_GROUPS:
            groups.append(number)
        elif wire_type == 4 and groups and groups[-1] == number:
            groups.pop()
        elif wire_type == 5:
            pos += 4
        else:
            raise ValueError(f"a field of wire type {wire_type} out of place")
        if value is not None and not groups and pos <= size:
            yield number, value
    if pos != size or groups:
        raise ValueError(
            f"a message that ends in the middle of a field, or has more than {most} fields"
        )


def _decode_varint(message: bytes, pos: int, most: int = 10) -> tuple[int, int]:
    if pos < len(message) and message[pos] < 0x80:
        return message[pos], pos + 1  # most are this short, and take a third of the time here
    value = shift = 0
    for end in range(pos, min(pos + most, len(message))):
        value |= (message[end] & 0x7F) << shift
        if message[end] < 0x80:
            return value, end + 1
        shift += 7
    raise ValueError("a varint without an end")


def _uint32(value: int) -> int:
    if value > _MAX_UINT32:
        raise ValueError(f"the number {value} where {_MAX_UINT32} is the most")
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
