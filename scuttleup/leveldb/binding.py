"""The one file that knows LevelDB's Python binding: its classes, file names and error texts.

Two bindings
------------

`plyvel` and its fork `plyvel_next` have the same API and different classes of errors. Usually one
of them is installed. If both are, `open` uses `plyvel_next`, and a LevelDB of either can be handed
in. So every place that catches an error of the binding catches those of both. And each of the two
has a LevelDB of its own, which does not know what the other one has open: the lock that LevelDB
takes on a database keeps other processes out, but not the other binding of the same process. So
`opening.py` looks for itself whether the database is open here.

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
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

from ..errors import DamagedDatabase, DatabaseError

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

ON_WINDOWS = sys.platform == "win32"
# How a str becomes the bytes of a file name that LevelDB takes: see "File names" above. "mbcs" is
# the code page of this Windows.
ENCODING = "mbcs" if ON_WINDOWS else sys.getfilesystemencoding()
ON_ERROR = "strict" if ON_WINDOWS else sys.getfilesystemencodeerrors()


class Unreadable(Exception):
    """What is stored cannot be read, for the reason that it gives. It never leaves the package."""


# What may come out of a read or a write. The binding raises a RuntimeError when the database was
# closed.
ERRORS = (OSError, RuntimeError, Unreadable, *(binding.Error for binding in _BINDINGS))


def in_words(path: str, error: Exception, advice: str = "") -> DatabaseError:
    """The DatabaseError to raise for `error`, which is the system's or LevelDB's.

    It has the path, the reason, and the `advice`. LevelDB's messages look like "IO error: lock
    /a/b/LOCK: already held by process": the kind, where it happened, and the reason.
    """
    if isinstance(error, OSError) and error.strerror:  # the system's own error, not LevelDB's
        name = f"{os.path.basename(os.fsdecode(error.filename))}: " if error.filename else ""
        return DatabaseError(f"{path} cannot be used: {name}{error.strerror}{advice}")
    message = decode(error.args[0] if error.args else b"")
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


def decode(data: str | bytes) -> str:
    """What LevelDB says, or the name that it was given, as text.

    A str is encoded first, with `fsencode`: so does the binding, and LevelDB sees only those bytes.
    """
    return os.fsencode(data).decode(ENCODING, "replace" if ON_WINDOWS else ON_ERROR)
