"""The keys of the database, byte for byte those of the original.

LevelDB sorts its keys as bytes, and everything here follows from that: all entries of one log lie
next to each other in the order of their numbers, and the whole database can be read log by log.

| key (UTF-8 of)                      | value                                                   |
|-------------------------------------|---------------------------------------------------------|
| `c` U+00FF peer U+00FF number       | the entry's bytes                                       |
| `m` U+00FF `forgotten` U+00FF peer  | nothing: this log is not wanted here (*)                |
| `m` U+00FF `hash` U+00FF peer       | its SHA-256, in a signed log (*)                        |
| `m` U+00FF `head` U+00FF peer       | the last number, when that entry was deleted (*)        |
| `m` U+00FF `fork`                   | where our own signed log has forked (*)                 |
| `m` U+00FF `backup`                 | the day of the backup that this is (*)                  |
| `m` U+00FF `id`                     | this peer's id                                          |

(*) The original does not write these, and ignores them.

`number` is the lower-case hex of what npm `lexicographic-integer` 1.1.0 packs, so that numbers sort
as bytes. A number n below 251 is one byte. Any other is n - 251 in the fewest of 1, 2, 3 or 4
bytes, big-endian, after a first byte of 251, 252, 253 or 254.

    number      1    250    251     506     507
    in a key    01   fa     fb00    fbff    fc0100

The separator U+00FF is the two bytes C3 BF in UTF-8. The end of a peer id with that character, or
with a higher character, could not be found, so `check_peer` refuses such an id.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import repeat
from operator import add

from .errors import shown
from .limits import LOG_BYTES, MAX_PEER, MAX_SEQ

# Stands between the parts of a key.
SEPARATOR = "\xff".encode()
# Every key of an entry begins with this.
CHANGES = b"c" + SEPARATOR
# Sorts after every key of an entry, because no peer id holds U+00FF or a character above it.
CHANGES_END = CHANGES + SEPARATOR
# For a signed log whose newest entry was deleted: the hash that the next entry is linked to.
DELETED_HASHES = b"m" + SEPARATOR + b"hash" + SEPARATOR
# For a log whose newest entry was deleted: its last number, which must not be given out again.
DELETED_HEADS = b"m" + SEPARATOR + b"head" + SEPARATOR
# For a log that was forgotten: it is not wanted here.
FORGOTTEN = b"m" + SEPARATOR + b"forgotten" + SEPARATOR
# Our own log has forked: the number of the entry, and where the fork was seen.
FORK = b"m" + SEPARATOR + b"fork"
# This database is a backup: the day when it was made.
BACKUP = b"m" + SEPARATOR + b"backup"
# Sorts after every other key of ours, so each scan ends there (see `scan.py`).
ID = b"m" + SEPARATOR + b"id"

# The two hex digits of every byte. A look-up is faster than formatting.
_HEX = [b"%02x" % byte for byte in range(256)]


def check_peer(peer: str) -> str:
    """Return `peer` if a log can have this id.

    Raises TypeError if `peer` is not a str. Raises ValueError if `peer` is empty, takes more than
    255 bytes as UTF-8, or holds U+00FF or a character above.

    >>> check_peer("foobar")
    'foobar'
    """
    if not isinstance(peer, str):
        raise TypeError(f"a peer id is a str, not {shown(peer)}")
    if not peer or not (peer.isascii() or max(peer) < "\xff"):
        raise ValueError(f"a peer id is one or more characters below U+00FF, not {shown(peer)}")
    if 2 * len(peer) > MAX_PEER and len(peer.encode()) > MAX_PEER:  # a short id is not encoded
        raise ValueError(f"a peer id has at most {MAX_PEER} bytes of UTF-8, not {shown(peer)}")
    return peer


def log_bytes(peer: str) -> int:
    """How many bytes of our handshake the log of `peer` counts for, of MAX_HANDSHAKE in all.

    A short id counts for LOG_BYTES, so that tiny ids cannot make the number of logs unlimited.
    """
    # The id itself, and at most 12 bytes for two tags, two lengths, a third tag and the number.
    size = (len(peer) if peer.isascii() else len(peer.encode())) + 12
    return size if size > LOG_BYTES else LOG_BYTES


def check_seq(seq: int) -> int:
    """Return `seq` if an entry can have this number.

    Raises TypeError if `seq` is not an int, ValueError if `seq` is not between 1 and 2**32 - 1. A
    bool is an int in Python, but a mistake here.
    """
    if not isinstance(seq, int) or isinstance(seq, bool):
        raise TypeError(f"an entry's number is an int, not {shown(seq)}")
    if not 1 <= seq <= MAX_SEQ:
        raise ValueError(f"an entry's number is 1 to {MAX_SEQ}, not {shown(seq)}")
    return seq


def log_prefix(peer: str) -> bytes:
    """The beginning of the keys of all entries of `peer`; the packed number follows.

    >>> log_prefix("foobar") + pack_seq(1)
    b'c\xc3\xbffoobar\xc3\xbf01'
    """
    return CHANGES + peer.encode() + SEPARATOR


def pack_seq(seq: int) -> bytes:
    """The number `seq` in the form of a key: 2 to 10 hex digits.

    >>> pack_seq(250), pack_seq(251), pack_seq(507)
    (b'fa', b'fb00', b'fc0100')
    """
    if seq < 251:
        return _HEX[seq]
    rest = seq - 251
    width = (max(rest, 1).bit_length() + 7) // 8
    return b"%x%0*x" % (250 + width, 2 * width, rest)


# The numbers that are one byte, by their digits: most logs have no others. 00 is no number.
_SMALL = {digits: seq for seq, digits in enumerate(_HEX[:251]) if seq}


def unpack_seq(digits: bytes) -> int:
    """The number that `pack_seq` packed as `digits`; the opposite of `pack_seq`.

    Raises ValueError if `digits` is anything that `pack_seq` does not return, such as upper-case
    hex.
    """
    if seq := _SMALL.get(digits, 0):
        return seq
    with suppress(ValueError):
        seq = int(digits[2:], 16) + 251
        # To pack the number once more is the shortest test of all that can be wrong: the width, the
        # first byte, and characters that `int` takes but `pack_seq` does not write.
        if 250 < seq <= MAX_SEQ and pack_seq(seq) == digits:
            return seq
    raise ValueError(f"not a number of an entry: {digits!r}")


def change_keys(prefix: bytes, first: int, count: int) -> Iterator[bytes]:
    """The keys of `count` entries from number `first` on, under the `log_prefix` `prefix`."""
    # Up to 256 keys in a row differ in their last byte alone. One concatenation then makes a key,
    # in a seventh of the time of `prefix + pack_seq(seq)`.
    seq, end = first, first + count
    while seq < end:
        packed = pack_seq(seq)
        low = int(packed[-2:], 16)
        stop = min(251 if seq < 251 else 256, low + end - seq)
        yield from map(add, repeat(prefix + packed[:-2]), _HEX[low:stop])
        seq += stop - low
