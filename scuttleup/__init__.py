"""Append-only logs on LevelDB that replicate: the npm package scuttleup, for Python."""

from .changes import Change
from .errors import (
    ConnectionLost,
    DamagedDatabase,
    DatabaseError,
    EntryNotFound,
    ProtocolError,
    ScuttleupError,
)
from .log import Scuttleup, open
from .read_stream import ReadStream
from .replication import Replicated, ReplicationStream

__version__ = "1.0.0"

__all__ = [
    "Change", "ConnectionLost", "DamagedDatabase", "DatabaseError", "EntryNotFound",
    "ProtocolError", "ReadStream", "Replicated", "ReplicationStream", "Scuttleup", "ScuttleupError",
    "open",
]  # fmt: skip
