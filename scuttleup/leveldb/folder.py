"""The folder of an open database: nobody else has the folder open, and it is still there.

*One at a time.* LevelDB holds a lock on its file LOCK. On POSIX a process loses such a lock by
closing any descriptor of that file: by a copy of its own folder, or when LevelDB itself refuses a
second opening. So there is another lock, a flock on the folder. That ends only with a descriptor of
its own, which no child process keeps. Only the holder of this lock asks LevelDB. Some network file
systems have no flock; there LevelDB's own lock is all there is. On Windows LevelDB's lock cannot be
lost.

*Still there.* LevelDB opens its files by name. CURRENT is made anew when a database is opened, and
never in between. So if there is another file of that name, or none, then the folder was moved or
deleted, and there may be a new database in that place. The folder is looked at as well: a new
CURRENT can get the inode of a deleted file, but a new folder cannot, because the lock keeps the old
folder open.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

if sys.platform != "win32":
    import fcntl

# The identity of a file under all of its names: the device and the inode.
Ident = tuple[int, int]


class Folder:
    """The folder `path`, held by this process until `close`.

    Raises BlockingIOError if somebody holds the folder already, here or elsewhere, and another
    OSError if the folder cannot be held.
    """

    def __init__(self, path: str) -> None:
        self._lock = -1
        if sys.platform == "win32":
            return
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise
        except OSError:
            pass  # this file system has no such lock
        self._lock = lock

    def close(self, *, in_child: bool = False) -> None:
        """Let others in; a child process only drops its copy of the lock."""
        if sys.platform == "win32" or self._lock < 0:
            return
        lock, self._lock = self._lock, -1
        with suppress(OSError):
            if not in_child:
                # A child that is about to call `exec` may have the descriptor as well.
                fcntl.flock(lock, fcntl.LOCK_UN)
        with suppress(OSError):
            os.close(lock)


def ident(path: str) -> Ident | None:
    """The identity of the file or folder `path`; None if there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def descriptor(path: str) -> int | None:
    """The descriptor under which this process has the file `path` open; None if it has not.

    None also where the system does not tell.
    """
    wanted = ident(path)
    if wanted is not None and os.path.isdir("/dev/fd"):
        for name in os.listdir("/dev/fd"):
            with suppress(OSError):  # the listing itself took one, which is gone
                stat = os.fstat(int(name))
                if (stat.st_dev, stat.st_ino) == wanted:
                    return int(name)
    return None
