"""A whole copy of a database, made while others read and write it.

A snapshot of LevelDB shows the database at one moment. The snapshot is copied in pieces, and the
lock `reads` is given back after each. The copy gets its name only when all of it is on the disk, so
a folder of that name is always a whole database. The remains of a killed run, under the other name,
go at the next try.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress

from .. import limits
from ..errors import DatabaseError
from . import files
from .binding import ERRORS, Unreadable, in_words
from .database import Database
from .opening import open_database


def copy(
    source: Database, path: str, *, last: bytes, more: Mapping[bytes, bytes], beside: Iterable[str]
) -> None:
    """Make a new database at `path` of all that is in `source` now, and of the keys in `more`.

    `last` is the last key that there is: an iteration that ends before it was cut short by damage.
    `beside` are the names of small files that are copied if they are in the folder of `source`.
    Raises DatabaseError if `path` is there already, or if the copy fails; then nothing of the copy
    is left.
    """
    if os.path.lexists(path):
        raise DatabaseError(f"{path} is there already: a backup is a new folder")
    # What a killed run has left is deleted, so nobody else may have a use for the name.
    unfinished = path + ".unfinished-backup"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        target = open_database(unfinished)
        try:
            _copy_all(source, target, last)
            with target.writes, target as db:
                target.compact(b"\0", b"\xff")
                with db.write_batch(sync=True) as batch:
                    for key, value in more.items():
                        batch.put(key, value)
                files.sync_older_journals(target.folder)
        finally:
            target.close()
        for name in beside:
            if (data := files.read_file(os.path.join(source.folder, name))) is not None:
                files.write_file(os.path.join(unfinished, name), data)
        files.sync_folder(unfinished)
        os.rename(unfinished, path)
        files.sync_folder(path)
    except BaseException as error:
        with suppress(OSError):
            shutil.rmtree(unfinished)
        if isinstance(error, ERRORS):
            raise in_words(path, error) from error
        raise


def _copy_all(source: Database, target: Database, last: bytes) -> None:
    """Copy every key, a piece at a time."""
    with source.reads, source as db:
        snapshot = db.snapshot()
    try:
        key = b""
        while key != last:
            batch, size = target.db.write_batch(), 0
            with (
                source.reads,
                source,
                snapshot.iterator(start=key, include_start=False, verify_checksums=True) as pairs,
            ):
                for key, value in pairs:
                    batch.put(key, value)
                    size += len(key) + len(value)
                    if key == last or size > limits.COPY_BYTES:
                        break
                else:
                    raise Unreadable("a part of it cannot be read")
            with target.writes, target:
                batch.write()
    finally:
        snapshot.close()
