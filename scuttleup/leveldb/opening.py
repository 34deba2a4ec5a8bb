"""Open a LevelDB, or make one where there is nothing.

*Open databases are known here.* When a process opens a database a second time, LevelDB refuses, and
drops the lock of the first opening (see `folder.py`). So LevelDB never gets to see a second
opening: databases are opened one at a time, and each is first compared, under whatever name, with
those that are open, and its file LOCK with the descriptors of this process, for a LevelDB that the
program has opened by itself.

*The folder is looked at under the lock.* Before that, another process may be making the database.
"""

from __future__ import annotations

import os
from contextlib import suppress

from .. import limits
from ..errors import DatabaseError, DatabaseLocked, ScuttleupError
from . import fork
from .binding import ENCODING, ERRORS, ON_ERROR, ON_WINDOWS, binding, in_words
from .database import Database
from .folder import Folder, descriptor, ident
from .manifest import is_new

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def open_database(path: str | bytes | os.PathLike[Any], *, create: bool = True) -> Database:
    """Open the LevelDB at `path`, with every check that LevelDB has.

    A new database is made where there is nothing, where the folder is empty, and where there are
    only files that a first run left when it was killed. Everything else is refused with a
    DatabaseError that names the path and the reason. Nothing is created or deleted in that case.
    Without `create` a new one is refused as well.

    Raises ValueError if `path` cannot be a path.
    """
    if reason := fork.refusal():
        raise ScuttleupError(reason)
    path = os.fsdecode(path)
    if not path or "\0" in path:
        raise ValueError(f"the path of a database is not {path!r}")
    folder = None
    with fork.opening:
        try:
            # LevelDB gets the real path: a relative path would move with the working directory.
            real = os.path.realpath(path)
            name = real.encode(ENCODING, ON_ERROR)
            lock = os.path.join(real, "LOCK")
            if ident(real) in _open_here() or descriptor(lock) is not None:
                locked = DatabaseLocked(f"{path} is open in this process already")
                locked.here = True
                raise locked
            if os.path.isfile(real):
                raise DatabaseError(f"{path} is not a database: it is a file")
            with suppress(FileExistsError):
                if not create and not os.path.isdir(real):
                    raise DatabaseError(f"{path}: there is no database")
                os.mkdir(real, 0o755)
            folder = Folder(real)
            if (new := is_new(path, real)) and not create:
                raise DatabaseError(f"{path}: there is no database")
            db = binding.DB(
                name,
                create_if_missing=new,
                paranoid_checks=True,
                write_buffer_size=limits.WRITE_BUFFER,
            )
            if (file := descriptor(lock)) is not None:
                # LevelDB 1.22 leaves it open in a program that takes the place of this one.
                os.set_inheritable(file, False)
            return Database(db, path, folder=folder)
        except BaseException as error:
            if folder:
                folder.close()
            if isinstance(error, BlockingIOError):
                raise DatabaseLocked(f"{path} is open in another process") from error
            if isinstance(error, UnicodeEncodeError):
                where = "the code page of this Windows" if ON_WINDOWS else ENCODING
                reason = f"LevelDB takes file names in {where}, which lacks one of its letters"
                raise DatabaseError(f"{path} cannot be used: {reason}") from error
            if isinstance(error, ERRORS):
                raise in_words(path, error) from error
            raise


def _open_here() -> set[object]:
    """The identities of the folders that are open in this process."""
    return {database.ident for database in fork.databases() if not database.whole.closed} - {None}
