"""The logs in LevelDB: this peer's id, the head of every log, and the entries, as bytes.

Theory of operation
-------------------

Everything that a process does with one database goes through one `Store`. It makes these promises:

*Numbers.* The entries of our own log get the numbers 1, 2, 3, …, without a gap, and no number is
given out twice. The next number is our head plus one. A head is the last number that was ever
stored of a log. The key of the newest entry itself records the head, and whoever deletes that entry
keeps the head (see `deleting/`). So a head never goes back, not at the next opening either.

*Heads.* `heads` holds every head, in memory. The heads are read from the keys at opening and move
only after LevelDB has the entries. A write therefore goes: decide the numbers, hand the batch to
LevelDB, move the heads, tell the followers. The lock `writes` keeps two writes apart.

*All or none.* Each write is one atomic LevelDB batch. If LevelDB refuses the batch, no head has
moved.

*A write in doubt.* A write that began and was not seen to end is in doubt: LevelDB reported an
error, or a Ctrl-C came in between. Then nobody knows whether LevelDB has the batch. Nothing is done
at once, but the next write first settles the doubt: it makes LevelDB begin a new journal (see
`settle`), reads the heads anew, and makes all followers look at them. So a write that LevelDB has
is found, and a write that LevelDB lacks leaves no gap.

*No write within a write.* The lock is an RLock, so that a signal handler may close the logs. Such a
handler, or a finalizer, could therefore also write while its own thread is writing, and both writes
would get the same number. So whoever holds the lock already is refused.

*Others' entries.* They are decided on in `replication/door.py`, under the lock `writes`, so no head
can move between the decision and `commit`. The signatures in 64 KiB of a hostile remote take 25 ms
at the worst.

*Signed logs.* `signed/` signs our own entries, and says which hash to keep of a deleted newest
entry.

*Sync.* `Database.write` syncs. The id is always synced: entries that survive under a lost id would
be somebody else's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from time import monotonic

from . import limits
from .changes import Run
from .errors import EntryNotFound, ScuttleupError
from .follower import Follower, Had, News, Wake
from .keys import ID, change_keys, log_bytes, log_prefix, pack_seq
from .leveldb import ERRORS, Database, files
from .limits import MAX_SEQ
from .notes import Events, Marks, load_marks
from .scan import load_heads, load_id
from .signed import Authors, find_id, is_signed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NESTED = "a write was begun in the middle of another one, for instance by a signal handler"


class Store:
    """The id, heads and entries kept in `database`.

    An `id` that is given is stored as this peer's id. Else the stored id is used. In a new database
    an id is made: that of `key`, the secret key of a signed log, or a random id. `sync` is the
    default of every write. `max_entry` is the most bytes that a stored entry may have. With
    `only_signed`, no unsigned log is taken from others.

    Four attributes are for reading, from any thread: `id`; `heads`, which has each peer's last
    number; `marks`, which say whether these logs may go on; and `room`, which is how many of its
    MAX_HANDSHAKE bytes our handshake has left for logs that are not here yet.

    Raises DatabaseError if the database cannot be read, and what `find_id` raises.
    """

    def __init__(
        self,
        database: Database,
        *,
        id: str | None,
        sync: bool,
        max_entry: int,
        key: bytes | None = None,
        only_signed: bool = False,
    ) -> None:
        self.database = database
        self.sync = sync
        self.max_entry = max_entry
        # Whoever has to do with these logs tells events here.
        self.events = Events()
        # Whether a write began and was not seen to end.
        self._in_doubt = False
        with database.reads, database as db:
            stored = load_id(db)
            self.id = find_id(stored, id, key, only_signed)
            if self.id != stored:
                db.put(ID, self.id.encode(), sync=True)
                files.sync_folder(database.folder)
            marks = load_marks(db)
            self.heads = load_heads(db, marks.forgotten)
        self._news = News(database, self.heads)
        self.only_signed = only_signed
        self.take_id(self.id, key)
        self.go_on(marks)

    def take_id(self, id: str, key: bytes | None) -> None:
        """Go on as the peer `id`, whose secret key is `key`. The id is stored already."""
        self.id = id
        self.is_signed = is_signed(id)
        self.authors = Authors(self.database, id, key)
        self._count_anew()

    def go_on(self, marks: Marks) -> None:
        """Go on with these marks, which are stored already. The heads of forgotten logs go."""
        self.marks = marks
        for peer in marks.forgotten:
            if self.heads.pop(peer, 0):
                self.room += log_bytes(peer)
        # The last number that `append` may give out.
        self._last = 0 if marks.stop else MAX_SEQ

    def append(self, entry: bytes, sync: bool | None = None) -> int:
        """Store one entry of our own and return its number.

        Raises OverflowError if the log is full, ValueError if the entry is larger than `max_entry`,
        and ScuttleupError if the entry cannot be signed.
        """
        # Everything stands here, without further functions, because no other write is called as
        # often.
        database = self.database
        if database.writes._is_owned():  # type: ignore[attr-defined]  # see `refuse_nested`
            raise ScuttleupError(_NESTED)
        with database.writes:
            if self._in_doubt or database.refusal is not None or monotonic() > database.look_next:
                with database:
                    self.settle()
            own = self.id
            head = self.heads.get(own, 0)
            if head >= self._last:
                self.marks.check_may_append(own, database.path)
                raise OverflowError(f"the log of {own!r} is full, its last number is {MAX_SEQ}")
            if self.is_signed:
                [entry] = self.authors.seal(head, [entry])
            if len(entry) > self.max_entry:
                raise ValueError(too_large(head + 1, len(entry), self.max_entry))
            if self.sync if sync is None else sync:
                with database:
                    self.commit([Run(own, head + 1, [entry])], True)
                return head + 1
            # The steps of `commit_batch`, for the most frequent write.
            self._in_doubt = database.unsynced = True
            try:
                database.db.put(next(self._own_keys), entry)
            except ERRORS as error:
                raise database.error(error) from error
            self.heads[own] = head = head + 1
            news = self._news
            if news.followers:
                news.add((own,))
                news.wake()
            self._in_doubt = False
            return head

    def extend(self, entries: list[bytes], sync: bool | None = None) -> int:
        """Store entries of our own, all or none, and return the number of the first.

        Raises as `append` does, and then stores nothing.
        """
        self.refuse_nested()
        with self.database.writes, self.database:
            self.settle()
            self.marks.check_may_append(self.id, self.database.path)
            head = self.heads.get(self.id, 0)
            if head + len(entries) > MAX_SEQ:
                raise OverflowError(
                    f"{len(entries)} more entries do not fit into the log of {self.id!r}: "
                    f"it is at {head} and ends at {MAX_SEQ}"
                )
            if self.is_signed:
                entries = self.authors.seal(head, entries)
            if max(map(len, entries), default=0) > self.max_entry:
                sizes = enumerate(map(len, entries), head + 1)
                seq, size = next(each for each in sizes if each[1] > self.max_entry)
                raise ValueError(too_large(seq, size, self.max_entry))
            self.commit([Run(self.id, head + 1, entries)], sync)
            return head + 1

    def commit(self, runs: Iterable[Run], sync: bool | None = None) -> int:
        """Store `runs` in one batch; return how many entries they have.

        The caller has decided that they may be stored, each above the head of its log:

        >>> store.refuse_nested()
        >>> with store.database.writes, store.database:
        ...     store.settle()
        ...     store.commit([Run("foobar", store.heads["foobar"] + 1, [b"hello"])])
        """
        heads: dict[str, int] = {}
        count = 0
        sync = self.sync if sync is None else sync
        batch = self.database.db.write_batch(sync=sync)
        put = batch.put
        for peer, first, entries in runs:
            keys = change_keys(log_prefix(peer), first, len(entries))
            # This is a loop in C: `put` is called with each key and its entry.
            deque(map(put, keys, entries), maxlen=0)
            heads[peer] = first + len(entries) - 1
            count += len(entries)
        if count:
            self.commit_batch(batch, sync, heads)
        return count

    def commit_batch(
        self, batch: Any, sync: bool, heads: dict[str, int], marks: Marks | None = None
    ) -> None:
        """Have LevelDB write `batch`; then move `heads`, tell the followers, and take on `marks`.

        In between the write is in doubt.
        """
        self._in_doubt = True
        self.database.write(batch.write, sync=sync)
        # LevelDB has the batch. Only now the heads move, and the followers are told.
        if marks:
            self.go_on(marks)
        if heads:
            if new := heads.keys() - self.heads.keys() - {self.id}:
                self.room -= sum(map(log_bytes, new))
            self.heads.update(heads)
            if self.id in heads:
                self._own_keys = self._keys_to_come()
                self.authors.forget()
            if self._news.followers:
                self._news.add(heads)
                self._news.wake()
        self._in_doubt = False

    def _count_anew(self) -> None:
        """Take from `heads` what follows from them: the room, and how our own log goes on."""
        self.room = limits.MAX_HANDSHAKE - sum(map(log_bytes, {self.id, *self.heads}))
        self._own_keys = self._keys_to_come()
        self.authors.forget()

    def _keys_to_come(self) -> Iterator[bytes]:
        """The keys of all entries that our own log can still get.

        To take the next of them is much faster than to make a key anew.
        """
        head = self.heads.get(self.id, 0)
        return change_keys(log_prefix(self.id), head + 1, MAX_SEQ - head)

    def refuse_nested(self) -> None:
        """Raise ScuttleupError if this thread is within a write already. Each write asks first."""
        # The method is private, but `threading.Condition` relies on it as well.
        if self.database.writes._is_owned():  # type: ignore[attr-defined]
            raise ScuttleupError(_NESTED)

    def settle(self) -> None:
        """Find out which of the writes in doubt LevelDB has, if there are any.

        Every write calls this first. Raises DatabaseError if the folder is not there any more.
        """
        if monotonic() > self.database.look_next:
            self.database.look()
        if not self._in_doubt:
            return
        # When the disk refuses a write to the journal, LevelDB (1.22 and 1.23) goes on in that
        # journal, but loses count of the blocks. Writes that are acknowledged from then on may be
        # gone at the next opening. In a new journal LevelDB counts anew.
        self.database.begin_new_journal()
        marks = load_marks(self.database.db)
        found = load_heads(self.database.db, marks.forgotten)
        for peer, head in found.items():
            self.heads[peer] = max(head, self.heads.get(peer, 0))
        self._count_anew()
        self.go_on(marks)
        self._news.forget()
        # This also wakes the followers that a write in doubt was about to wake.
        self._news.wake_all()
        # This comes last, so a Ctrl-C above leaves the doubt, and all of this is done again.
        self._in_doubt = False

    def get(self, peer: str, seq: int) -> bytes:
        """The stored bytes of entry number `seq` of `peer`. Raises EntryNotFound."""
        key = log_prefix(peer) + pack_seq(seq)
        database = self.database
        with database.reads:
            try:  # what `with database as db` does, without its two calls
                entry: bytes | None = database.ready().get(key, verify_checksums=True)
            except ERRORS as error:
                raise database.error(error) from error
        if entry is None:
            raise EntryNotFound(f"no entry {seq} of {peer!r}")
        return entry

    def follow(self, had: Had, *, snapshot: bool, live: bool, wake: Wake) -> Follower:
        """A follower of the entries that are there now (`snapshot`), and of later entries (`live`).

        See `Follower` for `had` and `wake`. A follower that is neither live nor a snapshot gives
        nothing to read, but wakes its owner when the logs are closed.
        """
        # No write may come between the look at the heads and the place in the news.
        with self.database.writes:
            self.database.ready()
            return Follower(self._news, had, snapshot=snapshot, live=live, wake=wake)

    def close(self) -> None:
        """Refuse every use from now on, wait for those under way, and wake all who follow.

        A second call does nothing.
        """
        self.database.close()
        self._news.wake_all()


def too_large(seq: int, size: int, most: int) -> str:
    """What is wrong with entry `seq`, which has `size` bytes, where `most` is the most.

    A size of 0 stands for an unknown size.
    """
    if not size:
        return f"entry {seq} has more than {most} bytes"
    return f"entry {seq}, of {size} bytes, is too large: the most is {most}"
