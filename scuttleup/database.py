"""LevelDB: the one file that knows its Python binding.

Theory of operation
-------------------

A `Database` is an open LevelDB together with three promises that the binding does not make.

*Closing is safe.* The binding crashes the process if a LevelDB is closed while another thread reads
from it. Here, a thread that reads holds the lock `reads` and a thread that writes holds the lock
`writes`. Either then asks `ready` for the LevelDB. `close` first sets `refusal`, the reason why
nothing can be read or written any more, and then takes both locks once. After that, no thread is
inside LevelDB and no thread will come in. The wait is short, because a reader gives the lock back
after each run, and no iterator outlives the lock. Both locks are RLocks, because a signal handler
may call `close` while its own thread is reading. That is safe: Python runs a handler between two
calls into LevelDB and never during one. Whoever holds `reads` never waits for `writes`, so the two
cannot block each other.

*A child process does not touch the files of its parent.* After a fork, parent and child would write
to the same files. So in the child every `Database` that was open refuses to be used. Its locks are
made anew, because another thread may have held them, and the binding's object is never freed.

*No database waits for a thread that is not there.* LevelDB has one thread for all databases of a
process, which it starts when there is something to compact. A child does not have it, and LevelDB
does not know that: its next compaction, and with it a write or a close, would wait for ever. So
before a fork we look for a thread that Python does not know. If there is one, or if the system does
not tell, the child refuses to open any database.

*Errors are in words.* What the binding raises leaves this file as `DatabaseError`, with the path,
the reason, and the binding's own error as its cause.

Two bindings
------------

`plyvel` and its fork `plyvel_next` have the same API and different classes of errors. Usually one
of them is installed. If both are, `open` uses `plyvel_next`, and a LevelDB of either can be handed
in. So every place that catches an error of the binding catches those of both. And each of the two
has a LevelDB of its own, which does not know what the other one has open: the lock that LevelDB
takes on a database keeps other processes out, but not the other binding of the same process. So
`open_database` looks for itself whether the database is open here.

File names
----------

LevelDB takes a file name as bytes and hands them to the system. Windows reads them in its code
page, for instance 1252, while the bindings encode a str in UTF-8, as Python does for its own files.
`grün.db` would become another folder than the one that was asked for. So this file encodes the
paths that LevelDB takes and decodes the messages that it gives. It refuses a path with a letter
that the code page lacks.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
import time
import weakref
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

from .errors import DamagedDatabase, DatabaseError, ScuttleupError
from .limits import THREAD_SECONDS

# Every binding that is installed. Usually that is one. A program may have both, and hand us a
# database of either.
_BINDINGS: list[Any] = []
for _name in "plyvel", "plyvel_next":
    with suppress(ModuleNotFoundError):
        _BINDINGS.append(import_module(_name))
if not _BINDINGS:
    raise ImportError("scuttleup needs a binding of LevelDB: pip install plyvel-next, or plyvel")
# The one that `open` uses.
binding = _BINDINGS[-1]

_ON_WINDOWS = sys.platform == "win32"
# How a str becomes the bytes of a file name that LevelDB takes: see "File names" above. "mbcs" is
# the code page of this Windows.
_ENCODING = "mbcs" if _ON_WINDOWS else sys.getfilesystemencoding()
_ON_ERROR = "strict" if _ON_WINDOWS else sys.getfilesystemencodeerrors()


class Unreadable(Exception):
    """What is stored cannot be read, for the reason that it gives. It never leaves the package."""


# What may come out of a read or a write. The binding raises a RuntimeError when the database was
# closed.
ERRORS = (OSError, RuntimeError, Unreadable, *(binding.Error for binding in _BINDINGS))

# The reasons why a database can refuse to be used.
_CLOSED = "these logs are closed"
_FORKED = "these logs were opened in another process, before a fork: open them again in this one"
# Why a child process can use no database at all.
_NO_THREAD = (
    "this process was forked when LevelDB may have begun to work in the background, so it cannot "
    "use a database: fork before you open logs, or start the process by 'spawn'"
)

# What a first run that was killed leaves where it was about to make a database. A new disk has a
# folder "lost+found".
_DEBRIS = {"LOCK", "LOG", "LOG.old", "MANIFEST-000001", "000001.dbtmp", "lost+found"}
_DEBRIS |= {"signing.key", "signing.key.new"}
# The names of files that only LevelDB makes.
_OF_LEVELDB = re.compile(r"MANIFEST-\d+|\d+\.(log|ldb|sst|dbtmp)")

# Every `Database` of this process, by its id().
_databases: weakref.WeakValueDictionary[int, Database] = weakref.WeakValueDictionary()
# How many forks lie between the first process and this one.
_forks = 0
# Whether this process has ever used a LevelDB.
_used = False
# Whether LevelDB's thread may have run here at the last fork, and whether this process lacks it.
_runs_thread = _lacks_thread = False
# The id() of every LevelDB that was open at one of these forks. None of them is ever freed, so no
# other object gets the same id().
_inherited: set[int] = set()


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
        self._whole = getattr(db, "db", db)
        name = _decode(self._whole.name)
        self.path = path or name
        # The real path, which stays right wherever the process goes later.
        self.folder = os.path.realpath(name)
        self._owned = owned
        # Why the database cannot be used, or None as long as it can.
        inherited = id(self._whole) in _inherited
        self.refusal = _FORKED if inherited else _NO_THREAD if _lacks_thread else None
        # Whoever uses LevelDB holds one of the two. `close` takes both once.
        self.reads = threading.RLock()
        self.writes = threading.RLock()
        _databases[id(self)] = self
        global _used
        _used = True

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
        return _in_words(self.path, error, "; if this stays so, close it and open it again")

    def close(self) -> None:
        """Refuse every use from now on, wait for those under way, and close what is owned.

        Closing it again does nothing. In a child process this does nothing at all, since the files
        belong to the parent.
        """
        if self.refusal is _FORKED:
            return
        self.refusal = _CLOSED
        with self.writes:
            pass
        # Whoever reads the same LevelDB through another object must be out of it as well, as its
        # owner closes it next.
        for database in _live_databases():
            if database._whole is self._whole:
                with database.reads:
                    pass
        if self._owned:
            self.db.close()

    def sync_older_journals(self) -> None:
        """Bring every journal but the newest to the disk.

        A synced write makes LevelDB sync the journal that it writes at that moment. The journal
        before that one stays in the folder until its entries are in a table, and it may be unsynced
        until then. A journal is a file `*.log`, see doc/log_format.md of LevelDB.
        """
        for journal in self._journals()[:-1]:
            # A file that is gone does not matter: LevelDB has all of it in a synced table.
            with suppress(FileNotFoundError):
                _sync(journal, os.O_RDWR)

    def _journals(self) -> list[str]:
        """The paths of LevelDB's journals, the newest one last."""
        names = [name for name in os.listdir(self.folder) if name.endswith(".log")]
        # The names are numbers of six digits, or more.
        names.sort(key=lambda name: (len(name), name))
        return [os.path.join(self.folder, name) for name in names]

    def sync_folders(self) -> None:
        """Bring the names of a new database's files, and its own name, to the disk."""
        for folder in self.folder, os.path.dirname(os.path.abspath(self.folder)):
            # Windows cannot do this, and it writes a name down with the file (LevelDB's
            # env_windows.cc). Some file systems cannot do it either.
            with suppress(OSError):
                _sync(folder, os.O_RDONLY)

    def read_file(self, name: str) -> bytes | None:
        """The contents of the file `name` in the database's folder; None if there is none.

        At most 1,024 bytes are read.
        """
        with suppress(FileNotFoundError), open(os.path.join(self.folder, name), "rb") as file:
            return file.read(1024)
        return None

    def write_file(self, name: str, data: bytes) -> None:
        """Make the file `name`, which only its owner may read, and bring it to the disk.

        On Windows it may be read by whoever may read the folder: files there have no mode, they
        inherit who may read them. A folder in the user's own profile is closed to other users.
        """
        path = os.path.join(self.folder, name)
        # The file gets its name when it is complete, so there is never half a file of that name.
        # What a killed run left under the other name may have another mode, so it goes.
        with suppress(FileNotFoundError):
            os.unlink(path + ".new")
        with open(path + ".new", "xb", opener=partial(os.open, mode=0o600)) as file:
            file.write(data)
            file.flush()
            _sync_file(file.fileno())
        os.replace(path + ".new", path)
        self.sync_folders()

    def begin_new_journal(self) -> None:
        """Have LevelDB save what it holds and begin a new journal.

        Raises DatabaseError unless there is room on the disk for that. LevelDB would refuse every
        further write if it tried and failed.
        """
        # Imported here, because few programs ever come here.
        from tempfile import TemporaryFile

        held = sum(map(os.path.getsize, self._journals()))
        with TemporaryFile(dir=self.folder) as probe:
            # The rest is for an index and for the new journal.
            probe.write(bytes(held + (64 << 10)))
            probe.flush()
            os.fsync(probe.fileno())
        # A compaction makes LevelDB save what it holds, even of a range without entries, as here.
        self._whole.compact_range(start=b"\xff", stop=b"\xff")


def _live_databases() -> list[Database]:
    """Every `Database` that is still in use.

    The list is made in one step, so other threads may open and close databases meanwhile.
    """
    return [database for ref in _databases.valuerefs() if (database := ref())]


def open_database(path: str | bytes | os.PathLike[Any]) -> Database:
    """Open the LevelDB at `path`, with every check that LevelDB has.

    A new one is made where there is nothing, where the folder is empty, and where there are only
    files that a first run left when it was killed. Everything else is refused with a DatabaseError
    that names the path and the reason. Nothing is created or deleted in that case.

    Raises ValueError if `path` cannot be a path.
    """
    if _lacks_thread:
        raise ScuttleupError(_NO_THREAD)
    path = os.fsdecode(path)
    if not path or "\0" in path:
        raise ValueError(f"the path of a database is not {path!r}")
    try:
        # LevelDB gets the real path, because a relative one would move with the working directory.
        # After a fork, LevelDB still counts as open in this process what the parent had open under
        # that name. So each fork adds "/." to the name: the path is the same, the name is not, and
        # LevelDB asks the operating system instead.
        parent, name = os.path.split(os.path.realpath(path))
        whole_name = os.path.join(parent + "/." * _forks, name).encode(_ENCODING, _ON_ERROR)
    except UnicodeEncodeError as error:
        where = "the code page of this Windows" if _ON_WINDOWS else _ENCODING
        reason = f"LevelDB takes file names in {where}, which lacks one of its letters"
        raise DatabaseError(f"{path} cannot be used: {reason}") from error
    except OSError as error:  # Windows keeps some names for devices
        raise _in_words(path, error) from error
    is_new = _is_new(path)
    if _is_open_here(path):
        raise DatabaseError(f"{path} is open in this process already")
    try:
        db = binding.DB(whole_name, create_if_missing=is_new, paranoid_checks=True)
    except binding.Error as error:
        raise _in_words(path, error) from error
    return Database(db, path, owned=True)


def _is_open_here(path: str) -> bool:
    """Whether a `Database` of this process has the folder `path` open, under whatever name.

    LevelDB finds this out itself in most cases. It does not know what the other binding has open,
    nor that "Logs.db" may be "logs.db", and on Windows it does not tell this process from others.
    """
    for database in _live_databases():
        if database.refusal is not _FORKED and not database._whole.closed:
            # An OSError says that one of the two folders is not there, so they are not the same.
            with suppress(OSError):
                if os.path.samefile(path, database.folder):
                    return True
    return False


def _is_new(path: str) -> bool:
    """Whether a database may be made at `path`; False if one is there already.

    Raises DatabaseError if there is something else, or only a part of a database. CURRENT names the
    file that LevelDB begins with, a MANIFEST (see doc/impl.md of LevelDB).
    """
    try:
        names = set(os.listdir(path))
    except FileNotFoundError:
        return True
    except OSError as error:
        if os.path.isfile(path):
            raise DatabaseError(f"{path} is not a database: it is a file") from error
        raise DatabaseError(f"{path} cannot be opened: {error.strerror}") from error
    if "CURRENT" not in names:
        others = sorted(names - _DEBRIS)
        if any(map(_OF_LEVELDB.fullmatch, others)):
            raise DamagedDatabase(f"{path} is damaged: CURRENT is missing")
        if others:
            raise DatabaseError(f"{path} is not a database: it holds {others[0]}")
        return True
    try:
        with open(os.path.join(path, "CURRENT"), encoding="utf-8", errors="replace") as file:
            manifest = file.read(100).rstrip("\n")
    except OSError as error:
        raise _in_words(path, error) from error
    if not manifest.startswith("MANIFEST-"):
        raise DamagedDatabase(f"{path} is damaged: CURRENT names no MANIFEST")
    if manifest not in names:
        raise DamagedDatabase(f"{path} is damaged: {manifest} is missing")
    return False


def _in_words(path: str, error: Exception, advice: str = "") -> DatabaseError:
    """The DatabaseError to raise for `error`, which is the system's or LevelDB's.

    It has the path, the reason, and the `advice`. LevelDB's messages look like "IO error: lock
    /a/b/LOCK: already held by process": the kind, where it happened, and the reason.
    """
    if isinstance(error, OSError) and error.strerror:  # the system's own error, not LevelDB's
        name = f"{os.path.basename(os.fsdecode(error.filename))}: " if error.filename else ""
        return DatabaseError(f"{path} cannot be used: {name}{error.strerror}{advice}")
    message = _decode(error.args[0] if error.args else b"")
    # Windows ends its messages with ".\r\n".
    kind, _, reason = " ".join(message.splitlines()).rstrip(". ").partition(": ")
    context, _, last = reason.rpartition(": ")
    if kind == "Corruption":
        return DamagedDatabase(f"{path} is damaged: {reason}")
    if last == os.strerror(errno.EINVAL) and context.endswith((".ldb", ".sst")):
        # LevelDB has looked behind the end of a table.
        return DamagedDatabase(f"{path} is damaged: {os.path.basename(context)} is too short")
    if context.startswith("lock ") and last == "already held by process":
        return DatabaseError(f"{path} is open in this process already")
    if context.endswith("LOCK") and _is_held(context, last):
        return DatabaseError(f"{path} is open in another process")
    return DatabaseError(f"{path} cannot be used: {reason or kind}{advice}")


def _is_held(context: str, reason: str) -> bool:
    """Whether LevelDB's message about its file LOCK says that somebody holds it."""
    if sys.platform == "win32":
        from ctypes import FormatError  # only here: it takes a while to load

        # Sharing violation and lock violation, in the language of this Windows.
        return reason in [FormatError(code).rstrip(". \r\n") for code in (32, 33)]
    # Without "lock ", the same reason is about opening the file, so about permissions.
    held = map(os.strerror, (errno.EAGAIN, errno.EACCES))
    return context.startswith("lock ") and reason in held


def _decode(data: str | bytes) -> str:
    """What LevelDB says, or the name that it was given, as text.

    A str is encoded first, with `fsencode`: so does the binding, and LevelDB sees only those bytes.
    """
    return os.fsencode(data).decode(_ENCODING, "replace" if _ON_WINDOWS else _ON_ERROR)


def _sync(path: str, flags: int) -> None:
    """Bring the file or the folder at `path` to the disk. Raises OSError if that fails."""
    file = os.open(path, flags)
    try:
        _sync_file(file)
    finally:
        os.close(file)


def _sync_file(file: int) -> None:
    """Bring what was written to an open file to the disk, as LevelDB does it.

    On Linux and Windows fsync also has the disk empty its own cache, which would not survive a
    power failure. On macOS only F_FULLFSYNC does that, and some file systems do not have it
    (`SyncFd` in LevelDB's env_posix.cc).
    """
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)
            return
    os.fsync(file)


def _before_fork() -> None:
    """Look whether LevelDB's thread, which a child does not get, may run in this process."""
    global _runs_thread
    # Once it runs, it never ends.
    if not _used or _runs_thread:
        return
    end = time.monotonic() + THREAD_SECONDS
    while (unknown := _has_unknown_thread()) and time.monotonic() < end:
        # A thread of Python's is unknown for a moment while it begins and when it has ended.
        time.sleep(0.001)
    _runs_thread = unknown


def _has_unknown_thread() -> bool:
    """Whether there is a thread here that Python does not know, or the system does not tell."""
    try:
        threads = set(map(int, os.listdir("/proc/self/task")))  # only Linux has this
    except OSError:
        return True
    # In a child, Python may still have the parent's number for the first thread. It has the number
    # of the process.
    return not threads <= {thread.native_id for thread in threading.enumerate()} | {os.getpid()}


def _after_fork() -> None:
    """Refuse, in a child process, everything that the parent had open, and more if need be."""
    global _forks, _lacks_thread
    _forks += 1
    _lacks_thread = _lacks_thread or _runs_thread
    databases = _live_databases()
    for database in databases:
        database.refusal = _FORKED
        # Another thread of the parent may have held the locks, and there is no such thread here.
        database.reads, database.writes = threading.RLock(), threading.RLock()
    if databases:
        import ctypes

        for database in databases:
            # One reference too many keeps Python from ever freeing it, even at the end of the
            # process.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(database._whole))
            _inherited.add(id(database._whole))


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
