"""What each remote has had of each log, in 4 bytes a log.

Theory of operation
-------------------

A peer with 50 connections and 100,000 logs would need 600 MiB for dicts of numbers. So all
connections of a store share one dict of rows. A log that is here has a row in it, the same for all,
and for ever. The numbers of one remote are an array in the order of the rows.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable
from itertools import count
from operator import itemgetter
from weakref import WeakKeyDictionary

from ..follower import Had, Span
from ..store import Store

# The rows of the logs of each store. Only a thread that holds the lock gives rows.
_ROWS: WeakKeyDictionary[Store, dict[str, int]] = WeakKeyDictionary()
_LOCK = threading.Lock()


class RemoteHad(Had):
    """Up to which number one remote has had each log. As a dict it stays empty.

    `others` has logs that were not here when their numbers were noted.
    """

    def __init__(self, store: Store) -> None:
        self.rows = _ROWS.setdefault(store, {})
        self.numbers = array("I")
        self.others: dict[str, int] = {}

    def row(self, peer: str) -> int:
        """The row of a log that is here, which then has a number."""
        row = self.rows.get(peer, -1)
        if not 0 <= row < len(self.numbers):
            self.give_rows([peer])
            row = self.rows[peer]
        if self.others and peer in self.others:
            self.numbers[row] = max(self.numbers[row], self.others.pop(peer))
        return row

    def give_rows(self, peers: Iterable[str]) -> None:
        """Give a row to each of these logs that are here, and have a number for each row."""
        rows = self.rows
        if new := {peer for peer in peers if peer not in rows}:
            with _LOCK:
                new = {peer for peer in new if peer not in rows}
                rows.update(zip(new, count(len(rows)), strict=False))
        if missing := len(rows) - len(self.numbers):
            self.numbers.frombytes(bytes(self.numbers.itemsize * missing))

    def get(self, peer: str, default: int = 0) -> int:  # type: ignore[override]
        """The number of a log that is here; 0 if the remote has had nothing of that."""
        if self.others:
            self.row(peer)
        try:  # for a remote with many logs a third of the time that a call of `row` takes
            return self.numbers[self.rows[peer]]
        except LookupError:
            return self.numbers[self.row(peer)]

    def __setitem__(self, peer: str, seq: int) -> None:
        try:
            self.numbers[self.rows[peer]] = seq
        except LookupError:
            self.numbers[self.row(peer)] = seq

    def behind(self, heads: dict[str, int]) -> list[Span]:
        """The logs of which the remote lacks entries, compared in loops in C."""
        lasts = list(heads.items())
        names = list(map(itemgetter(0), lasts))
        self.give_rows(names)
        for peer in self.others.keys() & heads.keys():
            self.row(peer)
        had = map(self.numbers.__getitem__, map(self.rows.__getitem__, names))
        return [span for span, number in zip(lasts, had, strict=True) if span[1] > number]
