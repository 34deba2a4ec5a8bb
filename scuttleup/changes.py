"""One entry of one log, and a run of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, repeat
from typing import Any, NamedTuple


class Change(NamedTuple):
    """Entry number `seq` of the log of `peer`, the same everywhere and for ever.

    `str()` of it is the line that `read.py` prints. It shows the fields as `repr` does, so
    nothing in a hostile entry reaches a terminal as a control character.

    >>> print(Change("foobar", 1, "hello"))
    {peer: 'foobar', seq: 1, entry: 'hello'}
    """

    peer: str
    seq: int
    entry: Any

    def __str__(self) -> str:
        return f"{{peer: {self.peer!r}, seq: {self.seq}, entry: {self.entry!r}}}"


class Run(NamedTuple):
    """The entries number `first`, `first` + 1, … of one log.

    Everything below `Scuttleup` moves runs and not single changes: what is the same for a whole
    run, the prefix of its keys or of its frames, is then made once and not for every entry.
    """

    peer: str
    first: int
    entries: Sequence[bytes]


def expand(peer: str, first: int, entries: Iterable[Any]) -> Iterator[Change]:
    """The changes of `peer` from number `first` on, with `entries` in order."""
    # 0.16 µs each; a call of Change takes 0.36 µs.
    return map(tuple.__new__, repeat(Change), zip(repeat(peer), count(first), entries))
