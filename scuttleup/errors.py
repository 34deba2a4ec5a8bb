"""The errors of this package.

Wrong arguments are TypeError or ValueError, as everywhere in Python. Everything else that leaves
this package is a ScuttleupError.
"""


class ScuttleupError(Exception):
    """The base of every error that this package defines."""


class EntryNotFound(ScuttleupError, KeyError):
    """There is no such entry: it was never stored here, or it was deleted."""

    # KeyError would show the repr of the message, with its quotes.
    __str__ = Exception.__str__


class ProtocolError(ScuttleupError):
    """The remote is in error: it broke the protocol, or `verify` refused one of its changes.

    To connect to it again is of little use, as it will most likely do the same again.
    """


class ConnectionLost(ScuttleupError):
    """The connection to the remote broke, or the remote fell silent. It is worth coming back."""


class DatabaseError(ScuttleupError):
    """The database cannot be opened, read or written.

    The text names the path and the reason. LevelDB's own error, if there was one, is the cause
    (`__cause__`).
    """


class DamagedDatabase(DatabaseError):
    """The database lacks a part, or holds bytes that are not what was written."""
