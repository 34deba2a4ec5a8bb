"""The side of the process that has the database open.

Theory of operation
-------------------

*Every link has a thread, and does one thing at a time:* the user asks, the owner answers. A user
has a link for calls and a link for each stream. The owner sends nothing without a question. So a
user that does not read has a single answer at most in memory, and only the thread of that link
waits.

*A live stream* that asks for news gets an empty answer after SHARE_LOOK seconds without any, and
asks again. So each side soon notices that the other side has gone.

*Strangers have places of their own.* A link whose other side has not proven itself takes none of
the places for users, and a place for strangers for SHARE_SECONDS at most. If all those places are
taken, the stranger who came first gives way: a user needs such a place for a moment only.

*The end.* `close` removes the file `share` before the database is given up, so nobody removes the
file of the next owner. A call that is being answered is answered. Then every link gets a last word.
A user that gets the last word in place of an answer knows that the question was not read. If the
process ends without `close`, its users see the end of the link, and a write that was asked for may
be stored.
"""

from __future__ import annotations

import atexit
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

from .. import limits
from ..changes import Run
from ..deleting import compact, delete, forget, forgotten, remember
from ..errors import DatabaseError, DatabaseLocked, ScuttleupError
from ..follower import Had
from ..keys import check_peer, check_seq
from ..replication import write
from ..store import Store
from .link import OPEN, OWNER, USER, Link, rub_out, write_down

# The last word on a link.
GOODBYE = "the process that had it open has closed it, or has begun a new log: open it again"
# The errors of a call that are an answer; any other error would be a mistake of ours.
ANSWERS = (ScuttleupError, TypeError, ValueError, OverflowError)


def _write(store: Store, entries: list[bytes], sync: bool | None, spans: list[Any]) -> int:
    rest = iter(entries)
    runs = [
        Run(check_peer(peer), check_seq(first), list(islice(rest, count)))
        for peer, first, count in spans
    ]
    return write(store, runs, sync)


# The calls that a user can ask for. Each gets the entries and the arguments of the question, and
# returns an entry or a value of JSON.
CALLS: dict[str, Callable[..., Any]] = {
    "heads": lambda store, _: store.heads.copy(),
    "append": lambda store, entries, sync: store.append(entries[0], sync),
    "extend": Store.extend,
    "write": _write,
    "get": lambda store, _, peer, seq: store.get(check_peer(peer), check_seq(seq)),
    "delete": lambda store, _, peer, *span: delete(store, check_peer(peer), *map(check_seq, span)),
    "forgotten": lambda store, _: forgotten(store),
    "forget": lambda store, _, peer: forget(store, check_peer(peer)),
    "remember": lambda store, _, peer: remember(store, check_peer(peer)),
    "compact": lambda store, _: compact(store),
}


def _refusal(error: Exception, *, last: bool = False) -> bytes:
    """The message that a user raises as an error. The `last` message ends the link."""
    return Link.pack({"raise": type(error).__name__, "text": str(error), "last": last})


class Share:
    """Lets other processes of this user use `store`, until `close`. Raises OSError."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Why nobody can come in any more; None as long as others can.
        self.refusal: str | None = None
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=limits.MAX_USERS)
        OPEN.add(self)
        # The links that have not proven themselves yet, and the places of those that have.
        self._strangers: OrderedDict[Link, None] = OrderedDict()
        self._places = threading.Semaphore(limits.MAX_USERS)
        # The links in these places, each with a queue that wakes its thread when there is news. Not
        # an Event: a Ctrl-C in the Python code of an Event leaves the Event stuck.
        self._users: dict[Link, SimpleQueue[None]] = {}
        try:
            self._secret = write_down(store.database.folder, self.sock.getsockname()[1])
            threading.Thread(target=self._accept, name="scuttleup share", daemon=True).start()
        except BaseException:
            self.sock.close()
            raise
        # A program may end without closing its logs.
        atexit.register(self.close)

    def _accept(self) -> None:
        """Give each connection a thread, in a thread of its own."""
        while self.refusal is None:
            try:
                link = Link(self.sock.accept()[0])
                self._strangers[link] = None
                if len(self._strangers) > limits.MAX_STRANGERS:
                    self._strangers.popitem(last=False)[0].end()
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()
            except (OSError, RuntimeError):  # no descriptor, no thread: that passes
                time.sleep(0.1)

    def _serve(self, link: Link) -> None:
        """Answer one link until it ends."""
        try:
            link.prove(self._secret, OWNER, USER, limits.SHARE_SECONDS)
            self._strangers.pop(link, None)
            try:
                self._answer(link)
            except ScuttleupError as error:
                link.send(_refusal(error, last=True))
        except OSError:  # the user has left
            pass
        except Exception as error:
            self._store.events.tell("warning", "share", f"a process sent rubbish: {error!r:.300}")
        finally:
            self._strangers.pop(link, None)
            if self._users.pop(link, None):
                self._places.release()
            link.end()

    def _answer(self, link: Link) -> None:
        """Give a user a place, and answer each question. Raises the last word on the link."""
        # A stream that was closed gives back its place a moment later.
        if not self._places.acquire(timeout=2 * limits.SHARE_LOOK):
            raise DatabaseLocked(f"it is shared by {limits.MAX_USERS} links, which is the most")
        self._users[link] = SimpleQueue()
        store, id = self._store, self._store.id
        names = ("max_entry", "only_signed", "sync")
        about = {name: getattr(store, name) for name in names}
        link.send(link.pack({**about, "id": id, "signed": store.is_signed}))
        link.sock.settimeout(None)
        while True:
            (name, *arguments), entries = self._listen(link)
            if store.id != id:  # the numbers would be taken for those of the old log
                raise DatabaseError(GOODBYE)
            if name == "follow":
                return self._feed(link, *arguments)
            try:
                answer = CALLS[name](store, entries, *arguments)
            except ANSWERS as error:
                link.send(_refusal(error))
            else:
                is_entry = isinstance(answer, bytes)
                link.send(link.pack(None, [answer]) if is_entry else link.pack(answer))

    def _feed(self, link: Link, since: dict[str, int], snapshot: bool, live: bool) -> None:
        """Give a run of entries each time that the user asks for the next."""
        news = self._users[link]
        follower = self._store.follow(
            Had(since), snapshot=snapshot, live=live, wake=partial(news.put, None)
        )
        link.send(link.pack([]))
        while self._listen(link)[0] == ["next"]:
            run = follower.read()
            if run is None and live:
                with suppress(Empty):
                    news.get(timeout=limits.SHARE_LOOK)
                run = follower.read()
            link.send(link.pack([run.peer, run.first], run.entries) if run else link.pack([]))

    def _listen(self, link: Link) -> tuple[Any, list[bytes]]:
        """The next question of a user."""
        with suppress(OSError):
            question = link.receive()
            if self.refusal is None:
                return question
        raise DatabaseError(GOODBYE)

    def close(self) -> None:
        """Take no further question, and say goodbye. Closing it again does nothing."""
        if self.refusal is not None:
            return
        self.refusal = "closed"
        atexit.unregister(self.close)
        rub_out(self._store.database.folder, self._secret)
        # Only a connection wakes `accept` on every system.
        with suppress(OSError):
            socket.create_connection(self.sock.getsockname(), 1).close()
        self.sock.close()
        for link, news in list(self._users.items()):
            link.end(socket.SHUT_RD)
            news.put(None)
        # Let each say its last word. But whoever closes the logs in the middle of a write, as a
        # signal handler may, would wait for itself.
        end = time.monotonic() + 1
        locks = self._store.database.writes, self._store.database.reads
        while self._users and time.monotonic() < end:
            if any(lock._is_owned() for lock in locks):  # type: ignore[attr-defined]
                return
            time.sleep(0.001)
