"""The logs in LevelDB: this peer's id, the head of every log, and the entries, as bytes.

Theory of operation
-------------------

Whatever a process does with one database goes through one `Store`. It promises this:

*Numbers.* The entries of our own log get the numbers 1, 2, 3, …, without a gap, and no number is
given out twice. The next number is our head plus one. A head is the last number that was ever
stored of a log. It is remembered by the key of the newest entry itself, and, when that entry is
deleted, by a key of its own that is written in the same batch. So a head never goes back, not at
the next opening either.

*Heads.* `heads` holds every head, in memory. It is read from the keys at opening and moves only
after LevelDB has what it promises. A write therefore goes: decide the numbers, hand the batch to
LevelDB, move the heads, tell the followers. The lock `writes` keeps two writes apart.

*All or none.* Each write is one atomic LevelDB batch. If LevelDB refuses it, no head has moved.

*A write in doubt.* A write that began and was not seen to end is in doubt: LevelDB reported an
error, or a Ctrl-C came in between. Then it is unknown whether LevelDB has the batch. Nothing is
done about it at once. But the next write first settles it: it has LevelDB begin a new journal (see
`_settle`), reads the heads anew, and makes all followers look at them. Heads that LevelDB has only
grow, so what was stored is found, and what was not is not missed.

*Sync.* A write with `sync` returns when it, and everything that was written before it, will
survive a power failure. LevelDB syncs the journal that it writes to. If unsynced writes came
before, an older journal may lie there unsynced as well; then that one is synced here, before the
write and once more after it, as the write itself may have made LevelDB begin a new journal. Who
always syncs, and who never does, pays nothing for this. The id is always synced: entries that
survive under a lost id would be somebody else's.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from .changes import Run
from .database import BINDING_ERRORS, Database
from .errors import EntryNotFound
from .follower import Follower, News, Span
from .keys import DELETED_HEADS, ID, change_keys, check_peer, log_bytes, log_prefix, pack_seq
from .limits import MAX_HANDSHAKE, MAX_SEQ
from .scan import load_heads, load_id


class Store:
    """The id, heads and entries kept in `database`.

    `id` is stored as this peer's id if it is given; else the stored one is used, or a new random
    one is made and stored. `sync` is the default of every write. `max_entry` is the most bytes that
    an entry may have.

    `id`, `heads` (each peer's last number) and `room` (the bytes that our handshake, whose size is
    limited, has left for logs that are not here yet) are for reading, from any thread.
    """

    def __init__(self, database: Database, *, id: str | None, sync: bool, max_entry: int) -> None:
        self._database = database
        self._sync = sync
        self.max_entry = max_entry
        self._news = News()
        self._in_doubt = False  # whether a write began and was not seen to end
        self._unsynced = True  # whether a write without sync may have come before
        with database.reads:
            db = database.ready()
            try:
                self.id = self._load_id(db, id)
                self.heads = load_heads(db)
            except BINDING_ERRORS as error:
                raise database.error(error) from error
        self.room = _room(self.id, self.heads)
        self._own_keys = self._keys_to_come()  # a step of it is much less than making a key

    def _load_id(self, db: Any, id: str | None) -> str:
        """The id stored, or `id` or a new one, which is then stored."""
        stored = load_id(db)
        if id is None:
            id = stored or os.urandom(16).hex()
        if check_peer(id) != stored:
            db.put(ID, id.encode(), sync=True)
            self._database.sync_folders()
        return id

    def append(self, entry: bytes, sync: bool | None = None) -> int:
        """Store one entry of our own and return its number."""
        # Flat, because this is the hottest path: of 2.6 µs LevelDB takes 1.6, the lock and the
        # flags 0.2, the key 0.05.
        database = self._database
        with database.writes:
            if self._in_doubt or database.refusal is not None:
                self._prepare_to_write()
            if len(entry) > self.max_entry:
                raise self._too_large(entry)
            own = self.id
            head = self.heads.get(own, 0)
            if head == MAX_SEQ:
                raise OverflowError(f"the log of {own!r} is full, its last number is {MAX_SEQ}")
            self._in_doubt = True
            key = next(self._own_keys)
            if self._sync if sync is None else sync:
                self._commit(partial(database.db.put, key, entry, sync=True), True)
            else:
                self._unsynced = True
                try:
                    database.db.put(key, entry)
                except BINDING_ERRORS as error:
                    raise database.error(error) from error
            self.heads[own] = head = head + 1
            news = self._news
            if news.followers:
                news.add(own, head - 1, head)
                news.wake()
            self._in_doubt = False
            return head

    def extend(self, entries: list[bytes], sync: bool | None = None) -> int:
        """Store entries of our own, all or none, and return the number of the first."""
        with self._database.writes:
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
        what number our next one gets. An entry above `max_entry` and a new log for which our
        handshake has no room are a ValueError, too.
        """
        with self._database.writes:
            self._prepare_to_write()
            return self._put(runs, sync)

    def _put(self, runs: Iterable[Run], sync: bool | None) -> int:
        heads: dict[str, int] = {}
        room = self.room
        count = 0
        sync = self._sync if sync is None else sync
        batch = self._database.db.write_batch(sync=sync)
        put = batch.put
        for peer, first, entries in runs:
            head = heads[peer] if peer in heads else self.heads.get(peer, 0)
            if first <= head:
                entries = entries[head + 1 - first :]
                first = head + 1
            if not entries:
                continue
            if peer == self.id:
                if first != head + 1:
                    raise ValueError(
                        f"entry {first} of our own log {peer!r} does not follow {head}"
                    )
            elif not head:
                room -= log_bytes(peer)
                if room < 0:
                    raise ValueError(f"there are too many logs here to add the one of {peer!r}")
            if max(map(len, entries)) > self.max_entry:
                raise self._too_large(max(entries, key=len))
            keys = change_keys(log_prefix(peer), first, len(entries))
            deque(map(put, keys, entries), maxlen=0)  # a loop in C
            heads[peer] = first + len(entries) - 1
            count += len(entries)
        if count:
            self._commit(batch.write, sync)
            before = [(peer, self.heads.get(peer, 0), last) for peer, last in heads.items()]
            self.heads.update(heads)
            self.room = room
            if self.id in heads:
                self._own_keys = self._keys_to_come()
            if self._news.followers:
                for peer, after, last in before:
                    self._news.add(peer, after, last)
                self._news.wake()
            self._in_doubt = False
        return count

    def delete(self, peer: str, seq: int) -> None:
        """Delete one entry; its number stays used."""
        with self._database.writes:
            self._prepare_to_write()
            batch = self._database.db.write_batch(sync=self._sync)
            batch.delete(log_prefix(peer) + pack_seq(seq))
            if seq == self.heads.get(peer):
                batch.put(DELETED_HEADS + peer.encode(), pack_seq(seq))
            self._commit(batch.write, self._sync)
            self._in_doubt = False

    def _commit(self, write: Callable[[], None], sync: bool) -> None:
        """Do `write`, which then is in doubt until the caller has moved the heads."""
        self._in_doubt = True
        older = sync and self._unsynced
        self._unsynced = self._unsynced or not sync
        try:
            if older:
                self._database.sync_older_journals()
            write()
            if older:
                self._database.sync_older_journals()
        except BINDING_ERRORS as error:
            raise self._database.error(error) from error
        if sync:
            self._unsynced = False

    def _keys_to_come(self) -> Iterator[bytes]:
        head = self.heads.get(self.id, 0)
        return change_keys(log_prefix(self.id), head + 1, MAX_SEQ - head)

    def _too_large(self, entry: bytes) -> ValueError:
        return ValueError(
            f"an entry of {len(entry)} bytes is too large, the most is {self.max_entry}"
        )

    def _prepare_to_write(self) -> None:
        self._database.ready()
        if self._in_doubt:
            self._settle()

    def _settle(self) -> None:
        """Find out what LevelDB has of the writes that are in doubt."""
        database = self._database
        try:
            # After a journal write that the disk refused, LevelDB (1.22 and 1.23) goes on in a
            # journal in which it has lost count of the blocks: what it acknowledges from then on
            # may be gone at the next opening. In a new journal it counts anew.
            database.begin_new_journal()
            found = load_heads(database.db)
        except BINDING_ERRORS as error:
            raise database.error(error) from error
        for peer, head in found.items():
            self.heads[peer] = max(head, self.heads.get(peer, 0))
        self.room = _room(self.id, self.heads)
        self._own_keys = self._keys_to_come()
        self._news.forget()
        self._news.wake()
        self._in_doubt = False  # last: what a Ctrl-C leaves undone is done again

    def get(self, peer: str, seq: int) -> bytes:
        """The entry number `seq` of `peer`, else EntryNotFound."""
        database = self._database
        key = log_prefix(peer) + pack_seq(seq)
        with database.reads:
            try:
                entry: bytes | None = database.ready().get(key, verify_checksums=True)
            except BINDING_ERRORS as error:
                raise database.error(error) from error
        if entry is None:
            raise EntryNotFound(f"no entry {seq} of {peer!r}")
        return entry

    def follow(
        self,
        since: dict[str, int],
        *,
        snapshot: bool,
        live: bool,
        wake: Callable[[], None],
    ) -> Follower:
        """A follower of what is there by now (`snapshot`) and of what comes after it (`live`).

        It skips what `since` has; see `Follower` for that and for `wake`.
        """
        with self._database.writes:
            self._database.ready()
            heads = self.heads.items()
            spans: list[Span] = []
            if snapshot:
                spans = sorted((peer, 0, last) for peer, last in heads if last > since.get(peer, 0))
            else:
                since.update((peer, last) for peer, last in heads if last > since.get(peer, 0))
            return Follower(
                self._database, self.heads, self._news, since, spans, live=live, wake=wake
            )

    def close(self) -> None:
        """Refuse every use from now on, wait for those under way, and end every live follower."""
        self._database.close()
        self._news.wake_all()


def _room(id: str, heads: dict[str, int]) -> int:
    return MAX_HANDSHAKE - sum(map(log_bytes, heads)) - (0 if id in heads else log_bytes(id))
