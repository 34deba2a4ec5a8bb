"""What one reader has not had yet.

Theory of operation
-------------------

A `Follower` gives its reader every entry that is there when it begins, and, if it is live, every
entry that is stored later. It holds no entries. Three things say what it still has to read:

* `since`: the number up to which the reader has had each log. It grows as entries are read.
* the spans (peer, last) that it is reading just now: the entries of `peer` that the reader has not
  had, up to number `last`.
* a position in the `News`, which is a list of the logs that were written to lately. There is one
  for all followers. So a write costs the same whoever follows, and a follower that nobody reads
  costs nothing.

When the spans have been read, the logs in the news above the position are the next spans, each up
to its head. When some of that news is no longer recorded, because more than `limits.NEWS` came
since, they are all logs, and `since` leaves out what was read before.

Two interleavings make that right. They need no lock beyond the interpreter's own: each step is one
operation on a list, a dict or an attribute, and only one thread writes at a time.

| a write            | a follower that takes the news | so                                         |
|--------------------|--------------------------------|--------------------------------------------|
| 1. moves the head  | 1. takes its position          | if the write's 2 comes after that, the log |
| 2. adds its news   | 2. looks at the heads          | is read later; else the head moved before  |

| a write            | a follower that has had all    | so                                         |
|--------------------|--------------------------------|--------------------------------------------|
| 1. adds its news   | 1. says that it waits          | if it says so after the write's 2, it sees |
| 2. wakes who waits | 2. looks at the news once more | the news in its own 2; else it is woken    |

Nothing comes twice, because `since` is asked before every read.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
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


class News:
    """Which logs were written to lately, who follows, and who waits for the next write.

    There is one of these for a store. Only a writer calls `add`, `forget` and `wake`, under the
    store's lock `writes`. Everything else may be called at any time and from any thread.
    """

    def __init__(self) -> None:
        # The logs in the order of the writes, and which number the first of them has. A list is
        # only ever added to, and a new one takes its place in one step.
        self._recent: tuple[int, list[str]] = 0, []
        # The followers, by id(). The references are weak, so a follower that is dropped is gone.
        # This is not a WeakSet, because asking one whether it is empty costs an append 4 %.
        self.followers: dict[int, weakref.ref[Follower]] = {}
        # Those of the live ones that have had everything and are to be woken by the next news.
        self.waiting: dict[int, weakref.ref[Follower]] = {}

    @property
    def end(self) -> int:
        """The number that the next log gets."""
        first, logs = self._recent
        return first + len(logs)

    def add(self, peer: str) -> None:
        """Record that the head of `peer` has moved."""
        first, logs = self._recent
        logs.append(peer)
        if len(logs) == 2 * limits.NEWS:
            self._recent = first + limits.NEWS, logs[limits.NEWS :]

    def forget(self) -> None:
        """Make every live follower look at all logs, because it is not known what was stored."""
        self._recent = self.end + 1, []

    def after(self, position: int) -> Iterable[str] | None:
        """The logs from number `position` on; None if some of them are no longer recorded."""
        first, logs = self._recent
        return dict.fromkeys(logs[position - first :]) if position >= first else None

    def wake(self) -> None:
        """Wake those who had had everything, and let them say anew that they wait."""
        if self.waiting:
            waiting, self.waiting = self.waiting, {}
            _wake_each(waiting)

    def wake_all(self) -> None:
        """Wake every follower, whatever it has had."""
        _wake_each(self.followers)


def _wake_each(followers: dict[int, weakref.ref[Follower]]) -> None:
    """Wake each of these followers that is still there."""
    for ref in list(followers.values()):
        if follower := ref():
            follower.wake()


class Follower:
    """What one reader has not had yet, in the order of `spans`; then, if `live`, the news.

    `heads` is the store's dict of each log's last number. `since` says what the reader has had of
    each log. It is raised as entries are read, and the reader may raise it, too, to be spared what
    it got elsewhere. `wake` is called, from any thread and in the middle of a write, when a reader
    that has had everything has something to read again, and at the end.

    One reader at a time may use it. `close` may be called from anywhere.
    """

    def __init__(
        self,
        database: Database,
        heads: dict[str, int],
        news: News,
        since: dict[str, int],
        spans: Iterable[Span],
        *,
        live: bool,
        wake: Callable[[], object],
    ) -> None:
        self._database = database
        self._heads = heads
        self._news = news
        # The number up to which the news was taken: what is below it is in `spans`, or is not
        # wanted.
        self._position = news.end
        self._since = since
        # The spans that have not been begun yet; None when all of them were read.
        self._spans: Iterator[Span] | None = iter(spans)
        # The span that is being read, and the number up to which it was.
        self._span: Span = "", 0
        self._after = 0
        # Runs that were read from LevelDB and not given out yet, the next one last.
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
        return self._closed or self._database.refusal is not None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to read now."""
        return self._spans is None and (not self._live or self._position == self._news.end)

    def read(self) -> Run | None:
        """The next run of entries; None when there is nothing now, and after the end.

        Raises DatabaseError if the database cannot be read, and raises it again at every further
        call, because what is damaged must not look like the end. Raises ScuttleupError if the logs
        were closed before a follower that is not live had everything, and in a child process.
        """
        database = self._database
        with database.reads:
            if self._closed or (database.closed if self._live else self._spans is None):
                return None
            with database as db:
                return self._read(db)

    def _read(self, db: Any) -> Run | None:
        """Read on: in the current span, else in the next one, else in the news."""
        while True:
            while self._runs:
                run = self._runs.pop()
                if run.peer in self._heads:  # else it was forgotten after it was read
                    return run
            peer, last = self._span
            # What the reader has had is left out, wherever it came from.
            after = max(self._after, self._since.get(peer, 0))
            if after < last:
                runs, after = read_runs(db, peer, after, last)
                # One statement, so that a Ctrl-C comes before both are changed or after.
                self._runs, self._after = runs[::-1], after
                if after == last:
                    self._since[peer] = last
            elif self._spans and (span := next(self._spans, None)):
                self._span, self._after = span, 0
            else:
                self.past_snapshot = True
                if not self._live or self._nothing_new():
                    self._spans = None
                    return None

    def _nothing_new(self) -> bool:
        """Take the news as the next spans; if there are none, wait for some and return True."""
        if self._position == self._news.end:
            self._news.waiting[id(self)] = self._news.followers[id(self)]
            if self._position == self._news.end:
                return True
        # The position is taken before the heads are read. What is stored in between is in both, and
        # `since` leaves it out the second time.
        position, self._position = self._position, self._news.end
        moved = self._news.after(position)
        if moved is None:
            # All heads are compared at once: that takes 0.1 µs a log, and three times as long if it
            # is done one by one.
            had = self._since.get
            heads = list(self._heads.items())
            self._spans = iter([(peer, head) for peer, head in heads if head > had(peer, 0)])
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
        """Give nothing more. Closing it again does nothing."""
        self._closed = True
        self.wake()
