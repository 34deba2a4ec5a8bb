"""Send what a hostile remote may send, for some seconds, and look whether it does harm.

    python tests/fuzz.py [seconds]

Valid traffic is mutated: bits, numbers, splices, lengths. An input that does harm is printed.
"""

from __future__ import annotations

import logging
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from leveldb import binding, open_leveldb
from wire import MAX, MODES, cut, encode_handshake, frame, varint

from scuttleup import Change, ConnectionLost, ProtocolError, Scuttleup
from scuttleup.command.check import check_logs
from scuttleup.limits import MAX_ENTRY, MAX_FRAME
from scuttleup.replication.messages import encode_changes
from scuttleup.signed.signing import FIRST_LINK, Signer, link_after

MAX_KEPT = 500  # bytes of a frame that is kept, so few that mutations reach the limit
# Two signed logs: that of somebody else, and our own where it is signed. From entry 4 on, the other
# author has signed a second branch.
KEY = bytes(32)
AUTHOR, OURS = Signer(bytes([1] * 32)), Signer(KEY)
SIGNED = AUTHOR.seal(1, [b"signed %d" % seq for seq in range(1, 9)], FIRST_LINK)[0]
BRANCH = AUTHOR.seal(4, [b"branch 4", b"branch 5"], link_after(SIGNED[2]))[0]
OUR_SIGNED = OURS.seal(1, [b"ours %d" % seq for seq in range(1, 7)], FIRST_LINK)[0]
# What the peer that hears all this has already, of signed logs and of others.
HAS_SIGNED = [Change(AUTHOR.id, seq, SIGNED[seq - 1]) for seq in (1, 2)]
HAS = [Change("far", seq, b"theirs %d" % seq) for seq in (1, 2, 5)]
VALID = encode_handshake("far", {"far": 9}, "sync") + encode_changes("far", 6, [b"valid"])
INTERESTING = [0, 1, 4, 5, 127, 128, MAX_KEPT, 2**31, MAX, MAX + 1, 2**63, 2**64 - 1]
IDS = [b"us", b"far", b"new", b"", b"\xff", "\xff".encode(), "\u0100".encode(), b"us\0"]
IDS += [AUTHOR.id.encode(), OURS.id.encode(), AUTHOR.id.encode()[:-1]]


class Target:
    """Lets a new peer hear each input. The peers share one LevelDB, until there are too many."""

    def __init__(self, folder: str) -> None:
        self.inputs = self.errors = self._streams = 0
        self._folder = folder
        self._db: Any = None

    def try_input(self, data: bytes) -> None:
        """Raise AssertionError, or what the package raised, if `data` does harm."""
        self.inputs += 1
        options, cutting, wire = data[:1] or b"\0", data[1:2] or b"\0", data[2:]
        try:
            heard = self._hear(options[0], cut(wire, [cutting[0] % 64 or len(wire)]))
            at_once = self._hear(options[0], [wire])
            assert heard == at_once, f"cut: {heard[1:]}; at once: {at_once[1:]}"
        except BaseException:
            print(f"\nfound by: {data.hex()}", file=sys.stderr, flush=True)
            raise

    def _hear(self, options: int, wire: Iterable[bytes]) -> tuple[object, ...]:
        """What is in the database after that, which logs were left out, and the error, if any."""
        db = self._empty_db()
        verify = (lambda change: len(change.entry) != 7) if options & 16 else None
        only_signed = options & 192 == 192
        own: dict[str, Any] = {"key": KEY} if options & 64 else {"id": "us"}
        max_entry = MAX_KEPT - (MAX_FRAME - MAX_ENTRY)
        logs = Scuttleup(db, **own, verify=verify, max_entry=max_entry, only_signed=only_signed)
        ours = OUR_SIGNED[:3] if options & 64 else [b"ours 1", b"ours 2", b"ours 3"]
        has = [Change(logs.id, seq, entry) for seq, entry in enumerate(ours, 1)] + HAS_SIGNED
        has += [] if only_signed else HAS
        logs.write(has)
        before = dict(db.iterator())
        stream = logs.create_replication_stream(mode=MODES[options % 4 % 3], live=bool(options & 8))
        error = None
        try:
            for piece in wire:
                if piece:
                    stream.receive_data(piece)
                    while stream.data_to_send():
                        pass
            if options & 32:
                stream.receive_data(b"")
        except (ProtocolError, ConnectionLost) as caught:
            self.errors += 1
            error = str(caught)
            assert error, "an error that does not say what was wrong"
            with suppress(ProtocolError):
                stream.receive_data(VALID)
                raise AssertionError("it goes on after an error") from caught
        while stream.data_to_send():
            pass
        assert stream.finished in (True, False)
        stream.close()

        after = dict(db.iterator())
        assert before.items() <= after.items(), "an entry was changed"
        reopened = Scuttleup(db)
        assert reopened.id == logs.id
        assert reopened.head == logs.head, "heads are not those of the database"
        assert not [log for log in check_logs(reopened) if log.fault], "stored without a proof"
        changes = list(reopened.create_read_stream())
        numbers = [change.seq for change in changes if change.peer == logs.id]
        if not options & 64:
            assert numbers == list(range(1, len(numbers) + 1)), "our own log has a gap"
        assert stream.replicated.received == len(changes) - len(has)
        assert not verify or all(map(verify, changes)), "stored against the word of verify"
        assert logs.append(b"next").seq == numbers[-1] + 1
        return after, stream.replicated.refused, error

    def _empty_db(self) -> Any:
        if self._streams % 5_000 == 0:
            self.close()
            self._db = open_leveldb(Path(self._folder))
        self._streams += 1
        return self._db.prefixed_db(b"%d/" % self._streams)

    def close(self) -> None:
        if self._db:
            self._db.close()
            binding.destroy_db(self._folder)


def seeds() -> list[bytes]:
    """Valid traffic, for each of our modes."""
    heads = [{}, {"far": 5, AUTHOR.id: 1}, {"far": 7, "us": 5, "new": 2, AUTHOR.id: 9, OURS.id: 6}]
    tail = encode_changes("us", 4, [b"restored", b"too"])
    more = encode_changes("far", 6, [b"a", b"b" * 200]) + encode_changes("new", 1, [b"", b"c"])
    signed = encode_changes(AUTHOR.id, 3, SIGNED[2:]) + encode_changes(OURS.id, 4, OUR_SIGNED[3:])
    branch = encode_changes(AUTHOR.id, 3, [SIGNED[2], *BRANCH, *SIGNED[5:]])
    gap = encode_changes(AUTHOR.id, 5, SIGNED[4:]) + encode_changes(OURS.id, 5, OUR_SIGNED[4:])
    options = [(0, 0), (9, 1), (2, 7), (24, 0), (56, 3), (32, 0), (64, 0), (73, 9), (192, 0)]
    return [
        bytes([option, cutting]) + encode_handshake("far", head, mode) + changes
        for option, cutting in options
        for mode in MODES
        for head in heads
        for changes in (b"", tail + more, more + b"\0" + more, signed, branch, gap)
    ]


# --- Mutations ------------------------------------------------------------------------------------


def split(wire: bytes) -> Iterator[bytes]:
    """The messages in `wire` that are whole."""
    while prefix := re.match(rb"(?s)[\x80-\xff]{0,4}.", wire):  # a varint, which may be cut off
        length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(prefix[0]))
        message = wire[prefix.end() :][:length]
        if len(message) == length:
            yield message
        wire = wire[prefix.end() + length :]


def mutate(data: bytes, other: bytes, choose: random.Random) -> bytes:
    """`data` with something else in it, or with something of `other`."""
    messages = list(split(data[2:]))
    if choose.random() < 0.5 or not messages:
        return mutate_bytes(data, other, choose)
    # Within a frame, whose length is then made right again: what is wrong gets past the framing.
    at = choose.randrange(len(messages))
    kind = choose.randrange(6)
    if kind == 0:
        messages.insert(at, choose.choice(messages))
    elif kind == 1:
        messages[at] += choose.choice(messages)
    elif kind == 2:
        del messages[at]
    elif kind == 3:
        number = varint(choose.choice(INTERESTING))
        peer = choose.choice(IDS)
        messages[at] = b"\x0a%b%b\x10%b\x1a\x01x" % (varint(len(peer)), peer, number)
    else:
        messages[at] = mutate_bytes(messages[at], other, choose)
    return data[:2] + b"".join(map(frame, messages))


def mutate_bytes(data: bytes, other: bytes, choose: random.Random) -> bytes:
    mutated = bytearray(data or b"\0")
    for _ in range(choose.choice([1, 1, 1, 2, 4])):
        at = choose.randrange(len(mutated)) if mutated else 0
        end = at + choose.choice([0, 1, 1, 2, 5, 20])
        kind = choose.randrange(6)
        if kind == 0 and mutated:
            mutated[at] ^= 1 << choose.randrange(8)
        elif kind == 1 and mutated:
            mutated[at] = choose.randrange(256)
        elif kind == 2:
            mutated[at:end] = varint(choose.choice(INTERESTING))
        elif kind == 3:
            start = choose.randrange(len(other) + 1)
            mutated[at:end] = other[start : start + choose.randrange(40)]
        elif kind == 4:
            mutated[at:end] = choose.choice(IDS)
        else:
            del mutated[at:end]
    return bytes(mutated)


def main(seconds: int) -> None:
    logging.disable()
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    known = seeds()
    with tempfile.TemporaryDirectory() as folder:
        target = Target(os.path.join(folder, "db"))
        for data in known:
            target.try_input(data)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            data = choose.choice(known)
            for _ in range(choose.randrange(1, 4)):
                data = mutate(data, choose.choice(known), choose)
            target.try_input(data)
        target.close()  # else Windows would not remove the folder
    print(f"{target.inputs} inputs, each heard twice; {target.errors} ProtocolErrors")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
