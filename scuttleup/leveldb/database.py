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

*Errors are in words.* What the binding raises leaves this file as `DatabaseError`, with the path,
the reason, and the binding's own error as its cause.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from ..errors import DamagedDatabase, DatabaseError, ScuttleupError
from . import fork
from .binding import ERRORS, Unreadable, decode, in_words
from .files import check_room

# Why a database cannot be used after `close`.
_CLOSED = "these logs are closed"


class Database:
    """An open LevelDB, with the locks and the errors that its binding lacks.

    `db` is an object of the binding, or a prefixed one. `path` is what the user calls it, and
    stands in every error. `owned` says whether `close` closes `db`.

    Use it like this, with `writes` in place of `reads` to write:

        with database.reads, database as db:
            db.get(key)
    """

    def __init__(self, db: Any, path: str | None = None, *, owned: bool = False) -> None:
        self.db = db
        # The LevelDB itself, where `db` is only a prefixed part of it.
        self.whole = getattr(db, "db", db)
        name = decode(self.whole.name)
        self.path = path or name
        # The real path, which stays right wherever the process goes later.
        self.folder = os.path.realpath(name)
        self._owned = owned
        # Why the database cannot be used, or None as long as it can.
        self.refusal: str | None = None
        # Whoever uses LevelDB holds one of the two. `close` takes both once.
        self.reads = threading.RLock()
        self.writes = threading.RLock()
        fork.track(self)

    def ready(self) -> Any:
        """The LevelDB to use, for one who holds `reads` or `writes`.

        Raises ScuttleupError if it was closed, or opened before a fork.
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

    def error(self, error: Exception) -> ScuttleupError:
        """The exception to raise in place of `error`, which is one of ERRORS."""
        if isinstance(error, RuntimeError):
            if self.refusal is not None:
                return ScuttleupError(self.refusal)
            return DatabaseError(f"{self.path} was closed while these logs were in use")
        if isinstance(error, Unreadable):
            return DamagedDatabase(f"{self.path} is damaged: {error}")
        # When LevelDB could not save what it holds, for instance while the disk was full, it gives
        # this error at every write from then on, also when there is room again.
        return in_words(self.path, error, "; if this stays so, close it and open it again")

    def close(self) -> None:
        """Refuse every use from now on, wait for those under way, and close what is owned.

        Closing it again does nothing. In a child process this does nothing at all, since the files
        belong to the parent.
        """
        if self.refusal is fork.FORKED:
            return
        self.refusal = _CLOSED
        with self.writes:
            pass
        # Whoever reads the same LevelDB through another object must be out of it as well, as its
        # owner closes it next.
        for database in fork.databases():
            if database.whole is self.whole:
                with database.reads:
                    pass
        if self._owned:
            self.db.close()

    def begin_new_journal(self) -> None:
        """Have LevelDB save what it holds and begin a new journal.

        Raises DatabaseError unless there is room on the disk for that.
        """
        check_room(self.folder)
        # A compaction makes LevelDB save what it holds, even of a range without entries, as here.
        self.whole.compact_range(start=b"\xff", stop=b"\xff")
