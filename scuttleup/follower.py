"""What one reader has not had yet.

Theory of operation
-------------------

A `Follower` gives its reader every entry that is there at the beginning, and, if the follower is
live, every entry that is stored later. A follower holds no entries. Three things say which entries
are still to be read:

* `had`: the number up to which the reader has had each log. It grows as entries are read.
* the spans (peer, last) that are being read just now: the entries of `peer` that the reader has not
  had, up to number `last`.
* a position in the `News`, a list of the logs that were written to lately, the same for all
  followers. So a write costs the same whoever follows, and a follower that nobody reads
  costs nothing.

When the spans have been read, the logs in the news above the position are the next spans, each up
to its head. When some of that news is no longer recorded, because more than `limits.NEWS` came
since, the next spans are all logs, and `had` leaves out the entries that were read before.

Two interleavings make that right, and need no lock beyond the interpreter's own: each step is one
operation on a list, a dict or an attribute, and only one thread writes at a time.

| a write            | a follower that takes the news | so                                         |
|--------------------|--------------------------------|--------------------------------------------|
| 1. moves the head  | 1. takes its position          | if the write's 2 comes after that, the log |
| 2. adds its news   | 2. looks at the heads          | is read later; else the head moved before  |

| a write            | a follower that has had all    | so                                         |
|--------------------|--------------------------------|--------------------------------------------|
| 1. adds its news   | 1. says that it waits          | if it says so after the write's 2, it sees |
| 2. wakes who waits | 2. looks at the news once more | the news in its own 2; else it is woken    |

Nothing comes twice, because `had` is asked before every read.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress

from . import limits
from .changes import Run
from .leveldb import Database
from .scan import read_runs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The entries of one log up to a number.
Span = tuple[str, int]
# Tells a reader that there is news.
Wake = Callable[[], object]


class Had(dict[str, int]):
    """Up to which number one reader has had each log.

    In `replication/had.py` such numbers take less memory.
    """

    def behind(self, heads: dict[str, int]) -> list[Span]:
        """The logs of which this reader lacks entries, by peer id, each with its last number."""
        return sorted(span for span in list(heads.items()) if span[1] > self.get(span[0], 0))


class News:
    """What all followers share: the logs that were written to lately, and who waits for the next.

    A store has one `News`. `heads` is its dict of each log's last number. Only a writer calls
    `add`, `forget` and `wake`, under the store's lock `writes`. Everything else may be called at
    any time and from any thread.
    """

    def __init__(self, database: Database, heads: dict[str, int]) -> None:
        self.database = database
        self.heads = heads
        # The logs in the order of the writes, and the number of the first. A list is only ever
        # added to, and a new list takes its place in one step.
        self._recent: tuple[int, list[str]] = 0, []
        # The followers, by id(). The references are weak, so a follower that is dropped is gone.
        # Not a WeakSet: to ask whether a WeakSet is empty costs an append 4 %.
        self.followers: dict[int, weakref.ref[Follower]] = {}
        # The live followers that have had everything and are to be woken by the next news.
        self.waiting: dict[int, weakref.ref[Follower]] = {}

    @property
    def end(self) -> int:
        """The number that the next log gets."""
        first, logs = self._recent
        return first + len(logs)

    def add(self, peers: Collection[str]) -> None:
        """Record that the heads of `peers` have moved."""
        first, logs = self._recent
        logs.extend(peers)
        if len(logs) >= 2 * limits.NEWS:
            self._recent = first + len(logs) - limits.NEWS, logs[-limits.NEWS :]

    def forget(self) -> None:
        """Make every live follower look at all logs, because nobody knows which of them grew."""
        self._recent = self.end + 1, []

    def after(self, position: int) -> Iterable[str] | None:
        """The logs from number `position` on; None if some of them are no longer recorded."""
        first, logs = self._recent
        return dict.fromkeys(logs[position - first :]) if position >= first else None

    def wake(self) -> None:
        """Wake the followers that wait, and let them say anew that they wait."""
        if self.waiting:
            waiting, self.waiting = self.waiting, {}
            _wake_each(waiting)

    def wake_all(self) -> None:
        """Wake every follower, also those that do not wait."""
        _wake_each(self.followers)


def _wake_each(followers: dict[int, weakref.ref[Follower]]) -> None:
    """Wake each of these followers that is still there."""
    for ref in list(followers.values()):
        if follower := ref():
            follower.wake()


class Follower:
    """The entries that are here and that one reader has not `had`; then, if `live`, the news.

    Without `snapshot` the reader is taken to have had all that is here. `had` is raised as entries
    are read, and the reader may raise a number, too, to be spared entries from elsewhere. `wake` is
    called, from any thread and in the middle of a write, when a reader that has had everything has
    something to read again, and at the end.

    One reader at a time may use a follower. `close` may be called from anywhere.
    """

    def __init__(self, news: News, had: Had, *, snapshot: bool, live: bool, wake: Wake) -> None:
        self._news = news
        self._heads = news.heads
        # The number up to which the news was taken: older news is in `spans`, or is not wanted.
        self._position = news.end
        self._had = had
        spans = had.behind(self._heads) if snapshot or live else []
        if not snapshot:
            for peer, last in spans:
                had[peer] = last
            spans = []
        # The spans that have not been begun yet; None when all of them were read.
        self._spans: Iterator[Span] | None = iter(spans)
        # The span that is being read, and the last number that was read of it.
        self._span: Span = "", 0
        self._after = 0
        # Runs that were read from LevelDB and not given out yet, the next run last.
        self._runs: list[Run] = []
        self._live = live
        self._wake = wake
        # Whether all of the first spans were read. For reading from outside.
        self.past_snapshot = False
        # Whether `close` was called.
        self._closed = False
        # The weak reference removes itself from the dict when the follower is dropped.
        followers, key = news.followers, id(self)
        followers[key] = weakref.ref(self, lambda ref: followers.pop(key, None))

    @property
    def closed(self) -> bool:
        """Whether this follower was closed, or the logs were."""
        return self._closed or self._news.database.refusal is not None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to read now."""
        return self._spans is None and (not self._live or self._position == self._news.end)

    def read(self) -> Run | None:
        """The next run of entries; None when there is nothing now, and after the end.

        Raises DatabaseError if the database cannot be read, at every further call as well, because
        damage must not look like the end. Raises ScuttleupError if the logs were closed before a
        follower that is not live had everything, and in a child process.
        """
        database = self._news.database
        with database.reads:
            if self._closed or (database.closed if self._live else self._spans is None):
                return None
            with database as db:
                return self._read(db)

    def _read(self, db: Any) -> Run | None:
        """Read on: in the current span, else in the next span, else in the news."""
        had = self._had
        while True:
            while self._runs:
                run = self._runs.pop()
                if run.peer in self._heads:  # else it was forgotten after it was read
                    return run
            peer, last = self._span
            if self._after < last:
                # Entries that the reader has had are left out, wherever they came from.
                after = max(self._after, had.get(peer, 0))
                if after >= last:
                    self._after = after
                    continue
                runs, after = read_runs(db, peer, after, last)
                # One statement, so that a Ctrl-C comes before both are changed or after.
                self._runs, self._after = runs[::-1], after
                if after == last:
                    had[peer] = last
            elif self._spans and (span := next(self._spans, None)):
                self._span, self._after = span, 0
            else:
                self.past_snapshot = True
                if not self._live or self._nothing_new():
                    self._spans = None
                    return None

    def _nothing_new(self) -> bool:
        """Take the news as the next spans; without news, wait for some and return True."""
        if self._position == self._news.end:
            self._news.waiting[id(self)] = self._news.followers[id(self)]
            if self._position == self._news.end:
                return True
        # The position is taken before the heads are read. An entry that is stored in between is in
        # both, and `had` leaves the entry out the second time.
        position, self._position = self._position, self._news.end
        moved = self._news.after(position)
        if moved is None:
            self._spans = iter(self._had.behind(self._heads))
        else:
            # A log may have been forgotten meanwhile.
            self._spans = iter([(peer, self._heads.get(peer, 0)) for peer in moved])
        return False

    def wake(self) -> None:
        """Wake the reader. This never raises."""
        # The entry is stored, so an append must not raise here: its caller would append it again. A
        # reader whose event loop is closed has no use for the entry.
        with suppress(Exception):
            self._wake()

    def close(self) -> None:
        """Give nothing more. A second call does nothing."""
        self._closed = True
        self.wake()
