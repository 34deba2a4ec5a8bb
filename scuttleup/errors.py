"""What can go wrong that is not a wrong argument: all of it is a `ScuttleupError`."""

from __future__ import annotations


class ScuttleupError(Exception):
    """The base of every error that this package defines."""


class EntryNotFound(ScuttleupError, KeyError):
    """There is no such entry: never stored here, or deleted."""

    # KeyError would show the repr of the message, quotes and all.
    __str__ = Exception.__str__


class ProtocolError(ScuttleupError):
    """The remote broke the protocol; its connection is over, everything else goes on."""
