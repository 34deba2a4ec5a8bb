"""The files in a database's folder: journals are brought to the disk, and small files are made.

Everything here raises OSError.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from functools import partial


def sync_older_journals(folder: str) -> None:
    """Bring every journal but the newest to the disk.

    A synced write makes LevelDB sync the current journal. The journal before stays in the folder
    until all entries are in a table, and may be unsynced until then. A journal is a file `*.log`,
    see doc/log_format.md of LevelDB.
    """
    for journal in _journals(folder)[:-1]:
        # A file that is gone does not matter: LevelDB has all of it in a synced table.
        with suppress(FileNotFoundError):
            _sync(journal, os.O_RDWR)


def _journals(folder: str) -> list[str]:
    """The paths of LevelDB's journals, the newest one last."""
    names = [name for name in os.listdir(folder) if name.endswith(".log")]
    # The names are numbers of six digits, or more.
    names.sort(key=lambda name: (len(name), name))
    return [os.path.join(folder, name) for name in names]


def newest_journal(folder: str) -> str:
    """The path of the journal that LevelDB writes to; "" if there is none."""
    return (_journals(folder) or [""])[-1]


# The errors which say that a folder cannot be synced here, so nothing was lost: Windows opens no
# folder (EACCES) and writes a name down with its file (LevelDB's env_windows.cc), nor may everybody
# read the folder above; some file systems sync no folder (EINVAL, ENOTSUP, EBADF).
_CANNOT_SYNC = (errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def sync_folder(folder: str) -> None:
    """Bring the names of a new database's files, and the folder's name, to the disk."""
    for each in folder, os.path.dirname(os.path.abspath(folder)):
        try:
            _sync(each, os.O_RDONLY)
        except OSError as error:
            if error.errno not in _CANNOT_SYNC:
                raise


def read_file(path: str) -> bytes | None:
    """The contents of the file `path`; None if there is none.

    At most 1,024 bytes are read.
    """
    with suppress(FileNotFoundError), open(path, "rb") as file:
        return file.read(1024)
    return None


def write_file(path: str, data: bytes) -> None:
    """Make the file `path`, which only the owner may read, and bring it to the disk.

    On Windows everybody who may read the folder may read the file: files have no mode there. A
    folder in the user's own profile is closed to other users.
    """
    # The file gets this name when it is complete, so there is never half a file of that name. A
    # file that a killed run left under the other name may have another mode, so that file goes.
    with suppress(FileNotFoundError):
        os.unlink(path + ".new")
    with open(path + ".new", "xb", opener=partial(os.open, mode=0o600)) as file:
        file.write(data)
        file.flush()
        _sync_file(file.fileno())
    os.replace(path + ".new", path)
    sync_folder(os.path.dirname(path))


def check_room(folder: str) -> None:
    """Raise OSError unless the disk has room for all that LevelDB has not saved yet.

    After a failed attempt to save that, LevelDB would refuse every further write.
    """
    piece = bytes(64 << 10)
    held = 0
    for journal in _journals(folder):
        with suppress(FileNotFoundError):  # LevelDB has saved it meanwhile
            held += os.path.getsize(journal)
    probe = os.path.join(folder, "room")
    try:
        with open(probe, "wb") as file:
            # Another piece is for an index and for the new journal.
            for _ in range(held // len(piece) + 2):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    finally:
        with suppress(OSError):
            os.unlink(probe)


def _sync(path: str, flags: int) -> None:
    """Bring the file or the folder at `path` to the disk. Raises OSError if that fails."""
    file = os.open(path, flags)
    try:
        _sync_file(file)
    finally:
        os.close(file)


def _sync_file(file: int) -> None:
    """Bring an open file to the disk, as LevelDB does.

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
