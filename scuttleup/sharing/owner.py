"""The side of the process that has the database open.

Theory of operation
-------------------

*Every link has a thread, and does one thing at a time:* the user asks, the owner answers. A user
has one link for its calls and one for each of its streams. The owner never sends what was not asked
for. So a user that does not read has one answer at most in memory, and nobody waits for it but its
own thread.

*Strangers have places of their own.* A link whose other side has not proven itself takes none of
the places for users, and none for longer than SHARE_SECONDS. If all are taken, the one who has been
silent for longest gives way: a user needs his place for a moment only.

*The end.* `close` removes the file `share` before the database is given up, so nobody removes that
of the next owner. A call that is being answered is answered. Every link gets a last word; whoever
gets it in place of an answer knows that the question was not read. If the process ends without
`close`, its users see the end of the link, and a write that was asked for may be stored.
"""

from __future__ import annotations

import atexit
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

from .. import limits
from ..changes import Run
from ..errors import DatabaseLocked, ScuttleupError
from ..keys import check_peer, check_seq
from ..replication import Door, forget, remember
from ..store import Store
from .link import OWNER, USER, Link, closed_after_fork, rub_out, write_down

# The last word on a link.
GOODBYE = "the process that had it open has closed it, or has begun a new log: open it again"
# What a call may raise that is an answer; anything else would be a mistake of ours.
ANSWERS = (ScuttleupError, TypeError, ValueError, OverflowError)

Answer = tuple[Any, list[bytes]]


def _write(store: Store, entries: list[bytes], sync: bool | None, spans: list[Any]) -> Answer:
    rest = iter(entries)
    runs = [
        Run(check_peer(peer), check_seq(first), list(islice(rest, count)))
        for peer, first, count in spans
    ]
    return Door(store).write(runs, sync), []


def _remember(store: Store, peer: str) -> Answer:
    remember(store, check_peer(peer))
    return None, []


# What a user can ask for: the name of the call, and what answers it.
CALLS: dict[str, Callable[..., Answer]] = {
    "heads": lambda store, entries: (store.heads.copy(), []),
    "append": lambda store, entries, sync: (store.append(entries[0], sync), []),
    "extend": lambda store, entries, sync: (store.extend(entries, sync), []),
    "write": _write,
    "get": lambda store, entries, peer, seq: (0, [store.get(check_peer(peer), check_seq(seq))]),
    "delete": lambda store, entries, peer, first, last: (
        store.delete(check_peer(peer), check_seq(first), check_seq(last)),
        [],
    ),
    "forgotten": lambda store, entries: (sorted(store.forgotten), []),
    "forget": lambda store, entries, peer: (forget(store, check_peer(peer)), []),
    "remember": lambda store, entries, peer: _remember(store, peer),
    "compact": lambda store, entries: (store.compact(), []),
}


def _end_silence(silence: threading.Lock) -> None:
    """Wake the thread that waits for `silence`. Twice is like once, as for an `_Alarm`."""
    with suppress(RuntimeError):
        silence.release()


class Share:
    """Lets other processes of this user use `store`, until `close`. Raises OSError."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Why nobody can come in any more; None as long as others can.
        self.refusal: str | None = None
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=limits.MAX_USERS)
        closed_after_fork(self)
        # The links that have proven themselves, each with the lock that its thread waits for while
        # there is no news, and those that have not yet.
        self._users: dict[Link, threading.Lock] = {}
        self._strangers: dict[Link, None] = {}
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
                sock = self.sock.accept()[0]
                link = Link(sock, limits.SHARE_SECONDS)
                if len(strangers := list(self._strangers)) >= limits.MAX_STRANGERS:
                    self._strangers.pop(strangers[0], None)
                    strangers[0].end()
                del strangers  # a link is closed when nobody holds it
                self._strangers[link] = None
                threading.Thread(target=self._serve, args=(link,), daemon=True).start()
            except (OSError, RuntimeError):  # no descriptor, no thread: that passes
                time.sleep(0.1)

    def _serve(self, link: Link) -> None:
        """Answer one link until it ends."""
        try:
            link.prove(self._secret, OWNER, USER)
            self._strangers.pop(link, None)
            # Some of them may be about to leave: see `_feed`.
            end = time.monotonic() + 2 * limits.SHARE_LOOK
            while (is_full := len(self._users) >= limits.MAX_USERS) and time.monotonic() < end:
                time.sleep(0.01)
            if is_full:
                full = f"is shared by {limits.MAX_USERS} links, which is the most"
                return link.send(link.pack([DatabaseLocked.__name__, full]))
            self._users[link] = silence = threading.Lock()
            store, id = self._store, self._store.id
            link.send(link.pack([id, store.max_entry, store.only_signed, store.sync]))
            link.sock.settimeout(None)
            while self.refusal is None:
                (name, *arguments), entries = link.receive()
                if store.id != id:  # its numbers would be taken for those of the old log
                    return link.send(link.pack(["DatabaseError", GOODBYE]))
                if name == "follow":
                    return self._feed(link, silence, *arguments)
                try:
                    answer = CALLS[name](store, entries, *arguments)
                except ANSWERS as error:
                    answer = [type(error).__name__, str(error)], []
                link.send(link.pack(*answer))
        except OSError:  # it has left
            pass
        except Exception as error:
            self._store.events.tell("warning", "share", f"a process sent rubbish: {error!r:.300}")
        finally:
            self._strangers.pop(link, None)
            if link in self._users and self.refusal is not None:
                with suppress(OSError):
                    link.send(link.pack(["DatabaseError", GOODBYE]))
            self._users.pop(link, None)
            link.end()

    def _feed(
        self, link: Link, silence: threading.Lock, since: dict[str, int], snapshot: bool, live: bool
    ) -> None:
        """Give one run of entries each time that the user asks for the next one."""
        wake = partial(_end_silence, silence)
        try:
            follower = self._store.follow(
                since, snapshot=snapshot, live=live, wake=wake, in_order=True
            )
            link.send(link.pack([]))
            while link.receive()[0] == ["next"]:
                while not (run := follower.read()) and live and self.refusal is None:
                    silence.acquire(timeout=limits.SHARE_LOOK)
                    if link.hears():
                        return
                if run is None and live:
                    return  # the logs are being closed
                link.send(link.pack([run.peer, run.first], run.entries) if run else link.pack([]))
        except ScuttleupError as error:
            link.send(link.pack([type(error).__name__, str(error)]))

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
        for link, silence in list(self._users.items()):
            link.end(socket.SHUT_RD)
            _end_silence(silence)
        # Let each say its last word. But whoever closes the logs in the middle of a write, as a
        # signal handler may, would wait for itself.
        end = time.monotonic() + 1
        locks = self._store.database.writes, self._store.database.reads
        while self._users and time.monotonic() < end:
            if any(lock._is_owned() for lock in locks):  # type: ignore[attr-defined]
                return
            time.sleep(0.001)
