"""Everything that is read from LevelDB in order: runs of entries, and the heads of all logs.

How damage is told from the end
-------------------------------

A block of a table that cannot be read is skipped by LevelDB's iterator, which remembers the error.
The binding raises that error at the next key, but not if there is no further key: then the
iteration ends as if there were nothing more. So an iteration that ended is complete only if there
was a further key. There always is one, because the key of the id sorts after all others: a scan
goes on up to that key, and a read of a part of a log, which has its end before, looks it up.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from typing import Any

from .changes import Run
from .database import Unreadable
from .keys import (
    CHANGES,
    CHANGES_END,
    DELETED_HEADS,
    ID,
    SEPARATOR,
    check_peer,
    log_prefix,
    pack_seq,
    unpack_seq,
)
from .limits import RUN_BYTES, RUN_ENTRIES

# So many keys of a log are read one by one, 0.5 µs each, before a seek to its last, 8 µs: where
# there are very many logs, most are short.
STEPS = 8
# So many entries are got one by one, 0.9 µs each, where an iterator takes 4 µs to begin with.
FEW = 4
_CUT_SHORT = "a part of it cannot be read"


def read_runs(db: Any, peer: str, after: int, last: int) -> tuple[list[Run], int]:
    """Read some entries of `peer` above number `after`, up to `last`.

    Returns them, cut into runs without gaps, and the number up to which the log has now been read;
    that is `last` when there is no more. About RUN_ENTRIES entries are read at the most, and no
    further one once there are RUN_BYTES. Nothing is read that belongs to another log.
    """
    prefix = log_prefix(peer)
    if last - after <= FEW:
        return _get_few(db, peer, prefix, after, last)
    wanted = min(RUN_ENTRIES, last - after)
    entries: list[bytes] = []
    room = RUN_BYTES
    key = b""
    with db.iterator(
        start=prefix + pack_seq(after + 1),
        stop=prefix + pack_seq(last),
        include_stop=True,
        verify_checksums=True,
    ) as pairs:
        for key, entry in islice(pairs, wanted):
            entries.append(entry)
            room -= len(entry)
            if room <= 0:
                break
        ended = len(entries) < wanted and room > 0
        if ended:
            _check_end(db)
        # Keys are in order and no two are the same. So if the last one has the number that it has
        # without gaps, there is no gap. To look at each key would take a fifth of the time.
        if key == prefix + pack_seq(after + len(entries)):
            return [Run(peer, after + 1, entries)], last if ended else after + len(entries)
        pairs.seek_to_start()
        runs, after = _cut_at_gaps(peer, pairs, len(prefix), len(entries))
    if not after:
        _check_end(db)
    return runs, after or last


def _get_few(db: Any, peer: str, prefix: bytes, after: int, last: int) -> tuple[list[Run], int]:
    """The first run of `peer` above `after` up to `last`, as `read_runs` returns it."""
    entries: list[bytes] = []
    room = RUN_BYTES
    for seq in range(after + 1, last + 1):
        entry = db.get(prefix + pack_seq(seq), verify_checksums=True)
        if entry is not None:
            entries.append(entry)
            room -= len(entry)
            if room <= 0:
                return [Run(peer, seq + 1 - len(entries), entries)], seq
        elif entries:
            return [Run(peer, seq - len(entries), entries)], seq
    return ([Run(peer, last + 1 - len(entries), entries)] if entries else []), last


def _cut_at_gaps(
    peer: str, pairs: Iterable[tuple[bytes, bytes]], prefix_size: int, wanted: int
) -> tuple[list[Run], int]:
    """The runs in the first `wanted` pairs, and the last number in them, 0 if there is no more."""
    runs: list[Run] = []
    entries: list[bytes] = []
    seq = 0
    for count, (key, entry) in enumerate(pairs, 1):
        with suppress(ValueError):  # the original stores ids that hold U+00FF, but loses them
            before, seq = seq, unpack_seq(key[prefix_size:])
            if seq != before + 1 or not entries:
                runs.append(Run(peer, seq, entries := []))
            entries.append(entry)
        if runs and count >= wanted:
            return runs, seq
    return runs, 0


def _check_end(db: Any) -> None:
    if db.get(ID, verify_checksums=True) is None:
        raise Unreadable(_CUT_SHORT)


def load_id(db: Any) -> str | None:
    """The id that is stored, None in a new database."""
    stored = db.get(ID, verify_checksums=True)
    try:
        return None if stored is None else check_peer(stored.decode())
    except ValueError as error:
        raise Unreadable(f"the id that is stored: {error}") from error


def load_heads(db: Any) -> dict[str, int]:
    """Every log's last number, whether or not that entry was deleted."""
    heads: dict[str, int] = {}
    with _scan(db, CHANGES, values=False) as keys:
        prefix = b"\xff"  # of the log that we are in; no UTF-8 holds that byte
        steps = 0
        for key in keys:
            if not key.startswith(prefix):
                if key >= CHANGES_END:
                    break
                name = key[len(CHANGES) :].partition(SEPARATOR)[0]
                prefix = CHANGES + name + SEPARATOR
                steps = 0
            elif steps == STEPS:
                key = _leap_over_log(keys, prefix, key)
            steps += 1
            # What is not a number of a log belongs to an id that the original stored but cannot
            # find again, as it holds U+00FF or more: "us\xff05" sorts into the log of "us".
            with suppress(ValueError):
                heads[check_peer(name.decode())] = unpack_seq(key[len(prefix) :])
        else:
            raise Unreadable(_CUT_SHORT)
    with _scan(db, DELETED_HEADS) as deleted:
        for key, number in deleted:
            if not key.startswith(DELETED_HEADS):
                break
            try:
                peer = key[len(DELETED_HEADS) :].decode()
                heads[peer] = max(heads.get(peer, 0), unpack_seq(number))
            except ValueError as error:
                raise Unreadable(f"the head {key!r}: {error}") from error
        else:
            raise Unreadable(_CUT_SHORT)
    return heads


def _scan(db: Any, start: bytes, *, values: bool = True) -> Any:
    """An iterator from `start` to the key of the id."""
    return db.iterator(
        start=start, stop=ID, include_stop=True, include_value=values, verify_checksums=True
    )


def _leap_over_log(keys: Any, prefix: bytes, key: bytes) -> bytes:
    """The last key under `prefix`, or `key` if that one has no number; `keys` goes on behind it."""
    keys.seek(prefix + b"\xff")
    try:
        last: bytes = keys.prev()
        unpack_seq(last[len(prefix) :])
    except StopIteration:
        raise Unreadable(_CUT_SHORT) from None
    except ValueError:
        keys.seek(key + b"\0")
        return key
    next(keys, None)  # `last` once more
    return last
