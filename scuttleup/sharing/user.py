"""The side of a process that uses the database of another process.

Theory of operation
-------------------

`SharedStore` and `SharedFollower` stand where a `Store` and a `Follower` are otherwise. Everything
above them, encodings, read streams and the check of arguments, runs here unchanged. Bytes cross the
link. Numbers, signatures, limits and syncing are the owner's business.

*A question has one answer.* A link is used by one thread at a time. A question gets no answer if
the owner has ended or takes too long, or if a Ctrl-C comes meanwhile. The answer may still come
later, and would be taken for that of the next question. So the link is ended then, and the next
call makes a new link. If the question was a write, the error is a `WriteInDoubt`: the write may be
stored. The owner that a new link leads to has to be like the first owner: the numbers of another
log would be taken for ours.

*Slow calls*, such as `compact`, have a link of their own, so other threads go on. They have no time
limit. But now and then a further link is made, to see whether the owner is still able to answer.

*A live stream* has a thread here, which fetches runs, two ahead of the reader at most. `read` takes
those, so a reader in an event loop does not wait for the owner.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from math import inf
from time import monotonic, sleep
from typing import Any

from .. import errors, limits
from ..changes import Run
from ..errors import DatabaseError, DatabaseLocked, ScuttleupError, WriteInDoubt
from ..follower import Wake
from ..leveldb import FORKED, Database, open_database
from .link import Link, connect
from .owner import ANSWERS

# The errors that an answer can be, by name.
_RAISED: dict[str, type[Exception]] = {kind.__name__: kind for kind in ANSWERS}
_RAISED |= {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
# The calls after which something may be stored, and those that can take long.
_WRITES = {"append", "extend", "write", "delete", "forget", "remember"}
_SLOW = {"delete", "forget", "remember", "compact"}
_CLOSED = "these logs are closed"
_NESTED = "a call was begun in the middle of another one, for instance by a signal handler"


def wait_for(
    path: str, locked: DatabaseLocked, given: dict[str, Any], create: bool, share: bool, wait: float
) -> Database | SharedStore:
    """The database at `path` as soon as it is free, or before that the store of its owner.

    The database was `locked` just now. With `share` the caller is to be the owner, so the store of
    another owner is no use. For `given` see `SharedStore`. Raises DatabaseLocked after `wait`
    seconds.
    """
    end = monotonic() + wait
    while True:
        try:
            if not share and not locked.here:
                return SharedStore(path, given, max(end - monotonic(), 1))
        except DatabaseLocked as error:  # its places are taken
            locked = error
        except DatabaseError:  # nobody shares it
            pass
        if monotonic() >= end:
            raise locked
        sleep(0.05)
        try:
            return open_database(path, create=create)
        except DatabaseLocked as error:
            locked = error


class SharedStore:
    """The store of the process that has the database at `path` open and shares it.

    `given` are the caller's options. Those that are not the default were given, and must not differ
    from the owner's. The
    owner has to answer within `seconds`, or SHARE_SECONDS if that is less. Raises DatabaseLocked if
    all places are taken, another DatabaseError if nobody shares the database, and ScuttleupError if
    an option differs.
    """

    def __init__(self, path: str, given: dict[str, Any], seconds: float = inf) -> None:
        self.path = path
        self._folder = os.path.realpath(path)
        # Whether `close` was called.
        self.closed = False
        # Held while a question is asked on `_link`.
        self._lock = threading.RLock()
        # Every link of these logs, those of slow calls and of streams included.
        self._links: weakref.WeakSet[Link] = weakref.WeakSet()
        # The options of the owner.
        self._about: dict[str, Any] = {}
        self._link = self._connect(seconds)
        self.id: str = self._about["id"]
        for name, value in given.items():
            default = limits.MAX_ENTRY if name == "max_entry" else None
            is_default = value is None or value is False or value == default
            if not is_default and value != (theirs := self._about.get(name)):
                self._link.end()
                other = "another one" if name == "key" else f"{value!r}"
                raise ScuttleupError(
                    f"{path} is open in another process, which shares it with {name}={theirs!r}: "
                    f"it cannot be used with {other}"
                )

    def _connect(self, seconds: float = inf) -> Link:
        """A new link to the owner. Raises DatabaseError if the owner has ended or is another."""
        try:
            link = connect(self._folder, min(seconds, limits.SHARE_SECONDS))
            about = link.receive()[0]
            self._raise_refusal(link, about)
        except (OSError, ValueError, TypeError) as error:
            raise DatabaseError(f"{self.path}: nobody shares it any more: open it again") from error
        if self._about and self._about != about:
            link.end()
            raise DatabaseError(f"{self.path}: it is shared as another one by now: open it again")
        self._about = about
        self._links.add(link)
        return link

    def _raise_refusal(self, link: Link, value: Any) -> None:
        """Raise the error that `value` stands for, if it does."""
        match value:
            case {"raise": str(kind), "text": str(text), "last": last}:
                if last:
                    text = link.refusal = f"{self.path}: {text}"
                raise _RAISED.get(kind, ScuttleupError)(text)

    def _check(self) -> None:
        """Raise ScuttleupError if these logs were closed, or opened before a fork."""
        if self._link.refusal is FORKED:
            raise ScuttleupError(FORKED)
        if self.closed:
            raise ScuttleupError(_CLOSED)

    def _ask(
        self, link: Link, question: list[Any], entries: Iterable[bytes] = ()
    ) -> tuple[Any, list[bytes]]:
        """Return the owner's answer, or raise the error that the owner has raised."""
        self._check()
        if link.refusal:  # the rest of another answer would be taken for this one
            raise DatabaseError(link.refusal)
        message = link.pack(question, entries)
        try:
            link.sock.settimeout(limits.CALL_SECONDS)
            with suppress(ConnectionError):  # the owner's last word may be there all the same
                link.send(message)
            while question[0] in _SLOW and not link.hears(limits.CALL_SECONDS):
                with suppress(DatabaseLocked):  # all places are taken, so the owner is there
                    self._connect().end()
            value, found = link.receive()
        except BaseException as error:  # a Ctrl-C, too: the answer may still come
            link.refusal = f"{self.path}: the process that has it open does not answer"
            link.end()
            if not isinstance(error, (OSError, ValueError, DatabaseError)):
                raise
            why = _CLOSED if self.closed else link.refusal
            if question[0] in _WRITES:
                raise WriteInDoubt(f"{why}: the write may be stored") from error
            raise (ScuttleupError if self.closed else DatabaseError)(why) from error
        self._raise_refusal(link, value)
        return value, found

    def _call(self, *question: Any, entries: Iterable[bytes] = ()) -> Any:
        """Ask for one of the owner's `CALLS`, and return its value, or else its entry."""
        self._check()  # in a child process, another thread of the parent may hold the lock
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise ScuttleupError(_NESTED)
        if question[0] in _SLOW:
            link = self._connect()
            try:
                value, found = self._ask(link, [*question])
            finally:
                link.end()
        else:
            with self._lock:
                if self._link.refusal:
                    self._link = self._connect()
                value, found = self._ask(self._link, [*question], entries)
        return found[0] if found else value

    @property
    def heads(self) -> dict[str, int]:
        return dict(self._call("heads"))

    def append(self, entry: bytes, sync: bool | None = None) -> int:
        return int(self._call("append", sync, entries=[entry]))

    def extend(self, entries: list[bytes], sync: bool | None = None) -> int:
        return int(self._call("extend", sync, entries=entries))

    def get(self, peer: str, seq: int) -> bytes:
        return bytes(self._call("get", peer, seq))

    def do(self, work: str, *arguments: Any) -> Any:
        """Have the owner do one of its `CALLS`. The runs that `write` stores cross as entries."""
        if work != "write":
            return self._call(work, *arguments)
        runs, sync = arguments
        spans = [[peer, first, len(entries)] for peer, first, entries in runs]
        every = [entry for run in runs for entry in run.entries]
        return self._call(work, sync, spans, entries=every)

    def follow(
        self, since: dict[str, int], *, snapshot: bool, live: bool, wake: Wake
    ) -> SharedFollower:
        self._check()
        link = self._connect()
        self._ask(link, ["follow", since, snapshot, live])
        return SharedFollower(self, link, live, wake)

    def _next(self, link: Link) -> Run | None:
        """The next run of a stream; None at the end of a snapshot, and if there is no news yet."""
        value, entries = self._ask(link, ["next"])
        return Run(value[0], value[1], entries) if value else None

    def close(self) -> None:
        """End all links. Closing it again does nothing."""
        self.closed = True
        for link in list(self._links):
            link.end()


class SharedFollower:
    """A `Follower` whose store is in another process. When it is dropped, its link ends."""

    def __init__(self, store: SharedStore, link: Link, live: bool, wake: Wake) -> None:
        self._store, self._link, self._live = store, link, live
        # Whether `close` was called, or all of a snapshot has come.
        self._closed = False
        # The runs that have come and were not read, and perhaps an error, which stays at the end.
        self._runs: deque[Run | Exception] = deque()
        # How many more runs may come.
        self._room = threading.Semaphore(2)
        runs, room = self._runs, self._room

        def fetch() -> None:
            """Fetch runs until the link ends, for a follower that may be dropped meanwhile."""
            found: Run | Exception | None = None
            while not isinstance(found, Exception):
                room.acquire()
                try:
                    while not (found := store._next(link)):
                        pass
                except Exception as error:
                    # The traceback of the error refers to the link, which would stay open.
                    found = type(error)(*error.args)
                runs.append(found)
                with suppress(Exception):
                    wake()

        if live:
            threading.Thread(target=fetch, daemon=True).start()
        weakref.finalize(self, _end, link, room).atexit = False

    @property
    def closed(self) -> bool:
        """Whether this follower was closed, or the logs were."""
        return self._closed or self._store.closed

    @property
    def idle(self) -> bool:
        """Whether there is nothing to read now."""
        return not self._runs

    def read(self) -> Run | None:
        """The next run of entries, as `Follower.read` returns and raises it."""
        if self._link.refusal is FORKED:
            raise ScuttleupError(FORKED)
        if self._closed or (self._live and (self._store.closed or not self._runs)):
            return None
        if not self._live:
            run = self._store._next(self._link)
            self._closed = run is None
            return run
        first = self._runs[0]
        if isinstance(first, Exception):
            raise type(first)(*first.args)
        self._runs.popleft()
        self._room.release()
        return first

    def close(self) -> None:
        """Give nothing more. Closing it again does nothing."""
        self._closed = True
        _end(self._link, self._room)


def _end(link: Link, room: threading.Semaphore) -> None:
    """End the link of a stream, and wake the thread that fetches, which then ends, too."""
    link.end()
    room.release()
