"""The memory that all connections of a store take together because of their remotes.

Theory of operation
-------------------

A remote has a say in how much a connection remembers: names of logs that are not here or are left
out, and bytes of a frame that is not complete or of an entry that the remote does not take. Each
connection has limits of its own, but there can be a thousand connections. So each has a `Holding`,
which is told the numbers after some bytes have come, and the `Budget` of the store has the sums.

*Names.* While all names together take MAX_NAMES_HELD, `is_full` says so, and no connection
remembers a further name. A digest without a name costs a re-send (see `protocol.py`), and a door
that has left out some logs and cannot remember another takes nothing more (see `door.py`).

*Bytes.* If all bytes together are more than MAX_HELD, the connection with the most is dropped.
Only the thread that uses a connection may touch its stream. So the connection is told to end, by
`dropped` and by `wake`, and its bytes are not counted any more.

A holding that is closed, or that nobody refers to any more, gives everything back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar
from weakref import WeakKeyDictionary, WeakSet

from .. import limits
from ..store import Store


class Budget:
    """The sums over all connections of one store."""

    _all: ClassVar[WeakKeyDictionary[Store, Budget]] = WeakKeyDictionary()

    def __init__(self) -> None:
        # A finalizer may give something back in the middle of anything.
        self.lock = threading.RLock()
        self.names = self.bytes = 0
        self.holdings: WeakSet[Holding] = WeakSet()

    @classmethod
    def of(cls, store: Store) -> Budget:
        """The one that all connections of `store` share."""
        return cls._all.setdefault(store, cls())


class Holding:
    """The numbers of one connection. `wake` is called, from any thread, when it is dropped."""

    def __init__(self, store: Store, wake: Callable[[], None]) -> None:
        self._budget = Budget.of(store)
        self._wake = wake
        self.names = self.bytes = 0
        # Whether this connection is to end, because it holds the most.
        self.dropped = False
        with self._budget.lock:
            self._budget.holdings.add(self)

    @property
    def is_full(self) -> bool:
        """Whether no further name may be remembered."""
        return self._budget.names * limits.NAME_BYTES >= limits.MAX_NAMES_HELD

    def hold(self, names: int, size: int) -> None:
        """Note how many names and how many bytes this connection holds now."""
        if self.dropped:
            size = 0
        if (names, size) == (self.names, self.bytes):
            return
        budget, wakes = self._budget, []
        with budget.lock:
            budget.names += names - self.names
            budget.bytes += size - self.bytes
            self.names, self.bytes = names, size
            while budget.bytes > limits.MAX_HELD:
                largest = max(budget.holdings, key=lambda it: it.bytes, default=self)
                if not largest.bytes:  # a holding is being collected, and gives back in a moment
                    break
                budget.bytes -= largest.bytes
                largest.bytes, largest.dropped = 0, True
                wakes.append(largest._wake)
        for wake in wakes:
            with suppress(Exception):  # as when its event loop is closed
                wake()

    def close(self) -> None:
        """Give everything back."""
        self._wake = lambda: None
        self.hold(0, 0)

    __del__ = close
