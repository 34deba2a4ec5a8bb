"""Open a LevelDB, or make one where there is nothing.

LevelDB itself makes a database of any folder, and opens one that lacks a part as if it were new. So
it is asked only after a look at what is there.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Any

from ..errors import DamagedDatabase, DatabaseError, ScuttleupError
from . import fork
from .binding import ENCODING, ON_ERROR, ON_WINDOWS, binding, in_words
from .database import Database

# What a first run that was killed leaves where it was about to make a database. A new disk has a
# folder "lost+found".
_DEBRIS = {"LOCK", "LOG", "LOG.old", "MANIFEST-000001", "000001.dbtmp", "lost+found"}
_DEBRIS |= {"signing.key", "signing.key.new"}
# The names of files that only LevelDB makes.
_OF_LEVELDB = re.compile(r"MANIFEST-\d+|\d+\.(log|ldb|sst|dbtmp)")


def open_database(path: str | bytes | os.PathLike[Any]) -> Database:
    """Open the LevelDB at `path`, with every check that LevelDB has.

    A new one is made where there is nothing, where the folder is empty, and where there are only
    files that a first run left when it was killed. Everything else is refused with a DatabaseError
    that names the path and the reason. Nothing is created or deleted in that case.

    Raises ValueError if `path` cannot be a path.
    """
    if reason := fork.refusal():
        raise ScuttleupError(reason)
    path = os.fsdecode(path)
    if not path or "\0" in path:
        raise ValueError(f"the path of a database is not {path!r}")
    try:
        # LevelDB gets the real path, because a relative one would move with the working directory.
        whole_name = fork.own_name(os.path.realpath(path)).encode(ENCODING, ON_ERROR)
    except UnicodeEncodeError as error:
        where = "the code page of this Windows" if ON_WINDOWS else ENCODING
        reason = f"LevelDB takes file names in {where}, which lacks one of its letters"
        raise DatabaseError(f"{path} cannot be used: {reason}") from error
    except OSError as error:  # Windows keeps some names for devices
        raise in_words(path, error) from error
    is_new = _is_new(path)
    if _is_open_here(path):
        raise DatabaseError(f"{path} is open in this process already")
    try:
        db = binding.DB(whole_name, create_if_missing=is_new, paranoid_checks=True)
    except binding.Error as error:
        raise in_words(path, error) from error
    return Database(db, path, owned=True)


def _is_open_here(path: str) -> bool:
    """Whether a `Database` of this process has the folder `path` open, under whatever name.

    LevelDB finds this out itself in most cases. It does not know what the other binding has open,
    nor that "Logs.db" may be "logs.db", and on Windows it does not tell this process from others.
    """
    for database in fork.databases():
        if database.refusal is not fork.FORKED and not database.whole.closed:
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
        raise in_words(path, error) from error
    if not manifest.startswith("MANIFEST-"):
        raise DamagedDatabase(f"{path} is damaged: CURRENT names no MANIFEST")
    if manifest not in names:
        raise DamagedDatabase(f"{path} is damaged: {manifest} is missing")
    return False
