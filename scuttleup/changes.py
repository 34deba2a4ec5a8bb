"""One entry of one log, and a run of them.

There are two forms because there are two readers. A user handles one `Change` at a time. Inside the
package a loop over single changes would cost more than the work itself, so everything there handles
a `Run`, which is a piece of one log.
"""

from __future__ import annotations

from collections import namedtuple
from itertools import count, repeat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any, NamedTuple

    class _Change(NamedTuple):
        peer: str
        seq: int
        entry: Any

    class _Run(NamedTuple):
        peer: str
        first: int
        entries: Sequence[bytes]
else:
    # The same fields without types, so that `typing` need not be loaded.
    _Change = namedtuple("_Change", ("peer", "seq", "entry"))
    _Run = namedtuple("_Run", ("peer", "first", "entries"))


class Change(_Change):
    """Entry number `seq` of the log of `peer`, the same everywhere and for ever.

    The value encoding makes `entry` of the stored bytes. A change is a NamedTuple, so a program can
    unpack it, compare it, and hand it to `Scuttleup.write`.

    `str(change)` is the line that `read.py` prints. The line shows each field as `repr` does, so no
    control character of a hostile entry reaches a terminal.

    >>> print(Change("foobar", 1, "hello"))
    {peer: 'foobar', seq: 1, entry: 'hello'}
    """

    __slots__ = ()

    def __str__(self) -> str:
        return f"{{peer: {self.peer!r}, seq: {self.seq}, entry: {self.entry!r}}}"


class Run(_Run):
    """The entries number `first`, `first` + 1, … of one log, as bytes.

    Everything below `Scuttleup` moves runs. So the things that are the same for a whole run, such
    as the beginning of its keys or of its frames, are made once and not for every entry. A run has
    no gaps: where an entry was deleted, a run ends and the next run begins.
    """

    __slots__ = ()


def expand(peer: str, first: int, entries: Iterable[Any]) -> Iterator[Change]:
    """The changes of `peer` from number `first` on, with `entries` in order.

    Each change is made when the caller asks for it.
    """
    # The same as calls of `Change`, but a loop in C, which takes less than half of the time.
    return map(tuple.__new__, repeat(Change), zip(repeat(peer), count(first), entries))
