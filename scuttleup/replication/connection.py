"""Run a replication over an asyncio reader and writer.

Theory of operation
-------------------

`protocol.py` decides which bytes are sent and what becomes of the bytes that come. This file moves
the bytes, shares the time, and closes the connection. A `_Connection` has all that is remembered.

*Three share one `ReplicationStream`.*

    receiver    a task: reads, and hands over what came
    sender      a task: writes what the stream has for the remote, waits until the transport has
                room for more, and sleeps when there is nothing, until the stream has news
    `run`       waits for the two, tells the stream the time now and then, and looks whether the
                remote still takes what we send

They run in one thread and never wait in the middle of a call of the stream, so the stream needs no
lock.

*All connections of an event loop share its time* with everything else that runs there. Neither a
read of bytes that are there already nor a write that need not wait lets others run. So work is done
in turns (see `limits`), and before each turn a task asks whether it may begin. A turn begins only
if the turns of all connections in the same round of the loop have taken less than ROUND seconds so
far. Else the task waits for the next round. Those that have waited longest come first.

*A replication is over* when the sender has sent all and nothing is waited for, when the logs are
closed, or with the first error. Then both tasks are cancelled, and `replicate` returns or raises
when they have ended.

*How it ends.* When all is sent we end our side and keep reading for as long as the remote takes
something, and for LINGER seconds more. If we closed with something unread, the kernel would reset
the connection, and the remote could lose bytes that it had not read (RFC 1122, 4.2.2.13).

*Bytes count as taken by the remote* when they have left the kernel, too, where the system tells.
The kernel holds some megabytes, and with a slow link these are all there is.

*The transports differ.* TLS and some others cannot end one side alone. A pipe is closed when its
other end is, and no longer knows its event loop then. A pipe that was opened by hand cannot tell
when it is closed. On Windows none of a write counts as taken until all of it is, so writes are
small, and handing bytes over counts as progress.

*A read or a write that breaks is a `ConnectionLost`.* The operating system's own error differs
between systems and transports; uvloop has a RuntimeError for a transport that its own program has
aborted. Errors of the database come from elsewhere and pass unchanged.

*No task does anything before its first wait.* Where a program has tasks begin at once (eager ones),
all would otherwise go in another order than anywhere else.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from asyncio import StreamReader, StreamWriter
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import ClassVar
from weakref import WeakKeyDictionary

from .. import limits
from ..errors import ConnectionLost, ProtocolError
from .protocol import Replicated, ReplicationStream, Standstill

# The option of macOS that tells how much a socket still holds. Python has no name for that.
_SO_NWRITE = 0x1024


async def replicate(
    make_stream: Callable[..., ReplicationStream], reader: StreamReader, writer: StreamWriter
) -> Replicated:
    """Replicate until all is exchanged, the remote has left, or the logs are closed.

    `make_stream` is called with `wake` and returns the stream to run. `writer` is closed at the end
    in any case. Returns what was sent, received and left out. For the errors see
    `Scuttleup.replicate`.
    """
    tls = writer.get_extra_info("sslcontext") is not None
    try:
        connection = _Connection(make_stream, reader, writer)
        try:
            _detect_loss(writer)
            await connection.run()
        except ProtocolError:
            await connection.say_last_words()
            raise
        finally:
            connection.stream.close()
        await connection.leave()
        return connection.stream.replicated
    finally:
        # Drop the connection at once, unless the transport is closing and has nothing left to send.
        # A pipe that was closed no longer knows its event loop, nor does a socket that had
        # something left then. To abort these is an AttributeError. TLS would wait for the remote
        # when it closes.
        if tls or not writer.transport.is_closing() or _unsent(writer):
            writer.transport.abort()


class _Round:
    """One round of an event loop, and how much of it all connections have used.

    Each event loop has one round at a time, which is dropped with the loop.
    """

    _all: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, _Round]] = WeakKeyDictionary()

    # Nothing in here may refer to the loop, which is the key in `_all`: it would never be freed.

    def __init__(self) -> None:
        # When the first turn of this round began; None if there was none yet.
        self._begun: float | None = None
        # A ticket for each task that waits for its turn, in the order in which they came.
        self._waiting: deque[object] = deque()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _Round:
        """The round that all connections on `loop` share."""
        return cls._all.setdefault(loop, cls())

    async def turn(self) -> None:
        """Wait for the next turn of work, first come, first served."""
        if not self._waiting and self._has_time():
            return
        ticket = object()
        self._waiting.append(ticket)
        try:
            while True:
                await asyncio.sleep(0)
                if self._waiting[0] is ticket and self._has_time():
                    return
        finally:
            # This is quick, because the ticket is mostly the first.
            self._waiting.remove(ticket)

    def _has_time(self) -> bool:
        """Whether another turn may begin in this round."""
        loop = asyncio.get_running_loop()
        if self._begun is None:
            self._begun = loop.time()
            loop.call_soon(self._end)  # in the next round
            return True
        return loop.time() - self._begun < limits.ROUND

    def _end(self) -> None:
        self._begun = None


class _Connection:
    """One connection, while it is replicated."""

    def __init__(
        self,
        make_stream: Callable[..., ReplicationStream],
        reader: StreamReader,
        writer: StreamWriter,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._reader = reader
        self._writer = writer
        # How many bytes were handed to the transport, and how many more to find out whether the
        # remote is still there.
        self._written = self._probes = 0
        # For how long the remote has taken nothing.
        self._taking = Standstill()
        # Whether we have ended our side.
        self._ended = False
        # Set when the sender is to look again.
        self._news = asyncio.Event()
        # Set when `run` is to look again: a task has ended, or a pause is over.
        self._look = asyncio.Event()
        # When a live stream is to report; None while it has nothing to report.
        self._timer: asyncio.TimerHandle | None = None
        # The receiver and the sender, while they run.
        self._tasks: list[asyncio.Task[None]] = []
        self._round = _Round.of(loop)
        # The stream calls `wake` from any thread, so the call goes by way of the loop.
        self.stream = make_stream(wake=partial(loop.call_soon_threadsafe, self._wake))
        self.stream.hold_reports = True

    def _wake(self) -> None:
        """Look again whether there is something to send, and whether the logs were closed."""
        self._news.set()
        if self.stream.dropped:
            self._look.set()
        if self.stream.closed:
            self._stop()

    def _report(self) -> None:
        """Send the report that has waited."""
        self._timer, self.stream.hold_reports = None, False
        self._news.set()

    def _stop(self) -> None:
        if self._timer:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    async def run(self) -> None:
        """Exchange all that there is, and end our side. Raises the first error that there is."""
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._send())]
        for task in self._tasks:
            task.add_done_callback(lambda _: self._look.set())
        try:
            while not self._tasks[1].done():
                await self._pause(self._watch(self._tasks[0].done()))
                self._raise_error()
            if self._writer.can_write_eof():
                # A remote that got nothing from us can lose nothing by an early close.
                limit = limits.LINGER if self.stream.replicated.sent else min(limits.LINGER, 1)
                await self._while_taken(self._tasks[0], limit)
                self._raise_error()
        finally:
            self._stop()
            try:
                await asyncio.gather(*self._tasks, return_exceptions=True)
            finally:
                # A task keeps its error, and the error's traceback keeps this frame. Without this
                # they would keep each other, and all that belongs to the connection, until the
                # garbage collector comes.
                self._tasks = []

    async def _pause(self, seconds: float) -> None:
        """Wait until a task has ended, and not longer than that."""
        # This does the same as `asyncio.wait`. From Python 3.14 on, `asyncio.wait` refers to the
        # task that waits, and so would an error, which that task refers to.
        timer = asyncio.get_running_loop().call_later(seconds, self._look.set)
        try:
            await self._look.wait()
        finally:
            timer.cancel()
            self._look.clear()

    async def _while_taken(self, task: asyncio.Task[None], limit: float) -> None:
        """Wait for `task` as long as the remote takes something, and `limit` seconds more."""
        still, now = Standstill(), asyncio.get_running_loop().time
        task.add_done_callback(lambda _: self._look.set())
        while not task.done() and still.measure(_untaken(self._writer), now()) < limit:
            await self._pause(limit / 5)

    async def leave(self) -> None:
        """Close the connection, once the remote has taken all, or takes nothing any more."""
        closing = asyncio.create_task(_close(self._writer))
        try:
            await self._while_taken(closing, limits.LINGER)
        finally:
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)

    async def say_last_words(self) -> None:
        """Tell a remote that reports, and is in error, what became of the changes before that."""
        if not (words := self.stream.last_words) or self._writer.transport.is_closing():
            return
        # Bytes that are unread when we close would reset the connection, see above.
        reading = asyncio.create_task(self._read_on())
        try:
            self._writer.write(words)
            if self._writer.can_write_eof():
                self._writer.write_eof()
                await self._while_taken(reading, 1)
        except (OSError, RuntimeError):  # it has left
            pass
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read_on(self) -> None:
        """Read on and drop all that the remote still sends."""
        while await self._reader.read(limits.TURN_BYTES):
            await self._round.turn()

    def _raise_error(self) -> None:
        """Raise the error of a task, if there is any. A mistake of the remote comes first.

        Once the logs are closed, nothing is an error, as all breaks because we have ended.
        """
        if not self.stream.closed and self._tasks[0].done():
            self._tasks[0].result()
        if not self.stream.closed and self._tasks[1].done():
            self._tasks[1].result()

    async def _receive(self) -> None:
        """Hand over the bytes that come, until the remote ends its side."""
        await asyncio.sleep(0)
        # This only has to differ from b"", which is the end.
        data = b"-"
        while data:
            with _connection_errors(self._writer):
                data = await self._reader.read(limits.TURN_BYTES)
            await self._round.turn()
            self.stream.receive_data(data)
            self._news.set()

    async def _send(self) -> None:
        """Send until the stream is finished, and end our side."""
        await asyncio.sleep(0)
        stream, writer = self.stream, self._writer
        while True:
            await self._round.turn()
            # This comes before the look. So news that arrive during the look are seen the next
            # time.
            self._news.clear()
            data = stream.data_to_send()
            stream.hold_reports = True
            if not self._timer and stream.holds_report:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(limits.REPORT, self._report)
            if data:
                with _connection_errors(writer):
                    writer.write(data)
                    self._written += len(data)
                    await writer.drain()
                # With TLS, a drain that need not wait does not notice that the connection is lost.
                await asyncio.sleep(0)
            elif stream.finished:
                break
            else:
                await self._news.wait()
        with _connection_errors(writer):
            await _flush(writer)
            if writer.can_write_eof():
                self._ended = True
                # A remote that has ended its side may be gone, with our last report unread.
                with suppress(OSError) if self._needs_no_more() else nullcontext():
                    writer.write_eof()

    def _needs_no_more(self) -> bool:
        """Whether the remote, which reports, has ended its side, and we need not send any more."""
        return self._tasks[0].done() and self.stream.reports is True and self.stream.finished

    def _watch(self, remote_ended: bool) -> float:
        """Keep the time limits, and return after how many seconds to look again.

        Raises ConnectionLost if the remote is gone, and ProtocolError.
        """
        now = asyncio.get_running_loop().time()
        untaken = _untaken(self._writer)
        pause = self.stream.tick(now, unsent=untaken > 0)
        if self.stream.finished:
            self._news.set()
        # Progress is when we hand over something, and when the remote takes something. While the
        # remote has taken all, nothing is waited for.
        mark = (self._written, untaken - self._probes) if untaken else now
        if self._taking.measure(mark, now) > limits.ALIVE:
            raise ConnectionLost(f"the remote took nothing for {limits.ALIVE} seconds")
        # When the receiver has ended, nothing tells us that the remote is gone, so look every
        # second.
        if remote_ended:
            self._look_for_remote()
            return min(pause, 1)
        return pause

    def _look_for_remote(self) -> None:
        """Raise ConnectionLost if the remote, which has ended its side, has left for good."""
        if self._needs_no_more():
            return
        # Nothing tells us that the remote has left unless we send something. A frame that says
        # nothing will do.
        with _connection_errors(self._writer):
            if not (_unsent(self._writer) or self._ended) and self.stream.between_frames:
                self._writer.write(b"\0")
                self._probes += 1
            if self._writer.transport.is_closing():
                raise ConnectionResetError("the remote is gone")


@contextmanager
def _connection_errors(writer: StreamWriter) -> Iterator[None]:
    """Turn an error that says that the connection broke into a ConnectionLost."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not writer.transport.is_closing():
            raise
        # asyncio's reader keeps the error. With a traceback the error would keep our frames, which
        # keep the reader.
        raise ConnectionLost(f"the connection broke: {error}") from error.with_traceback(None)


async def _close(writer: StreamWriter) -> None:
    """Send all that the transport still has, and close the connection."""
    # A pipe that was opened by hand cannot be waited for, which is a NotImplementedError.
    with suppress(OSError, NotImplementedError):
        await _flush(writer)
        writer.close()
        # With TLS, which has no end of one side alone, this is when the remote's end comes.
        await writer.wait_closed()


async def _flush(writer: StreamWriter) -> None:
    """Wait until the transport has handed everything to the operating system."""
    # If nothing is unsent, a limit of 0 would stop a TLS transport for good.
    if _unsent(writer):
        writer.transport.set_write_buffer_limits(0)
        await writer.drain()


def _unsent(writer: StreamWriter) -> int:
    """How many bytes the transport still holds."""
    try:
        return writer.transport.get_write_buffer_size()
    except AttributeError:
        # A TLS transport that is closed no longer knows.
        return 0


def _untaken(writer: StreamWriter) -> int:
    """How many bytes the remote has not taken: those in the transport, and those in the kernel.

    Those in the kernel are not known of a pipe, nor on Windows.
    """
    unsent = _unsent(writer)
    # A socket may be closed, or there is none. TLS that is closed no longer knows.
    with suppress(ImportError, AttributeError, OSError, ValueError):
        sock = writer.get_extra_info("socket")
        if sys.platform == "darwin":
            return unsent + int(sock.getsockopt(socket.SOL_SOCKET, _SO_NWRITE))
        from fcntl import ioctl
        from termios import TIOCOUTQ

        unsent += int.from_bytes(ioctl(sock.fileno(), TIOCOUTQ, bytes(4)), sys.byteorder)
    return unsent


def _detect_loss(writer: StreamWriter) -> None:
    """Have the kernel find out, within ALIVE seconds, that the remote has vanished.

    After half of that time without a sign of life the kernel asks, three times, and then gives up.
    See tcp(7) of Linux for the options.
    """
    sock = writer.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for level, name, value in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", limits.ALIVE // 2),
        # The name on macOS.
        (socket.IPPROTO_TCP, "TCP_KEEPALIVE", limits.ALIVE // 2),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", limits.ALIVE // 6),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
        # The same for data that is under way, in milliseconds; on Linux only.
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", limits.ALIVE * 1000),
    ):
        # Not every system has all of these, and some systems refuse an option. `tick` does without.
        if hasattr(socket, name):
            with suppress(OSError):
                sock.setsockopt(level, getattr(socket, name), int(value))
