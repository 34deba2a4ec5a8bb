"""The one file that knows LevelDB's Python binding: its classes, file names and error texts.

`plyvel` and the fork `plyvel_next` have the same API. Usually only one is installed. If both are,
`plyvel_next` is used, and a LevelDB of `plyvel` is not taken. The two import statements are plain,
because programs that freeze a program, such as PyInstaller, find no others.

File names
----------

LevelDB takes a file name as bytes and hands them to the system. Windows reads them in its code
page, for instance 1252, while the bindings encode a str in UTF-8, as Python does for its own files.
`grün.db` would become another folder. So this file encodes the paths and decodes the messages of
LevelDB, and refuses a path with a letter that the code page lacks.
"""

from __future__ import annotations

import errno
import os
import sys

from ..errors import DamagedDatabase, DatabaseError, DatabaseLocked

try:
    import plyvel_next as plyvel
except ModuleNotFoundError:
    try:
        import plyvel
    except ModuleNotFoundError:
        need = "scuttleup needs a binding of LevelDB: pip install plyvel-next, or plyvel"
        raise ImportError(need) from None
binding = plyvel
# The name of the other binding.
OTHER = "plyvel" if binding.__name__ == "plyvel_next" else "plyvel_next"

ON_WINDOWS = sys.platform == "win32"
# How a str becomes the bytes of a file name that LevelDB takes: see "File names" above. "mbcs" is
# the code page of this Windows.
ENCODING = "mbcs" if ON_WINDOWS else sys.getfilesystemencoding()
ON_ERROR = "strict" if ON_WINDOWS else sys.getfilesystemencodeerrors()


class Unreadable(Exception):
    """The stored bytes cannot be read, as the text says. This never leaves the package."""


# The errors of a read or a write. The binding raises a RuntimeError when the database was closed.
ERRORS = (OSError, RuntimeError, Unreadable, binding.Error)


def in_words(path: str, error: Exception, advice: str = "") -> DatabaseError:
    """The DatabaseError to raise for `error`, which is the system's or LevelDB's.

    The text has the path, the reason, and the `advice`. LevelDB's messages look like "IO error:
    lock /a/b/LOCK: already held by process": the kind, where it happened, and the reason.
    """
    if isinstance(error, OSError) and error.strerror:  # the system's own error, not LevelDB's
        name = os.path.basename(os.fsdecode(error.filename or ""))
        where = "" if name in ("", os.path.basename(path)) else f"{name}: "
        return DatabaseError(f"{path} cannot be used: {where}{error.strerror}{advice}")
    message = decode(error.args[0] if error.args else b"")
    # Windows ends its messages with ".\r\n".
    kind, _, reason = " ".join(message.splitlines()).rstrip(". ").partition(": ")
    context, _, last = reason.rpartition(": ")
    if kind == "Corruption":
        return DamagedDatabase(f"{path} is damaged: {reason}")
    if context.endswith((".ldb", ".sst")):
        # LevelDB has looked behind the end of a table, or for a table that is gone.
        for number, fault in (errno.EINVAL, "is too short"), (errno.ENOENT, "is missing"):
            if last == os.strerror(number):
                return DamagedDatabase(f"{path} is damaged: {os.path.basename(context)} {fault}")
    if context.startswith("lock ") and last == "already held by process":
        return DatabaseLocked(f"{path} is open in this process already")
    if context.endswith("LOCK") and _is_held(context, last):
        return DatabaseLocked(f"{path} is open in another process")
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
    """A message of LevelDB, or its name, as text.

    A str is encoded first, with `fsencode`: so does the binding, and LevelDB sees only those bytes.
    """
    return os.fsencode(data).decode(ENCODING, "replace" if ON_WINDOWS else ON_ERROR)
