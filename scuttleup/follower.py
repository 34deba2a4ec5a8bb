"""What one reader has not had yet.

Theory of operation
-------------------

A `Follower` gives its reader every entry that is there when it begins, and, if it is live, every
entry that is stored later. It holds no entries, only positions. Three things say what it still has
to read:

* `since`: the number up to which the reader has had each log. It grows as entries are read.
* the spans (peer, after, last) that it is reading just now: the entries of `peer` above number
  `after` up to number `last`, less what `since` says.
* a position in the `News`, which is a short record of what was stored lately, a span for each log
  and write. There is one for all followers. So a write costs the same whoever follows, and a
  follower that nobody reads costs nothing.

When the spans have been read, the news above the position are the next spans. When some of those
are no longer recorded, because more than NEWS were added since, the follower starts over: the next
spans are then all logs up to their heads, and `since` leaves out what was read before.

Nothing is missed, because a write moves the head first and adds its news then, and because a
follower takes its position before it looks at the heads. Nothing comes twice, because `since` is
asked whenever a span is begun.

A reader that has had everything is woken by the next news. It says so first (`News.waiting`) and
looks at the news once more then; a write adds its news first and looks then for who waits. So
whichever comes first, one of the two sees the other. This needs no lock beyond the interpreter's
own: each step is one operation on a list, a dict or an int, and only one thread writes at a time.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from .changes import Run
from .database import Database
from .limits import NEWS
from .scan import read_runs

Span = tuple[str, int, int]  # peer, after, last


class News:
    """The last NEWS spans that were stored, who follows, and who is to be told of the next one."""

    def __init__(self) -> None:
        # Span number n is in place n % NEWS, with its n, as long as no later one is.
        self._ring: list[tuple[int, Span]] = [(-1, ("", 0, 0))] * NEWS
        self.end = 0  # the number that the next span gets
        # By id(). Weak, so that a follower that is dropped is gone; not a WeakSet, since to ask
        # one whether it is empty costs an append 4 %.
        self.followers: dict[int, weakref.ref[Follower]] = {}  # those that are live
        self.others: dict[int, weakref.ref[Follower]] = {}  # those that are not
        self.waiting: dict[int, weakref.ref[Follower]] = {}  # those of them that had everything

    def add(self, peer: str, after: int, last: int) -> None:
        """LevelDB has the entries of `peer` above `after` up to `last`."""
        self._ring[self.end % NEWS] = (self.end, (peer, after, last))
        self.end += 1

    def forget(self) -> None:
        """Make every live follower start over, because it is not known what was stored."""
        self.end += NEWS + 1

    def since(self, position: int) -> tuple[list[Span] | None, int]:
        """The spans from number `position` on, one a peer, and the number after the last.

        None if some of them are no longer recorded.
        """
        end = self.end
        if end - position > NEWS:
            return None, end
        spans: dict[str, Span] = {}
        for number in range(position, end):
            found, (peer, after, last) = self._ring[number % NEWS]
            if found != number:
                return None, end  # overwritten just now
            spans[peer] = (peer, spans[peer][1] if peer in spans else after, last)
        return list(spans.values()), end

    def wake(self) -> None:
        """Wake those who had had everything."""
        if not self.waiting:
            return
        waiting, self.waiting = self.waiting, {}
        _ring_all(waiting)

    def wake_all(self) -> None:
        """Wake every live follower, whatever it has had."""
        _ring_all(self.followers)

    def close(self) -> None:
        """Wake everybody, because there will be nothing more."""
        self.wake_all()
        _ring_all(self.others)


def _ring_all(followers: dict[int, weakref.ref[Follower]]) -> None:
    for ref in list(followers.values()):
        if follower := ref():
            follower.ring()


class Follower:
    """What one reader has not had yet, in the order of `spans`; then, if `live`, the news.

    `heads` is the store's: each log's last number. `since` may be raised by the reader, who then
    does not get what it says. `wake` is called, from any thread and in the middle of a write, when
    there is something to read again for a reader that has had everything, and at the end.
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
        wake: Callable[[], None],
    ) -> None:
        self._database = database
        self._heads = heads
        self._news = news
        self._position = news.end  # in the news: all below it are in `spans` or are not wanted
        self._since = since
        self._spans: Iterator[Span] | None = iter(spans)  # not begun yet; None when all were read
        self._span: Span = ("", 0, 0)  # the one that is being read, above its second number
        self._runs: list[Run] = []  # read from LevelDB and not given out yet, the next one last
        self._live = live
        self._wake = wake
        self._closed = False
        followers, key = news.followers if live else news.others, id(self)
        followers[key] = weakref.ref(self, lambda ref: followers.pop(key, None))

    @property
    def closed(self) -> bool:
        """Whether this follower, or the log, was closed."""
        return self._closed or self._database.refusal is not None

    @property
    def idle(self) -> bool:
        """Whether there is nothing to read now."""
        return self._spans is None and (not self._live or self._position == self._news.end)

    def read(self) -> Run | None:
        """The next run of entries; None when there is nothing now, and after the end.

        Raises DatabaseError, and then every time, because what is damaged must not look like the
        end. Raises ScuttleupError if the logs were closed before a follower that is not live had
        everything, and in a child process.
        """
        database = self._database
        with database.reads:
            if self._closed or (database.closed if self._live else self._spans is None):
                return None
            with database as db:
                return self._read(db)

    def _read(self, db: Any) -> Run | None:
        while not self._runs:
            peer, after, last = self._span
            if after < last:
                runs, after = read_runs(db, peer, after, last)
                # One statement, between whose parts no Ctrl-C comes.
                self._runs, self._span = runs[::-1], (peer, after, last)
                if after == last:
                    self._since[peer] = max(last, self._since.get(peer, 0))
            elif self._spans and (span := next(self._spans, None)):
                peer, after, last = span
                known = self._since.get(peer, 0)
                self._span = span if known <= after else (peer, known, last)
            elif not self._live or self._nothing_new():
                self._spans = None
                return None
        return self._runs.pop()

    def _nothing_new(self) -> bool:
        """Take the news as the next spans; True if there are none, and then wait for some."""
        if self._position == self._news.end:
            self._news.waiting[id(self)] = self._news.followers[id(self)]
            if self._position == self._news.end:
                return True
        spans, self._position = self._news.since(self._position)
        if spans is None:
            # The position is taken and the heads are read after it: what is stored meanwhile is
            # in both, and `since` leaves it out the second time.
            heads = list(self._heads.items())
            self._spans = ((peer, 0, head) for peer, head in heads)
        else:
            self._spans = iter(spans)
        return False

    def ring(self) -> None:
        """Wake the reader."""
        # Suppressed, because the entry is stored: an append that raised would be done again. A
        # reader whose event loop is closed has no use for the entry.
        with suppress(Exception):
            self._wake()

    def close(self) -> None:
        """Give nothing more. Closing it again does nothing."""
        self._closed = True
        self.ring()
