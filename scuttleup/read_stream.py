"""Iterate over the logs, and follow them, from a thread or from asyncio.

Theory of operation
-------------------

A `ReadStream` joins two parts. The `Follower` knows which entries the reader has not had yet, and
reads a run at a time. The `_Alarm` puts the reader to sleep when there is nothing to read, and
wakes the reader. In between stands an iterator over the changes of the run that was read last.

*Nothing is slept through.* A reader that finds nothing first arms the alarm and then looks once
more, and only then sleeps. The look sees every entry that was stored before, and every later entry
rings the alarm. `close` works in the same way: first a flag is set, then the alarm rings.

*A stream that is dropped is gone.* The store knows the follower, by a weak reference, and the
follower knows the alarm. Neither of them knows the stream. So a stream that nobody holds any more
is freed at once, and then costs a write nothing.

*Threads and tasks.* The same stream serves `for` and `async for`. A read takes about 1 ms and
happens in the thread of the reader, the event loop's thread included, so `__anext__` lets other
tasks run after each read.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial

from .changes import Change, expand
from .encodings import Encoding
from .follower import Had
from .signed import is_signed, strip
from .store import Store


class ReadStream(Iterator[Change], AsyncIterator[Change]):
    """Changes in order: a snapshot, by peer id and number; then, live, all that is stored later.

    Use `for`, `async for` or both, one reader at a time. `close()`, from any thread or task, ends
    the stream, even while its reader waits. The end of its `with` block ends the stream, too, and
    so does dropping the stream.

    An entry that cannot be decoded raises ValueError in its place; iterate again to go on after
    that entry. When the logs are closed, a live stream ends. A snapshot that was not read to its
    end then raises ScuttleupError, and so does every stream in a child process. A database that
    cannot be read raises DatabaseError. So a loop that simply ends has seen everything.

    >>> with logs.create_read_stream(live=True) as stream:
    ...     for change in stream:
    ...         print(change)
    """

    def __init__(
        self, store: Store, encoding: Encoding, *, had: Had, live: bool, tail: bool, raw: bool
    ) -> None:
        self._encoding = encoding
        self._raw = raw
        # Whether to wait for more when all has been read.
        self._live = live or tail
        # Neither the alarm nor the follower knows this stream: see above.
        self._alarm = _Alarm()
        self._follower = store.follow(
            had, snapshot=not tail, live=self._live, wake=self._alarm.ring
        )
        # The changes of the last run that were not returned yet.
        self._changes: Iterator[Change] = iter(())
        # Whether `close` was called on this stream. The follower knows of the logs, too.
        self._closed = False

    def __iter__(self) -> Iterator[Change]:
        # A generator is twice as fast as a call of `__next__` for every change.
        while not self._closed:
            for change in self._changes:
                yield change
                if self._closed:
                    return
            if not self._read():
                if not self._live or self._follower.closed:
                    return
                self._alarm.wait(self._nothing_new)

    def __next__(self) -> Change:
        """The next change; StopIteration at the end. A live stream waits."""
        for change in self:
            return change
        raise StopIteration

    def __aiter__(self) -> ReadStream:
        return self

    async def __anext__(self) -> Change:
        """The next change; StopAsyncIteration at the end. A live stream waits."""
        # Imported here and below, as a program that only uses threads needs no asyncio.
        import asyncio

        while not self._closed:
            for change in self._changes:
                return change
            if self._read():
                # Now other tasks have their turn.
                await asyncio.sleep(0)
            elif self._live and not self._follower.closed:
                await self._alarm.wait_async(self._nothing_new)
            else:
                break
        raise StopAsyncIteration

    def _read(self) -> bool:
        """Read the next run into `_changes`; False when there is nothing now, and after the end."""
        run = self._follower.read()
        if run is None:
            return False
        peer, first, entries = run
        decoded: Iterable[object] = entries
        if not self._raw:
            stripped = map(strip, entries) if is_signed(peer) else entries
            decoded = self._encoding.decode_all(peer, first, stripped)
        self._changes = expand(peer, first, decoded)
        return True

    def _nothing_new(self) -> bool:
        """Whether the reader may go to sleep: nothing is there and nothing has ended."""
        return self._follower.idle and not self._follower.closed

    def close(self) -> None:
        """End the stream. A second call does nothing."""
        self._closed = True
        self._follower.close()

    def __enter__(self) -> ReadStream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Alarm:
    """Wakes the reader that sleeps, a thread or a task.

    Both ways of waiting make sure first that a ring wakes them. Only then they look, with `idle`,
    whether they may sleep. So a ring after the look is not lost. A ring before the look may also
    wake a thread, which finds nothing to read and waits again.
    """

    def __init__(self) -> None:
        # This lock is held while nothing has rung. Not an Event: a Ctrl-C in the Python code of an
        # Event leaves the Event stuck.
        self._silence = threading.Lock()
        self._silence.acquire()
        # Wakes the task that waits, as long as there is such a task.
        self._wake_task: Callable[[], object] | None = None

    def ring(self) -> None:
        """Wake the reader, from any thread. Ringing twice is like ringing once."""
        with suppress(RuntimeError):
            # A RuntimeError says that the lock is free, so the alarm has rung already.
            self._silence.release()
        if wake_task := self._wake_task:
            wake_task()

    def wait(self, idle: Callable[[], bool]) -> None:
        """Sleep until the next ring, in a thread, unless `idle` says that there is something."""
        if idle():
            self._silence.acquire()

    async def wait_async(self, idle: Callable[[], bool]) -> None:
        """Sleep until the next ring, in a task, unless `idle` says that there is something."""
        import asyncio

        event = asyncio.Event()
        self._wake_task = partial(asyncio.get_running_loop().call_soon_threadsafe, event.set)
        try:
            if idle():
                await event.wait()
        finally:
            self._wake_task = None
