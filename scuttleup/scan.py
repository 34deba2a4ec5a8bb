"""Everything that is read from LevelDB in order: runs of entries, and the heads of all logs.

Theory of operation
-------------------

Nothing is remembered here. Each public function gets an open LevelDB whose lock the caller holds,
reads from it, and closes its iterator before it returns. An iterator shows LevelDB as it was when
the iterator was made, so an entry that is deleted meanwhile does no harm.

How damage is told from the end
-------------------------------

LevelDB's iterator skips a block of a table that cannot be read, and remembers the error. The
binding raises that error at the next key. Without a further key there is no error: the iteration
ends as if there were no more keys. So an iteration that ended is complete only if there was a
further key. There always is one, because the key of the id sorts after all others. A scan of all
logs goes on up to that key. A read of one log stops before, and therefore looks up the key of the
id.

How gaps are found
------------------

Entries can be deleted, so a log may lack some numbers. The keys of a log are in order and no two
are the same. So if n keys were read from number a + 1 on, and the last key has the number a + n,
then there is no gap, and no other key needs to be looked at. If the last key has another number,
every key is looked at.

There can be other keys among those of a log. The original stores entries under an id that holds
U+00FF, and cannot find them again, and "us" U+00FF "02" sorts into the log of "us". Such a key
could stand in for an entry that is missing. But such a key has more separators than the two in each
key of a log. So the separators are counted, and if there are too many, every key is looked at as
well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice, takewhile

from .changes import Run
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
from .leveldb import Unreadable
from .limits import RUN_BYTES, RUN_ENTRIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# `load_heads` reads this many keys of a log in turn, 0.3 µs each, before the seek to the last key
# of that log, which takes 10 µs. Where there are very many logs, most of them are short.
STEPS = 12
# The size of entries that `read_runs` need not count, because RUN_ENTRIES of them have no more than
# RUN_BYTES. That makes up for the look at their keys.
SMALL = RUN_BYTES // RUN_ENTRIES
# The last byte of a separator. No number has it.
_MARK = SEPARATOR[-1:]
# The fault of a database in which an iteration ended before the key of the id.
_CUT_SHORT = "a part of it cannot be read"


def read_runs(db: Any, peer: str, after: int, last: int) -> tuple[list[Run], int]:
    """Read some entries of `peer` above number `after`, up to number `last`.

    Returns them, cut into runs without gaps, and the number up to which the log has now been read;
    that is `last` when there is no more. At most about RUN_ENTRIES entries are read, and no more of
    them once those above SMALL bytes have RUN_BYTES in all. Nothing of another log is given out.

    Raises Unreadable, or an error of the binding, if a part of the log cannot be read.

    >>> read_runs(db, "foobar", 0, 5)  # number 3 was deleted
    ([Run("foobar", 1, [b"one", b"two"]), Run("foobar", 4, [b"four", b"five"])], 5)
    """
    prefix = log_prefix(peer)
    if last - after == 1:
        # The newest entry of a log, mostly. A get takes 0.9 µs, an iterator 4 µs.
        entry = db.get(prefix + pack_seq(last), verify_checksums=True)
        return ([Run(peer, last, [entry])] if entry is not None else []), last
    wanted = min(RUN_ENTRIES, last - after)
    keys: list[bytes] = []
    entries: list[bytes] = []
    # How many bytes may still be read.
    left = RUN_BYTES
    with db.iterator(
        start=prefix + pack_seq(after + 1),
        stop=prefix + pack_seq(last),
        include_stop=True,
        verify_checksums=True,
    ) as pairs:
        for key, entry in islice(pairs, wanted):
            keys.append(key)
            entries.append(entry)
            if len(entry) > SMALL:
                left -= len(entry)
                if left <= 0:
                    break
        # See "How gaps are found" above. To look at each key by itself would take a fifth of the
        # time. If the iteration ended early, the next call finds out why.
        count = len(keys)
        # One byte of a separator is counted in less than half of the time that both bytes take.
        all_ours = b"".join(keys).count(_MARK) == count * prefix.count(_MARK)
        if all_ours and keys[-1:] == [prefix + pack_seq(after + count)]:
            return [Run(peer, after + 1, entries)], after + count
        # There are gaps.
        pairs = chain(zip(keys, entries, strict=True), pairs)
        runs, after = _cut_at_gaps(peer, pairs, len(prefix), count)
    if not after:
        _check_end(db)
    return runs, after or last


def _cut_at_gaps(
    peer: str, pairs: Iterable[tuple[bytes, bytes]], prefix_size: int, wanted: int
) -> tuple[list[Run], int]:
    """The runs in the first `wanted` pairs, and the last number in them; 0 if there is no more.

    `pairs` are keys and entries in order. The number in a key begins after `prefix_size` bytes.
    """
    runs: list[Run] = []
    entries: list[bytes] = []
    seq = 0
    for count, (key, entry) in enumerate(pairs, 1):
        # A key without a number is of an id with U+00FF: see "How gaps are found" above.
        with suppress(ValueError):
            before, seq = seq, unpack_seq(key[prefix_size:])
            if seq != before + 1 or not entries:
                runs.append(Run(peer, seq, entries := []))
            entries.append(entry)
        if runs and count >= wanted:
            return runs, seq
    return runs, 0


def keys_between(db: Any, start: bytes, stop: bytes, most: int) -> list[bytes]:
    """The keys of one log from the key `start` to `stop`, at the most so many."""
    with db.iterator(start=start, stop=stop, include_stop=True, include_value=False) as keys:
        # A key with more separators is of an id with U+00FF: see "How gaps are found" above.
        marks = stop.count(_MARK)
        return list(islice((key for key in keys if key.count(_MARK) == marks), most))


def _check_end(db: Any) -> None:
    """Raise Unreadable if the key of the id, which sorts after all entries, cannot be found."""
    if db.get(ID, verify_checksums=True) is None:
        raise Unreadable(_CUT_SHORT)


def load_id(db: Any) -> str | None:
    """This peer's id in the database; None in a new database.

    Raises Unreadable if the stored value cannot be an id.
    """
    stored = db.get(ID, verify_checksums=True)
    try:
        return None if stored is None else check_peer(stored.decode())
    except ValueError as error:
        raise Unreadable(f"the id that is stored: {error}") from error


def load_heads(db: Any, forgotten: Iterable[str]) -> dict[str, int]:
    """Every log's last number, whether or not that entry was deleted.

    There are none of the logs that are `forgotten`, of which entries may be left.

    However long a log is, a few keys and one seek find its head. Raises Unreadable if a part of the
    database cannot be read, because a head that was missed would let a number be given out twice.
    """
    heads: dict[str, int] = {}
    with _scan(db, CHANGES, values=False) as keys:
        # The log that is being read, the beginning of its keys, and the last key so far. No UTF-8
        # holds this byte, so the first key begins a log.
        name, prefix, last, steps = b"", b"\xff", b"", 0
        for key in keys:
            if key.startswith(prefix):
                steps += 1
                last = _leap_over_log(keys, prefix) if steps == STEPS else key
                continue
            if last:
                try:
                    heads[check_peer(name.decode())] = unpack_seq(last[len(prefix) :])
                except ValueError:
                    _note_among_strangers(db, heads, name, prefix)
            if key >= CHANGES_END:
                break
            name = key[len(CHANGES) :].partition(SEPARATOR)[0]
            prefix = CHANGES + name + SEPARATOR
            last, steps = key, 0
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
    for peer in forgotten:
        heads.pop(peer, None)
    return heads


def load_names(db: Any, start: bytes) -> Iterator[str]:
    """The names of the logs that have a key which begins with `start`."""
    with _scan(db, start, values=False) as keys:
        for key in takewhile(lambda key: key.startswith(start), keys):
            yield key[len(start) :].decode()


def _scan(db: Any, start: bytes, *, values: bool = True) -> Any:
    """An iterator over the keys from `start` to the key of the id, with or without the values."""
    return db.iterator(
        start=start, stop=ID, include_stop=True, include_value=values, verify_checksums=True
    )


def _leap_over_log(keys: Any, prefix: bytes) -> bytes:
    """Return the last key under `prefix`, and have `keys` go on behind it."""
    keys.seek(prefix + b"\xff")
    try:
        last: bytes = keys.prev()
    except StopIteration:
        raise Unreadable(_CUT_SHORT) from None
    # After `prev`, the iterator would give `last` once more.
    next(keys, None)
    return last


def _note_among_strangers(db: Any, heads: dict[str, int], name: bytes, prefix: bytes) -> None:
    """Note the head of the log called `name`, whose last key under `prefix` has no number.

    Such a key is of an id with U+00FF: see "How gaps are found" above. So all keys are looked at.
    There is no head if the name cannot be an id.
    """
    with _scan(db, prefix, values=False) as keys:
        for key in takewhile(lambda key: key.startswith(prefix), keys):
            with suppress(ValueError):
                heads[check_peer(name.decode())] = unpack_seq(key[len(prefix) :])
