"""Iterate over the logs, and follow them, from a thread or from asyncio."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial

from .changes import Change, expand
from .encodings import Encoding
from .signing import is_signed, strip
from .store import Store


class ReadStream(Iterator[Change], AsyncIterator[Change]):
    """Changes in order: a snapshot, by peer id and number; then, live, whatever is stored.

    Use `for`, `async for` or both, one reader at a time. `close()`, from any thread or task, ends
    the stream, also while its reader waits; so does leaving its `with` block, and so does
    dropping it.

    An entry that cannot be decoded is a ValueError in its place; iterate again to go on after it.
    When the logs are closed, a live stream ends, too. A snapshot that has not been read to its end
    then raises ScuttleupError, as does every stream in a child process, and a database that cannot
    be read raises DatabaseError: a loop that just ends has seen everything.
    """

    def __init__(
        self, store: Store, encoding: Encoding, *, since: dict[str, int], live: bool, tail: bool
    ) -> None:
        self._encoding = encoding
        self._live = live or tail
        # The store knows the follower and the follower the alarm, neither knows us: a stream that
        # is dropped is gone at once.
        self._alarm = _Alarm()
        self._follower = store.follow(
            since, snapshot=not tail, live=self._live, wake=self._alarm.ring, in_order=True
        )
        self._changes: Iterator[Change] = iter(())  # read, and not yet returned
        self._closed = False

    def __iter__(self) -> Iterator[Change]:
        # A generator, since that is twice as fast as a call of __next__ for every change.
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
        for change in self:
            return change
        raise StopIteration

    def __aiter__(self) -> ReadStream:
        return self

    async def __anext__(self) -> Change:
        import asyncio  # only here and below: a program that only uses threads need not load it

        while not self._closed:
            for change in self._changes:
                return change
            if self._read():
                await asyncio.sleep(0)  # a read takes about 1 ms: now it is the others' turn
            elif self._live and not self._follower.closed:
                await self._alarm.wait_async(self._nothing_new)
            else:
                break
        raise StopAsyncIteration

    def _read(self) -> bool:
        run = self._follower.read()
        if run is None:
            return False
        peer, first, entries = run
        if is_signed(peer):
            entries = list(map(strip, entries))
        self._changes = expand(peer, first, self._encoding.decode_all(peer, first, entries))
        return True

    def _nothing_new(self) -> bool:
        return self._follower.idle and not self._follower.closed

    def close(self) -> None:
        """End the stream. Closing it again does nothing."""
        self._closed = True
        self._follower.close()

    def __enter__(self) -> ReadStream:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Alarm:
    """Wakes the reader that sleeps, be it a thread or a task."""

    def __init__(self) -> None:
        # Held while nothing has rung. Not an Event: a Ctrl-C in its Python code leaves it stuck.
        self._silence = threading.Lock()
        self._silence.acquire()
        self._wake_task: Callable[[], object] | None = None

    def ring(self) -> None:
        with suppress(RuntimeError):  # it has rung already
            self._silence.release()
        if wake_task := self._wake_task:
            wake_task()

    # Both first get ready to be woken and then look: what comes after the look wakes them.

    def wait(self, idle: Callable[[], bool]) -> None:
        self._silence.acquire(blocking=False)
        if idle():
            self._silence.acquire()

    async def wait_async(self, idle: Callable[[], bool]) -> None:
        import asyncio

        event = asyncio.Event()
        self._wake_task = partial(asyncio.get_running_loop().call_soon_threadsafe, event.set)
        try:
            if idle():
                await event.wait()
        finally:
            self._wake_task = None
