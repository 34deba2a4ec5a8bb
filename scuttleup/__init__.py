"""Append-only logs on LevelDB that replicate: the npm package scuttleup, for Python.

Everything that a program needs is here. `open` is where to begin:

>>> import scuttleup
>>> with scuttleup.open("logs.db", value_encoding="utf-8") as logs:
...     logs.append("hello world")
...     for change in logs.create_read_stream():
...         print(change)

Each file knows only the files below it, so read them from the bottom up, in three sittings:

1. The log: `errors`, `limits`, `changes`, `encodings`, `keys`, `scan`, `follower`, `events`,
   `store`, `read_stream`, `log`.
2. What it stands on and what it does: `leveldb/` (a LevelDB made safe), `signed/` (signed logs),
   `replication/` (the frames of the wire, the protocol without I/O, the same over asyncio).
3. The running peer: `peer` (stays connected), `command/` (the command line).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .changes import Change
from .errors import (
    ConnectionLost,
    DamagedDatabase,
    DatabaseError,
    DatabaseLocked,
    EntryNotFound,
    ProtocolError,
    ScuttleupError,
    WriteInDoubt,
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
    "Change", "ConnectionLost", "DamagedDatabase", "DatabaseError", "DatabaseLocked",
    "EntryNotFound", "Peer", "ProtocolError", "ReadStream", "Replicated", "ReplicationStream",
    "Scuttleup", "ScuttleupError", "Tls", "WriteInDoubt", "load_tls", "open",
]  # fmt: skip
