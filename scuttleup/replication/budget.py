"""What all connections of a store may hold together because of their remotes.

Theory of operation
-------------------

A remote has a say in how much a connection remembers: names of logs that are not here or are left
out, and bytes that wait for it or for the rest of their frame. Each connection has its own limits,
but there can be a thousand connections. So each has a `Holding`, which says after every turn how
much there is, and the `Budget` of the store adds up.

*Names.* While all together hold more than MAX_NAMES_HELD, `is_full` says so, and a connection
remembers no further name for that time. What it does without the name is its own business.

*Bytes.* Whoever makes all together hold more than MAX_HELD has the connection that holds the most
dropped. Only the thread that uses that connection may touch it. So it is told to end, by `dropped`
and by its `wake`, and what it holds is not counted any more.

A holding that is closed, or that nobody refers to any more, gives everything back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ClassVar
from weakref import WeakKeyDictionary, WeakSet

from .. import limits
from ..store import Store


class Budget:
    """What the connections of one store hold together."""

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
    """How much one connection holds. `wake` is called, from any thread, when it is dropped."""

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
        """Say how many names and how many bytes this connection holds now."""
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
                largest = max(budget.holdings, key=lambda it: it.bytes)
                budget.bytes -= largest.bytes
                largest.bytes, largest.dropped = 0, True
                wakes.append(largest._wake)
        for wake in wakes:
            wake()

    def close(self) -> None:
        """Give everything back."""
        self._wake = lambda: None
        self.hold(0, 0)

    __del__ = close
