"""The marks in a database that say how its logs may go on.

The store loads the marks when it is opened, and again after a write in doubt. The rooms above the
store write them: `identity/` notes a fork and ends a backup, and `deleting/` notes which logs are
forgotten.
"""

from __future__ import annotations

from collections import namedtuple

from ..errors import ForkedLog, ScuttleupError
from ..keys import BACKUP, FORGOTTEN, FORK
from ..scan import load_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NamedTuple

    class _Fork(NamedTuple):
        seq: int
        where: str

    class _Marks(NamedTuple):
        fork: Fork | None
        backup: str
        forgotten: frozenset[str]
else:
    # The same fields without types, so that `typing` need not be loaded.
    _Fork = namedtuple("_Fork", ("seq", "where"))
    _Marks = namedtuple("_Marks", ("fork", "backup", "forgotten"))


class Fork(_Fork):
    """Our own log has forked: another entry `seq` than ours has our signature, seen `where`."""

    __slots__ = ()


class Marks(_Marks):
    """Where our own signed log has `fork`ed, or None; the day of the `backup` that this is, or "".

    `forgotten` has the logs that are not wanted here.
    """

    __slots__ = ()

    @property
    def stop(self) -> bool:
        """Whether nothing may be appended."""
        return bool(self.fork or self.backup)

    def check_may_append(self, id: str, path: str) -> None:
        """Raise ForkedLog after a fork, and ScuttleupError in a backup that is not to go on."""
        if self.fork:
            seq, where = self.fork
            raise ForkedLog(
                f"our own log {id!r} has forked at {seq}, as was seen {where}: peers take no "
                "more of it. Begin a new one with `new_id`"
            )
        if self.backup:
            raise ScuttleupError(
                f"{path} is a backup of {self.backup}: replicate first, so that your "
                "peers give back what they have, and call `resume` if there is no other copy"
            )


def load_marks(db: Any) -> Marks:
    """The marks in the LevelDB `db`, whose lock the caller holds."""
    seq, _, where = _load_text(db, FORK).partition(" ")
    fork = Fork(int(seq), where) if seq.isdecimal() else None
    return Marks(fork, _load_text(db, BACKUP), frozenset(load_names(db, FORGOTTEN)))


def _load_text(db: Any, key: bytes) -> str:
    """The value of `key`, as text; "" if there is no value."""
    stored: bytes = db.get(key, verify_checksums=True) or b""
    return stored.decode(errors="replace")
