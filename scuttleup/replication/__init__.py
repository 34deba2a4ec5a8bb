"""Replication, without a peer that stays connected: the frames of the wire (`messages.py`), what of
it comes in (`door.py`), the protocol without any I/O (`protocol.py`), and the same over asyncio
(`connection.py`).
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .connection import replicate as replicate
    from .door import UNWANTED as UNWANTED
    from .door import Accept as Accept
    from .door import Door as Door
    from .door import Verify as Verify
    from .door import check_wishes as check_wishes
    from .door import runs_of as runs_of
    from .door import write as write
    from .messages import MODES as MODES
    from .messages import Mode as Mode
    from .protocol import Replicated as Replicated
    from .protocol import ReplicationStream as ReplicationStream
else:

    def __getattr__(name: str) -> object:
        """Load a file when it is first used, since a log needs none, and one of them asyncio."""
        if name in ("MODES", "Mode"):
            from . import messages as file
        elif name in ("Door", "UNWANTED", "check_wishes", "runs_of", "write"):
            from . import door as file
        elif name in ("Replicated", "ReplicationStream"):
            from . import protocol as file
        elif name == "replicate":
            from . import connection as file
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(file, name)
