"""Append-only logs on LevelDB that replicate: the npm package scuttleup, for Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from .peer import Peer, Tls, load_tls
else:

    def __getattr__(name: str) -> object:
        """Load `Peer` when it is used, since asyncio takes longer to load than all the rest."""
        if name not in ("Peer", "Tls", "load_tls"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import peer

        return getattr(peer, name)


__all__ = [
    "Change", "ConnectionLost", "DamagedDatabase", "DatabaseError", "EntryNotFound", "Peer",
    "ProtocolError", "ReadStream", "Replicated", "ReplicationStream", "Scuttleup", "ScuttleupError",
    "Tls", "load_tls", "open",
]  # fmt: skip
