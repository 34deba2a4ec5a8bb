"""A child process uses no database.

After a fork, parent and child would write to the same files. And LevelDB has one thread for all
databases of a process, which the child does not get: a write or a close there could wait for ever.
So once a process has used a LevelDB, no process that is forked from it can use one. In the child
every `Database` refuses to be used. Its locks are made anew, because another thread may have held
them. The binding's object is never freed, as that would close the parent's files. The descriptor
that holds the lock on the folder is closed, so the lock ends with the parent.
"""

from __future__ import annotations

import os
import threading
import weakref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Why a process can use no database.
FORKED = (
    "this process was forked from one that had used LevelDB, so it cannot use a database: fork "
    "before you open logs, open them in the workers, or start those by 'spawn' or 'forkserver'"
)

# Every `Database` of this process, by its id().
_databases: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
# Whether this process has ever used a LevelDB, and whether its parent had before the fork.
_used = _forked = False
# Held while a database is opened. Nobody gives it back in a child that is forked meanwhile.
opening = threading.Lock()


def track(database: Any) -> None:
    """Have a `Database` refuse to be used in a child process, at once if this is a child."""
    global _used
    _used = True
    _databases[id(database)] = database
    database.refusal = refusal()


def refusal() -> str | None:
    """Why this process can use no database; None if it can."""
    return FORKED if _forked else None


def databases() -> list[Any]:
    """Every `Database` that is still in use.

    The list is made in one step, so other threads may open and close databases meanwhile.
    """
    return [database for ref in _databases.valuerefs() if (database := ref())]


def _after_fork() -> None:
    """Refuse everything in a child process of one that has used LevelDB."""
    global _forked
    _forked = _forked or _used or opening.locked()
    for database in databases():
        database.leave_to_parent(FORKED)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)
