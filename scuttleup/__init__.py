"""Append-only logs on LevelDB that replicate: the npm package scuttleup, for Python.

Everything that a program needs is here. `open` is where to begin:

>>> import scuttleup
>>> with scuttleup.open("logs.db", value_encoding="utf-8") as logs:
...     logs.append("hello world")
...     for change in logs.create_read_stream():
...         print(change)

The README says in which order the files are read, under "Reading the source".
"""

from __future__ import annotations

from .changes import Change
from .errors import (
    ConnectionLost,
    DamagedDatabase,
    DatabaseError,
    DatabaseLocked,
    EntryNotFound,
    ForkedLog,
    ProtocolError,
    ScuttleupError,
    WriteInDoubt,
)
from .log import Scuttleup, open
from .notes import Fork

__version__ = "2.0.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .peer import Connection, Peer, Tls, load_tls
    from .read_stream import ReadStream
    from .replication import Replicated, ReplicationStream
else:

    def __getattr__(name: str) -> object:
        """Load the rest when it is used: asyncio, above all, takes longer than a log needs."""
        if name in ("Connection", "Peer", "Tls", "load_tls"):
            from . import peer

            return getattr(peer, name)
        if name == "ReadStream":
            from .read_stream import ReadStream as value
        elif name == "Replicated":
            from .replication import Replicated as value
        elif name == "ReplicationStream":
            from .replication import ReplicationStream as value
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return value


def __dir__() -> list[str]:
    """All names, those that are not loaded yet included."""
    return sorted({*globals(), *__all__})


__all__ = [
    "Change", "Connection", "ConnectionLost", "DamagedDatabase", "DatabaseError", "DatabaseLocked",
    "EntryNotFound", "Fork", "ForkedLog", "Peer", "ProtocolError", "ReadStream", "Replicated",
    "ReplicationStream", "Scuttleup", "ScuttleupError", "Tls", "WriteInDoubt", "load_tls", "open",
]  # fmt: skip
