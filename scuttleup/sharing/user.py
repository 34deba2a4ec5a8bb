"""The side of a process that uses the database of another one.

Theory of operation
-------------------

`SharedStore` and `SharedFollower` stand where a `Store` and a `Follower` are otherwise. Everything
above them, encodings, read streams and the check of arguments, runs here unchanged. Bytes cross the
link. Numbers, signatures, limits and syncing are the owner's business.

*A question has one answer.* A link is used by one thread at a time. A question that got no answer,
because the owner has ended, takes too long, or was waited for when a Ctrl-C came, leaves a link on
which the answer may still come. It would be taken for that of the next question. So the link is
ended then, and the next call makes a new one. If the question was a write, the error is a
`WriteInDoubt`: it may be stored. The owner that a new link leads to has to be like the first one:
the numbers of another log would be taken for ours.

*What takes long*, such as `compact`, has a link of its own, so other threads go on. It has no time
limit. But now and then a further link is made, to see whether the owner is still able to answer.

*A live stream* has a thread here, which asks for one run and waits. `read` takes what that thread
has got, so a reader in an event loop does not wait in it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic, sleep
from typing import Any

from .. import errors, limits
from ..changes import Run
from ..errors import DatabaseError, DatabaseLocked, ScuttleupError, WriteInDoubt
from ..leveldb import FORKED, Database, open_database
from ..signed import is_signed
from .link import Link, connect
from .owner import ANSWERS, GOODBYE

# What an answer can raise here, by name.
_RAISED: dict[str, type[Exception]] = {kind.__name__: kind for kind in ANSWERS}
_RAISED |= {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
# The calls after which something may be stored, and those that can take long.
_WRITES = {"append", "extend", "write", "delete", "forget", "remember"}
_SLOW = {"delete", "forget", "remember", "compact"}
_CLOSED = "these logs are closed"
_NESTED = "a call was begun in the middle of another one, for instance by a signal handler"


def wait_for(
    path: str,
    locked: DatabaseLocked,
    given: dict[str, Any],
    *,
    create: bool,
    share: bool,
    wait: float,
) -> Database | SharedStore:
    """The database at `path` as soon as it is free, or before that the store of who shares it.

    It was `locked` just now. Who wants to `share` it wants to be its owner, and waits for that. For
    `given` see `SharedStore`. Raises DatabaseLocked after `wait` seconds.
    """
    end = monotonic() + wait
    while True:
        if not share and not locked.here:
            try:
                return SharedStore(path, locked, given, max(end - monotonic(), 1))
            except DatabaseLocked as error:
                locked = error
        if monotonic() >= end:
            raise locked
        sleep(0.05)
        try:
            return open_database(path, create=create)
        except DatabaseLocked as error:
            locked = error


class SharedStore:
    """The store of the process that has the database at `path` open and shares it.

    `given` are the options that must not differ from the owner's; None stands for any. The owner
    has to answer within `seconds`, or SHARE_SECONDS if that is less. Raises `locked`, which says
    that the database is held, if nobody shares it, and ScuttleupError if an option differs.
    """

    def __init__(
        self,
        path: str,
        locked: DatabaseLocked,
        given: dict[str, Any],
        seconds: float = limits.SHARE_SECONDS,
    ) -> None:
        self.path = path
        self._folder = os.path.realpath(path)
        self._closed = False
        self._lock = threading.RLock()
        self._followers: weakref.WeakSet[_Feed] = weakref.WeakSet()
        self._slow: weakref.WeakSet[Link] = weakref.WeakSet()
        # What the owner said of itself.
        self._hello: list[Any] = []
        try:
            self._link = self._connect(seconds)
        except DatabaseError as error:
            raise error if isinstance(error, DatabaseLocked) else locked from error
        theirs = dict(zip(("id", "max_entry", "only_signed", "sync"), self._hello, strict=True))
        self.id: str = theirs["id"]
        theirs["signed"] = is_signed(self.id)
        for name, value in given.items():
            if value is not None and value != theirs.get(name):
                self._link.end()
                other = "another one" if name == "key" else f"{value!r}"
                raise ScuttleupError(
                    f"{path} is open in another process, which shares it with "
                    f"{name}={theirs.get(name)!r}: it cannot be used with {other}"
                )

    def _connect(self, seconds: float = limits.SHARE_SECONDS) -> Link:
        """A new link to the owner. Raises DatabaseError if there is none, or another one."""
        try:
            link = connect(self._folder, min(seconds, limits.SHARE_SECONDS))
            hello = link.receive()[0]
            if len(hello) == 2:
                raise _RAISED[hello[0]](f"{self.path} {hello[1]}")
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DatabaseError(f"{self.path}: nobody shares it any more: open it again") from error
        if self._hello and self._hello != hello:
            link.end()
            raise DatabaseError(f"{self.path}: it is shared as another one by now: open it again")
        self._hello = hello
        return link

    def _ask(
        self, link: Link, question: list[Any], entries: Iterable[bytes] = (), *, slow: bool = False
    ) -> Any:
        """What the owner answers. Raises what the owner has raised.

        A `slow` answer has no time limit as long as the owner is able to answer.
        """
        name = question[0]
        if link.refusal:  # what is left on it would be taken for the answer
            raise DatabaseError(link.refusal)
        message = link.pack(question, entries)
        try:
            link.sock.settimeout(None if slow else limits.CALL_SECONDS)
            with suppress(ConnectionError):  # the owner's last word may be there all the same
                link.send(message)
            while slow and not link.hears(limits.CALL_SECONDS):
                with suppress(DatabaseLocked):  # it is full, so it is there
                    self._connect().end()
            value, entries = link.receive()
        except BaseException as error:  # a Ctrl-C, too: the answer may still come
            link.refusal = f"{self.path}: the process that has it open does not answer"
            link.end()
            if not isinstance(error, (OSError, ValueError, DatabaseError)):
                raise
            why = _CLOSED if self._closed else link.refusal
            if name in _WRITES:
                raise WriteInDoubt(f"{why}: the write may be stored") from error
            if self._closed:
                raise ScuttleupError(why) from None
            raise DatabaseError(link.refusal) from error
        match value:
            case [str(kind), str(text)] if kind in _RAISED:
                if text == GOODBYE:
                    text = link.refusal = f"{self.path}: {text}"
                raise _RAISED[kind](text)
        return value, entries

    def _call(self, *question: Any, entries: Iterable[bytes] = ()) -> Any:
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise ScuttleupError(_NESTED)
        if self._link.refusal is FORKED:  # and the lock may be held for ever
            raise ScuttleupError(FORKED)
        if self._closed:
            raise ScuttleupError(_CLOSED)
        if question[0] in _SLOW:
            self._slow.add(link := self._connect())
            try:
                return self._ask(link, [*question], slow=True)
            finally:
                link.end()
        with self._lock:
            if self._closed:
                raise ScuttleupError(_CLOSED)
            if self._link.refusal:
                self._link = self._connect()
            return self._ask(self._link, [*question], entries)

    @property
    def heads(self) -> dict[str, int]:
        heads: dict[str, int] = self._call("heads")[0]
        return heads

    def append(self, entry: bytes, sync: bool | None = None) -> int:
        return int(self._call("append", sync, entries=[entry])[0])

    def extend(self, entries: list[bytes], sync: bool | None = None) -> int:
        return int(self._call("extend", sync, entries=entries)[0])

    def write(self, runs: Iterable[Run], sync: bool | None = None) -> int:
        runs = list(runs)
        spans = [[peer, first, len(entries)] for peer, first, entries in runs]
        every = [entry for run in runs for entry in run.entries]
        return int(self._call("write", sync, spans, entries=every)[0])

    def get(self, peer: str, seq: int) -> bytes:
        entry: bytes = self._call("get", peer, seq)[1][0]
        return entry

    def delete(self, peer: str, first: int, last: int) -> int:
        return int(self._call("delete", peer, first, last)[0])

    @property
    def forgotten(self) -> frozenset[str]:
        return frozenset(self._call("forgotten")[0])

    def forget(self, peer: str) -> int:
        return int(self._call("forget", peer)[0])

    def remember(self, peer: str) -> None:
        self._call("remember", peer)

    def compact(self) -> None:
        self._call("compact")

    def follow(
        self,
        since: dict[str, int],
        *,
        snapshot: bool,
        live: bool,
        wake: Callable[[], object],
        in_order: bool = False,
    ) -> SharedFollower:
        if self._link.refusal is FORKED or self._closed:
            raise ScuttleupError(self._link.refusal or _CLOSED)
        link = self._connect()
        self._ask(link, ["follow", since, snapshot, live])
        feed = _Feed(self, link, live, wake)
        self._followers.add(feed)
        return SharedFollower(feed)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """End all links. Closing it again does nothing."""
        self._closed = True
        for link in [self._link, *self._slow]:
            link.end()
        for feed in list(self._followers):
            feed.close()


class _Feed:
    """What comes on the link of one stream. If it is live, a thread fetches it, a run ahead."""

    def __init__(
        self, store: SharedStore, link: Link, live: bool, wake: Callable[[], object]
    ) -> None:
        self.store, self.link, self.live, self._wake = store, link, live, wake
        # Whether it was closed, and whether all of it has come.
        self.closed = self._ended = False
        # The runs that have come and were not read, and perhaps an error, which stays at the end.
        self.runs: deque[Run | Exception] = deque()
        self._room = threading.Semaphore(2)
        if live:
            threading.Thread(target=self._fetch, daemon=True).start()

    def _fetch(self) -> None:
        """Fetch what comes until the link ends. Runs in a thread."""
        while not self._ended:
            self._room.acquire()
            if self.closed:
                return
            try:
                if run := self._next():
                    self.runs.append(run)
            except Exception as error:
                self._ended = True
                # Its traceback refers to this feed, and the two would keep each other.
                self.runs.append(type(error)(*error.args))
            with suppress(Exception):
                self._wake()

    def _next(self) -> Run | None:
        value, entries = self.store._ask(self.link, ["next"], slow=self.live)
        return Run(value[0], value[1], entries) if value else None

    def read(self) -> Run | None:
        """What `Follower.read` returns and raises."""
        if self.link.refusal is FORKED:
            raise ScuttleupError(FORKED)
        if self.live:
            if self.closed or self.store.closed or not self.runs:
                return None
            if isinstance(first := self.runs[0], Exception):
                raise type(first)(*first.args)
            self.runs.popleft()
            self._room.release()
            return first
        if self._ended or self.closed:
            return None
        run = self._next()
        self._ended = run is None
        return run

    def close(self) -> None:
        self.closed = self.closed or self.live or self._ended
        self.link.end()
        self._room.release()
        with suppress(Exception):
            self._wake()


class SharedFollower:
    """A `Follower` whose store is in another process. When it is dropped, its link ends."""

    def __init__(self, feed: _Feed) -> None:
        self._feed = feed
        self.read = feed.read
        weakref.finalize(self, feed.close).atexit = False

    @property
    def closed(self) -> bool:
        """Whether this follower was closed, or the logs were."""
        return self._feed.closed or self._feed.store.closed

    @property
    def idle(self) -> bool:
        """Whether there is nothing to read now."""
        return not self._feed.runs

    def close(self) -> None:
        """Give nothing more. Closing it again does nothing."""
        self._feed.closed = True
        self._feed.close()
