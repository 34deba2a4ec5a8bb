"""The errors of this package.

A wrong argument is a TypeError or a ValueError, as everywhere in Python. Everything else that
leaves this package is a `ScuttleupError`, so a single `except` clause is enough. The classes below
answer the question that a program asks next: ask for something else (`EntryNotFound`), come back
later (`ConnectionLost`), do not come back (`ProtocolError`), or look after the disk
(`DatabaseError`).

A mistake of a remote never looks like a mistake of the program here. h11 tells the two apart in the
same way, with `RemoteProtocolError` and `LocalProtocolError`.
"""

from __future__ import annotations

from . import limits


class ScuttleupError(Exception):
    """The base of every error that this package defines.

    An error of just this class says that something was used at the wrong time: logs that are
    closed, logs that were opened before a fork, or a signed log without its secret key.
    """


class EntryNotFound(ScuttleupError, KeyError):
    """There is no such entry: never stored here, or deleted.

    This is a KeyError as well, so `except KeyError` works as for a dict.
    """

    # KeyError would show the repr of the message, with quotes.
    __str__ = Exception.__str__


class ProtocolError(ScuttleupError):
    """The remote is in error: it broke the protocol, or `verify` refused a change.

    To connect again is of little use, as the remote will most likely do the same again.
    """


class ConnectionLost(ScuttleupError):
    """The connection to the remote broke, or the remote fell silent. It is worth coming back."""


class DatabaseError(ScuttleupError):
    """The database cannot be opened, read or written.

    The text names the path and the reason. LevelDB's own error, if there was one, is the cause
    (`__cause__`).
    """


class DamagedDatabase(DatabaseError):
    """The database lacks a part, or holds other bytes than were written.

    Other logs than our own can be had again from any peer that holds them, in a new database.
    """


class DatabaseLocked(DatabaseError):
    """The database is open already: in this process, or in another process, as the text says.

    `here` is whether that is this process. A later call may succeed.
    """

    here = False


class WriteInDoubt(DatabaseError):
    """A write failed, and nobody knows whether its entries are stored.

    The next write finds that out, so look at `head` after the next write before you write the same
    again.
    """


class ForkedLog(ScuttleupError):
    """Our own signed log has forked, so peers take no more of it. Begin a new log: `new_id`."""


def shown(value: object) -> str:
    """The repr of a wrong `value` for an error to name it, cut after `limits.MAX_REPR` characters.

    A value without a repr, for instance because of too deep nesting, is named by its type.
    """
    try:
        text = repr(value)
    except Exception:
        return f"what is a {type(value).__name__}"
    return text if len(text) <= limits.MAX_REPR else f"{text[: limits.MAX_REPR]}…"
