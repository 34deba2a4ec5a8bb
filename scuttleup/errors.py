"""The errors of this package.

LevelDB's own are `plyvel.Error`; wrong arguments are TypeError or ValueError.
"""

from __future__ import annotations


class ScuttleupError(Exception):
    """The base of every error that this package defines."""


class EntryNotFound(ScuttleupError, KeyError):
    """There is no such entry: never stored here, or deleted."""

    # KeyError would show the repr of the message, quotes and all.
    __str__ = Exception.__str__


class ProtocolError(ScuttleupError):
    """A replication ended: the remote broke the protocol, `verify` refused or the link broke."""
