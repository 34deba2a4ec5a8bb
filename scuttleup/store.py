"""The logs in LevelDB: this peer's id, every log's head, and the entries, as bytes.

Whatever a process does with one database goes through one `Store`; whoever wants to follow what
is stored holds a `Follower`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import plyvel

from .changes import Run
from .errors import EntryNotFound, ScuttleupError
from .keys import (
    CHANGES,
    CHANGES_END,
    DELETED_HEADS,
    ID,
    SEPARATOR,
    change_keys,
    check_peer,
    log_bytes,
    log_prefix,
    pack_seq,
    unpack_seq,
)
from .limits import MAX_ENTRY, MAX_HANDSHAKE, MAX_SEQ

# The most that a run holds when it is read; its last entry may exceed the bytes. Small enough for
# the processor's cache, which is worth more than fewer turns, and for an event loop's patience.
RUN_ENTRIES = 256
RUN_BYTES = 32 * 1024
# So many keys of a log are read one by one, 0.5 µs each, before a seek to its last, 8 µs: where
# there are very many logs, most are short.
STEPS = 8


class Store:
    """The id, heads and entries kept in `db`, a `plyvel.DB` or a prefixed one.

    `id` is stored as this peer's id if it is given; else the stored one is used, or a new random
    one is made and stored. `sync` is the default of every write: fsync before it returns.

    `id` and `heads` (each peer's last number) are for reading, from any thread. `heads` changes
    only after LevelDB has what it promises.
    """

    def __init__(self, db: Any, *, id: str | None, sync: bool) -> None:
        self._db = db
        self._sync = sync
        # Held to write, follow and close; an RLock, since a signal handler may close in a write.
        self._lock = threading.RLock()
        # By id(). Weak, so that a follower that is dropped is gone; not a WeakSet, since
        # whether that is empty costs an append 4 % to find out.
        self._followers: dict[int, weakref.ref[Follower]] = {}
        self._closed = False
        # The heads before a write that began and was not seen to end, for `_recover`; else None.
        self._in_doubt: dict[str, int] | None = None
        self.id = _load_id(db, id)
        self.heads = _load_heads(db)
        # Bytes that are left in our handshake for logs that we do not hold yet.
        self.room = MAX_HANDSHAKE - sum(map(log_bytes, {self.id, *self.heads}))
        self.max_entry = MAX_ENTRY
        self._own_keys = self._keys_to_come()  # a step of it is much less than making a key

    def append(self, entry: bytes, sync: bool | None = None) -> int:
        """Store one entry of our own and return its number."""
        with self._lock:
            if self._in_doubt is not None or self._closed:
                self._prepare_to_write()
            own = self.id
            head = self.heads.get(own, 0)
            if head == MAX_SEQ:
                raise OverflowError(f"the log of {own!r} is full, its last number is {MAX_SEQ}")
            self._in_doubt = before = {own: head}
            key = next(self._own_keys)
            self._db.put(key, entry, sync=self._sync if sync is None else sync)
            self.heads[own] = head = head + 1
            if self._followers:
                self._notify(before)
            self._in_doubt = None
            return head

    def extend(self, entries: list[bytes], sync: bool | None = None) -> int:
        """Store entries of our own, all or none, and return the number of the first."""
        with self._lock:
            self._prepare_to_write()
            head = self.heads.get(self.id, 0)
            if head + len(entries) > MAX_SEQ:
                raise OverflowError(
                    f"{len(entries)} more entries do not fit into the log of {self.id!r}: "
                    f"it is at {head} and ends at {MAX_SEQ}"
                )
            self._put([Run(self.id, head + 1, entries)], sync)
            return head + 1

    def write(self, runs: Iterable[Run], sync: bool | None = None) -> int:
        """Store what was appended elsewhere, all or none; return how many entries were new.

        What a log has up to its head is skipped. A gap is stored as it is, since entries can be
        deleted; but not in our own log, where it is a ValueError: a stranger's entry would decide
        what number our next one gets.
        """
        with self._lock:
            self._prepare_to_write()
            return self._put(runs, sync)

    def _put(self, runs: Iterable[Run], sync: bool | None) -> int:
        heads: dict[str, int] = {}
        count = 0
        batch = self._db.write_batch(sync=self._sync if sync is None else sync)
        put = batch.put
        for peer, first, entries in runs:
            head = heads[peer] if peer in heads else self.heads.get(peer, 0)
            if first <= head:
                entries = entries[head + 1 - first :]
                first = head + 1
            if not entries:
                continue
            if peer == self.id and first != head + 1:
                raise ValueError(f"entry {first} of our own log {peer!r} does not follow {head}")
            keys = change_keys(log_prefix(peer), first, len(entries))
            deque(map(put, keys, entries), maxlen=0)  # a loop in C
            heads[peer] = first + len(entries) - 1
            count += len(entries)
        if count:
            self._in_doubt = {peer: self.heads.get(peer, 0) for peer in heads}
            batch.write()
            self._advance(heads)
        return count

    def delete(self, peer: str, seq: int) -> None:
        """Forget one entry. The newest one's number stays taken, after a restart too."""
        with self._lock:
            self._prepare_to_write()
            batch = self._db.write_batch(sync=self._sync)
            batch.delete(log_prefix(peer) + pack_seq(seq))
            if seq == self.heads.get(peer):
                batch.put(DELETED_HEADS + peer.encode(), pack_seq(seq))
            self._in_doubt = {}
            batch.write()
            self._in_doubt = None

    def _advance(self, heads: dict[str, int]) -> None:
        """Move the heads to `heads`, which LevelDB has, and tell the followers."""
        self.heads.update(heads)
        if self._in_doubt and self.id in self._in_doubt:
            self._own_keys = self._keys_to_come()
        if self._in_doubt and self._followers:
            self._notify(self._in_doubt)
        self._in_doubt = None  # last: what a Ctrl-C leaves undone is done again

    def _notify(self, before: dict[str, int]) -> None:
        followers = self._living()
        for peer, after in before.items():
            last = self.heads.get(peer, 0)
            if after < last:
                for follower in followers:
                    follower.notify(peer, after, last)

    def _living(self) -> list[Follower]:
        return [follower for ref in list(self._followers.values()) if (follower := ref())]

    def _keys_to_come(self) -> Iterator[bytes]:
        head = self.heads.get(self.id, 0)
        return change_keys(log_prefix(self.id), head + 1, MAX_SEQ - head)

    def _prepare_to_write(self) -> None:
        if self._closed:
            raise ScuttleupError("these logs are closed")
        if self._in_doubt is not None:
            self._recover()

    def _recover(self) -> None:
        # After a write that the disk refused, LevelDB 1.22 goes on in a journal in which it has
        # lost count of the blocks: whatever it acknowledges from then on may be gone at the next
        # opening. A compaction, even of nothing, makes it save what it holds and begin a new
        # journal. If it cannot save that it refuses all writes from then on, and a write to see
        # whether it can would go behind half a record, where it looks like damage.
        db = getattr(self._db, "db", self._db)
        _check_room(os.fsdecode(db.name))
        db.compact_range(start=ID, stop=ID)
        # After a Ctrl-C, which Python raises just after the call that it came in, LevelDB may
        # well have the batch.
        found = _load_heads(self._db)
        self._advance({p: head for p, head in found.items() if head > self.heads.get(p, 0)})

    def get(self, peer: str, seq: int) -> bytes:
        """The entry number `seq` of `peer`, else EntryNotFound."""
        key = log_prefix(peer) + pack_seq(seq)
        entry: bytes | None = self._db.get(key, verify_checksums=True)
        if entry is None:
            raise EntryNotFound(f"no entry {seq} of {peer!r}")
        return entry

    def follow(
        self, since: dict[str, int], *, snapshot: bool, live: bool, wake: Callable[[], None]
    ) -> Follower:
        """A follower of what is there by now (`snapshot`) and of what comes after it (`live`).

        It skips what `since` has; see `Follower` for that and for `wake`.
        """
        with self._lock:
            if self._closed:
                raise ScuttleupError("these logs are closed")
            heads = self.heads.items() if snapshot else ()
            spans = [(peer, 0, head) for peer, head in heads if head > since.get(peer, 0)]
            follower = Follower(self._db, since, sorted(spans), wake)
            if live:
                followers, key = self._followers, id(follower)
                followers[key] = weakref.ref(follower, lambda ref: followers.pop(key, None))
        return follower

    def close(self) -> None:
        """End every live follower and refuse every write. The database stays open."""
        with self._lock:
            # First, so that a follower's reader knows why a write of its own is refused.
            for follower in self._living():
                follower.close()
            self._closed = True


class Follower:
    """What one reader has not had yet, by peer id and number; then what is stored later.

    It holds no entries, only the spans to read, one a log: a reader that never comes costs next
    to nothing, and one new entry costs the same with one log or 100,000.

    `since` is how far the reader is by itself. It is looked up when a span is begun, so that
    replication can raise it for what the remote has sent. `wake` is called, from any thread, when
    something new is there for who has read all, and on `close`.
    """

    def __init__(
        self,
        db: Any,
        since: dict[str, int],
        spans: list[tuple[str, int, int]],
        wake: Callable[[], None],
    ) -> None:
        self._since = since
        self.closed = False
        self._db = db
        self._runs: Iterator[Run] | None = _read_spans(db, since, spans) if spans else None
        self._error: plyvel.Error | None = None
        self._fresh: dict[str, tuple[int, int]] = {}  # peer: (after, last)
        self._lock = threading.Lock()  # of _fresh
        self._wake = wake

    def notify(self, peer: str, after: int, last: int) -> None:
        """LevelDB has the entries of `peer` above `after` up to `last`."""
        with self._lock:
            had_all = not self._fresh
            if peer in self._fresh:
                after = self._fresh[peer][0]
            self._fresh[peer] = (after, last)
        if had_all:
            self._ring()

    def close(self) -> None:
        self.closed = True
        self._ring()

    def _ring(self) -> None:
        # Suppressed, since the entry is stored: an append that raised would be done again. Whom
        # this concerns, an event loop that is closed for one, has no use for the entry.
        with suppress(Exception):
            self._wake()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to read now."""
        return self._runs is None and not self._fresh

    def read(self) -> Run | None:
        """The next run of entries; None when there is nothing new.

        Raises `plyvel.Error`, and then every time: what is damaged must not look like the end.
        """
        if self._error:
            raise self._error
        while not self.idle:
            if self._runs is None:
                with self._lock:
                    fresh, self._fresh = self._fresh, {}
                spans = [(peer, after, last) for peer, (after, last) in fresh.items()]
                self._runs = _read_spans(self._db, self._since, spans)
            try:
                run = next(self._runs, None)
            except plyvel.Error as error:
                self._error = error
                raise
            if run:
                return run
            self._runs = None
        return None


def _read_spans(
    db: Any, since: dict[str, int], spans: Iterable[tuple[str, int, int]]
) -> Iterator[Run]:
    """The entries of each (peer, after, last): those above `after` up to `last`."""
    with _scan(db, CHANGES) as changes:
        for peer, after, last in spans:
            after = max(after, since.get(peer, 0))
            if after < last:
                yield from _read_span(changes, peer, after, last)
                # Told of it once more, there is nothing to read. The remote may be ahead by now.
                since[peer] = max(last, since.get(peer, 0))


def _read_span(changes: Any, peer: str, after: int, last: int) -> Iterator[Run]:
    # One iterator for all runs, no look at the keys between: 0.75 of a bare scan's speed, where
    # an iterator a run or a list of keys gives 0.5.
    prefix = log_prefix(peer)
    start = prefix + pack_seq(after + 1)
    last_key = prefix + pack_seq(last)
    changes.seek(start)
    while after < last:
        entries: list[bytes] = []
        room = RUN_BYTES
        wanted = min(RUN_ENTRIES, last - after)
        key = start
        for key, entry in islice(changes, wanted):
            entries.append(entry)
            room -= len(entry)
            if room <= 0:
                break
        else:
            if len(entries) < wanted and key != ID:
                raise _cut_short()
        if key == prefix + pack_seq(after + len(entries)):
            # Keys are in order and no two the same: so there is no gap.
            yield Run(peer, after + 1, entries)
            after += len(entries)
        else:
            # Something was deleted. Read the same once more, with a look at every key.
            changes.seek(start)
            for key, entry in islice(changes, len(entries)):
                if key > last_key:
                    return
                try:
                    after = unpack_seq(key[len(prefix) :])
                except ValueError:
                    continue  # the original stores ids that hold U+00FF, but never finds them
                yield Run(peer, after, [entry])
        start = key + b"\0"


def _scan(db: Any, start: bytes, *, values: bool = True) -> Any:
    """An iterator from `start` to the key of the id, which is there in every database of ours.

    plyvel ends an iteration over a damaged file as if there was no more. So a scan that does not
    come to a key above what it looks for was cut short: see `_cut_short`.
    """
    return db.iterator(
        start=start, stop=ID, include_stop=True, include_value=values, verify_checksums=True
    )


def _cut_short() -> plyvel.CorruptionError:
    return plyvel.CorruptionError(b"Corruption: a part of the database cannot be read")


def _check_room(folder: str) -> None:
    """Raise plyvel.IOError unless there is room for what LevelDB holds, which its journal has."""
    from glob import escape, glob  # only here: few programs ever come here
    from tempfile import TemporaryFile

    held = sum(map(os.path.getsize, glob(escape(folder) + "/*.log")))
    try:
        with TemporaryFile(dir=folder) as probe:
            probe.write(bytes(held + (64 << 10)))  # and some for an index and a new journal
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise plyvel.IOError(f"IO error: {folder}: {error.strerror}".encode()) from error


def _load_id(db: Any, id: str | None) -> str:
    """The id stored, or `id` or a new one, which is then stored."""
    stored = db.get(ID, verify_checksums=True)
    if id is None:
        id = stored.decode() if stored is not None else os.urandom(16).hex()
    check_peer(id)
    if id.encode() != stored:
        db.put(ID, id.encode())
    return id


def _load_heads(db: Any) -> dict[str, int]:
    """Every log's last number, be that entry deleted or not."""
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
            # What is no number of a log is the original's, which stores ids that hold U+00FF or
            # more, but does not find them again: "us\xff05" sorts into the log of "us".
            with suppress(ValueError):
                heads[check_peer(name.decode())] = unpack_seq(key[len(prefix) :])
        else:
            raise _cut_short()
    with _scan(db, DELETED_HEADS) as deleted:
        for key, number in deleted:
            if not key.startswith(DELETED_HEADS):
                break
            peer = key[len(DELETED_HEADS) :].decode()
            heads[peer] = max(heads.get(peer, 0), unpack_seq(number))
        else:
            raise _cut_short()
    return heads


def _leap_over_log(keys: Any, prefix: bytes, key: bytes) -> bytes:
    """The last key under `prefix`, or `key` if that one has no number; `keys` goes on behind it."""
    keys.seek(prefix + b"\xff")
    try:
        last: bytes = keys.prev()
        unpack_seq(last[len(prefix) :])
    except StopIteration:
        raise _cut_short() from None
    except ValueError:
        keys.seek(key + b"\0")
        return key
    next(keys, None)  # `last` once more
    return last
