"""What a fork means for LevelDB.

*A child process does not touch the files of its parent.* After a fork, parent and child would write
to the same files. So in the child every `Database` that was open refuses to be used. Its locks are
made anew, because another thread may have held them, and the binding's object is never freed.

*No database waits for a thread that is not there.* LevelDB has one thread for all databases of a
process, which it starts when there is something to compact. A child does not have it, and LevelDB
does not know that: its next compaction, and with it a write or a close, would wait for ever. So
before a fork we look for a thread that Python does not know. If there is one, or if the system does
not tell, the child refuses to open any database.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Any

from ..limits import THREAD_SECONDS

# The reasons why a database can refuse to be used in a child process.
FORKED = "these logs were opened in another process, before a fork: open them again in this one"
NO_THREAD = (
    "this process was forked when LevelDB may have begun to work in the background, so it cannot "
    "use a database: fork before you open logs, or start the process by 'spawn'"
)

# Every `Database` of this process, by its id().
_databases: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
# How many forks lie between the first process and this one.
_forks = 0
# Whether this process has ever used a LevelDB.
_used = False
# Whether LevelDB's thread may have run here at the last fork, and whether this process lacks it.
_runs_thread = _lacks_thread = False
# The id() of every LevelDB that was open at one of these forks. None of them is ever freed, so no
# other object gets the same id().
_inherited: set[int] = set()


def track(database: Any) -> None:
    """Have a `Database` refuse to be used in a child process, and at once if this is one."""
    global _used
    _used = True
    _databases[id(database)] = database
    if id(database.whole) in _inherited:
        database.refusal = FORKED
    elif _lacks_thread:
        database.refusal = NO_THREAD


def refusal() -> str | None:
    """Why this process can open no database, if it cannot."""
    return NO_THREAD if _lacks_thread else None


def own_name(path: str) -> str:
    """A name for `path` under which LevelDB has opened nothing before a fork.

    After a fork, LevelDB still counts as open in this process what the parent had open under that
    name. So each fork adds "/." to the name: the path is the same, the name is not, and LevelDB
    asks the operating system instead.
    """
    parent, name = os.path.split(path)
    return os.path.join(parent + "/." * _forks, name)


def databases() -> list[Any]:
    """Every `Database` that is still in use.

    The list is made in one step, so other threads may open and close databases meanwhile.
    """
    return [database for ref in _databases.valuerefs() if (database := ref())]


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
    all_of_them = databases()
    for database in all_of_them:
        database.refusal = FORKED
        # Another thread of the parent may have held the locks, and there is no such thread here.
        database.reads, database.writes = threading.RLock(), threading.RLock()
    if all_of_them:
        import ctypes

        for database in all_of_them:
            # One reference too many keeps Python from ever freeing it, even at the end of the
            # process.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(database.whole))
            _inherited.add(id(database.whole))


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
