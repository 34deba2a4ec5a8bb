"""An open LevelDB that any thread may use and close, and that says in words what is wrong.

*Closing is safe.* The binding crashes the process if a LevelDB is closed while another thread reads
from it. Here, a thread that reads holds the lock `reads` and a thread that writes holds the lock
`writes`. Either then asks `ready` for the LevelDB. `close` first sets `refusal`, the reason why
nothing can be read or written any more, and then takes both locks once. After that, no thread is
inside LevelDB and no thread will come in. The wait is short, because a reader gives the lock back
after each run, and no iterator outlives the lock. Both locks are RLocks, because a signal handler
may call `close` while its own thread is reading. That is safe: Python runs a handler between two
calls into LevelDB and never during one. Whoever holds `reads` never waits for `writes`, so the two
cannot block each other.

*A compaction stops nobody.* LevelDB can compact for seconds, and lets others read and write
meanwhile. So a compaction holds neither lock, but its own, and only `close` waits for that.

*A folder that has gone gets no more writes.* `look` asks whether the folder is still there. Every
write calls `look`, but only once in LOOK_SECONDS, and so does a compaction at its beginning. Until
then, and during a compaction, LevelDB may still write under the old name.

*Sync.* A write with `sync` returns when all that was written up to its end will survive a power
failure. LevelDB syncs the journal that is being written. If unsynced writes came before, an older
journal may be unsynced as well. Then `write` syncs the older journals before the write, and once
more afterwards, because the write itself may have made LevelDB begin a new journal. A program that
always syncs, or never, pays nothing for this.

*Errors are in words.* The binding's errors leave this file as `DatabaseError`, with the path, the
reason, and the binding's own error as its cause.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from contextlib import suppress
from time import monotonic

from .. import limits
from ..errors import DamagedDatabase, DatabaseError, ScuttleupError, WriteInDoubt
from . import fork
from .binding import ERRORS, OTHER, Unreadable, binding, decode, in_words
from .files import check_room, newest_journal, sync_older_journals
from .folder import Folder, Ident, ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Why a database cannot be used after `close`.
_CLOSED = "these logs are closed"


class Database:
    """An open LevelDB, with the locks and the errors that its binding lacks.

    `db` is an object of the binding, or a prefixed one. `path` is the user's name for the database,
    and stands in every error. With a `folder`, `close` closes both that and `db`.

    Use it like this, with `writes` in place of `reads` to write:

        with database.reads, database as db:
            db.get(key)
    """

    def __init__(self, db: Any, path: str | None = None, *, folder: Folder | None = None) -> None:
        self.db = db
        # The LevelDB itself, where `db` is only a prefixed part of it.
        self.whole = getattr(db, "db", db)
        if type(self.whole).__module__.partition(".")[0] == OTHER:
            raise TypeError(f"db is a LevelDB of {binding.__name__}, not of {OTHER}: {db!r}")
        name = decode(self.whole.name)
        self.path = path or name
        # The real path, which stays right wherever the process goes later.
        self.folder = os.path.realpath(name)
        # The identities of the folder and the file CURRENT, and when to look next whether they are
        # there.
        self.ident, self._current = self._look()
        self.look_next = 0.0
        self._folder = folder
        # This closes what is owned, also if nobody calls `close`: the LevelDB first.
        self._release = weakref.finalize(self, _release, db, folder)
        self._release.atexit = False
        # Why the database cannot be used; None while it can.
        self.refusal: str | None = None
        # Whoever uses LevelDB holds one of the first two. `close` takes each of them once.
        self.reads = threading.RLock()
        self.writes = threading.RLock()
        self._compacts = threading.RLock()
        # Whether a write without sync may have come before, perhaps by whoever opened `db`.
        self.unsynced = True
        fork.track(self)

    def ready(self) -> Any:
        """The LevelDB to use, for one who holds `reads` or `writes`.

        Raises ScuttleupError if the database was closed, or opened before a fork.
        """
        if self.refusal is not None:
            raise ScuttleupError(self.refusal)
        return self.db

    # `with database.reads, database as db:` is how to read. It also puts errors in words.
    __enter__ = ready

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Raise an error of LevelDB once more, as a DatabaseError with the path and the reason."""
        if isinstance(error, RuntimeError) and "closed" not in str(error):
            return  # this error is not the binding's
        if isinstance(error, ERRORS):
            # No variable holds the new error. The error refers to this frame, so a variable of the
            # frame would keep both in memory.
            raise self.error(error) from error

    @property
    def closed(self) -> bool:
        """Whether `close` was called, in this process."""
        return self.refusal is _CLOSED

    def error(self, error: Exception, *, in_doubt: bool = False) -> ScuttleupError:
        """The exception to raise in place of `error`, which is one of ERRORS.

        With `in_doubt` the error says that nobody knows whether the write is stored.
        """
        if isinstance(error, RuntimeError):
            if self.refusal is not None:
                return ScuttleupError(self.refusal)
            return DatabaseError(f"{self.path} was closed while these logs were in use")
        if self._look() != (self.ident, self._current):
            return DatabaseError(f"{self.path} was moved or deleted while it was open")
        if isinstance(error, Unreadable):
            return DamagedDatabase(f"{self.path} is damaged: {error}")
        if in_doubt:
            doubt = "it is not known whether this is stored, and `head` will tell"
            return WriteInDoubt(f"{in_words(self.path, error)}; {doubt}")
        # After LevelDB could not save its memory, for instance while the disk was full, every write
        # gets this error, also when there is room again.
        return in_words(self.path, error, "; if this stays so, close it and open it again")

    def write(self, write: Callable[[], None], *, sync: bool) -> None:
        """Have LevelDB `write` a batch, which was made with the same `sync`: see "Sync" above."""
        older = sync and self.unsynced
        self.unsynced = self.unsynced or not sync
        if older:
            sync_older_journals(self.folder)
        try:
            write()
            if older:
                sync_older_journals(self.folder)
        except ERRORS as error:
            # A write that did not reach the disk may still be found in the journal.
            raise self.error(error, in_doubt=sync) from error
        if sync:
            self.unsynced = False

    def close(self) -> None:
        """Refuse every use from now on, wait for those under way, and close what is owned.

        A second call does nothing. Nor does any call in a child process, since the files belong to
        the parent.
        """
        if self.refusal is fork.FORKED:
            return
        self.refusal = _CLOSED
        for lock in self.writes, self._compacts:
            with lock:
                pass
        # Whoever reads the same LevelDB through another object must be out of it as well, as its
        # owner closes it next.
        for database in fork.databases():
            if database.whole is self.whole:
                with database.reads:
                    pass
        self._release()

    def leave_to_parent(self, refusal: str) -> None:
        """Refuse every use from now on, in a child process that has just been forked."""
        self.refusal = refusal
        # Another thread of the parent may have held the locks, and there is no such thread here.
        self.reads, self.writes = threading.RLock(), threading.RLock()
        self._release.detach()
        if self._folder:
            self._folder.close(in_child=True)
        # With a reference too many, Python never frees the object, even at the end of the process.
        import ctypes

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.whole))

    def look(self) -> None:
        """Raise DatabaseError if the folder was moved or deleted. Call it at `look_next`."""
        if self._look() != (self.ident, self._current):
            raise DatabaseError(f"{self.path} was moved or deleted while it was open")
        self.look_next = monotonic() + limits.LOOK_SECONDS

    def _look(self) -> tuple[Ident | None, Ident | None]:
        return ident(self.folder), ident(os.path.join(self.folder, "CURRENT"))

    def compact(self, start: bytes, stop: bytes) -> None:
        """Have LevelDB drop the deleted entries between two keys, and give back the disk.

        Without bounds LevelDB would only begin a new journal. Raises DatabaseError unless the disk
        has room for all that LevelDB holds.
        """
        with self._compacts, self as db:
            self.look()
            check_room(self.folder)
            prefix = b"" if db is self.whole else db.prefix
            self.whole.compact_range(start=prefix + start, stop=prefix + stop)

    def compact_soon(self, start: bytes, stop: bytes) -> None:
        """Do as `compact` in a thread of its own; after a failure, a later call does the work."""

        def run() -> None:
            with suppress(ScuttleupError):
                self.compact(start, stop)

        threading.Thread(target=run).start()

    def begin_new_journal(self) -> None:
        """Have LevelDB save its memory and begin a new journal.

        Raises DatabaseError if there is no room on the disk for that, or if LevelDB cannot.
        """
        check_room(self.folder)
        before = newest_journal(self.folder)
        # A compaction makes LevelDB save what it holds, even of a range without entries, as here.
        self.whole.compact_range(start=b"\xff", stop=b"\xff")
        # LevelDB tells of no error: without a new journal it goes on in the old.
        if newest_journal(self.folder) == before:
            raise OSError(errno.EIO, "LevelDB could not begin a new one", "its journal")


def _release(db: Any, folder: Folder | None) -> None:
    """Close a LevelDB that we have opened, and then let others in."""
    if folder:
        db.close()
        folder.close()
