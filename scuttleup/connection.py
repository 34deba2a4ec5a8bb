"""Run a replication over an asyncio reader and writer."""

from __future__ import annotations

import asyncio
import os
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import plyvel

from .errors import ProtocolError
from .replication import Replicated, ReplicationStream

READ_BYTES = 256 * 1024
# Seconds.
ALIVE = 60  # a remote that gives no handshake, takes nothing or vanished is gone after that
PROMISED = 5  # a one-shot waits so long for more of what it was promised: it may be deleted there
LINGER = 10  # and, after its own end, for the remote's: until then the remote may still read


async def replicate(
    make_stream: Callable[..., ReplicationStream], reader: StreamReader, writer: StreamWriter
) -> Replicated:
    """Replicate until all is exchanged, the remote has left or the log is closed.

    `make_stream` takes `wake`; for what is raised see `Scuttleup.replicate`.
    """
    loop = asyncio.get_running_loop()
    news = asyncio.Event()  # for the sender: look again
    closed: asyncio.Future[None] = loop.create_future()  # done when the log is

    def on_wake() -> None:
        news.set()
        if stream.closed and not closed.done():
            closed.set_result(None)

    try:
        stream = make_stream(wake=partial(loop.call_soon_threadsafe, on_wake))
        _detect_loss(writer)
        await _run(stream, reader, writer, news, closed)
        writer.close()
        # With TLS, which has no end of one side alone, this is when the remote's end comes.
        with suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), LINGER)
    except plyvel.Error:  # which may be an OSError, too
        raise
    except OSError as error:
        raise ProtocolError(f"the connection broke: {error}") from error
    finally:
        writer.transport.abort()
    return stream.replicated


async def _run(
    stream: ReplicationStream,
    reader: StreamReader,
    writer: StreamWriter,
    news: asyncio.Event,
    closed: asyncio.Future[None],
) -> None:
    receiver = asyncio.create_task(_receive(stream, reader, news))
    sender = asyncio.create_task(_send(stream, writer, news))
    watcher = asyncio.create_task(_watch(stream, writer, news, receiver))
    # In this order: what is wrong with the remote comes before what became of it.
    tasks = (receiver, watcher, sender)
    pending: set[asyncio.Future[None]] = {closed, *tasks}
    try:
        while not sender.done() and not closed.done():
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done() and not stream.closed:
                    task.result()
        if writer.can_write_eof() and not stream.closed:
            # A remote that got nothing from us cannot lose it when we close before it has read.
            limit = LINGER if stream.replicated.sent else min(LINGER, 1)
            await asyncio.wait(
                {closed, receiver}, timeout=limit, return_when=asyncio.FIRST_COMPLETED
            )
        if receiver.done() and not stream.closed:
            receiver.result()
    finally:
        for task in tasks:
            task.cancel()
        stream.close()


async def _receive(stream: ReplicationStream, reader: StreamReader, news: asyncio.Event) -> None:
    data = b"-"  # anything but the end
    while data:
        data = await reader.read(READ_BYTES)
        stream.receive_data(data)
        news.set()


async def _send(stream: ReplicationStream, writer: StreamWriter, news: asyncio.Event) -> None:
    while True:
        news.clear()
        if data := stream.data_to_send():
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(0)  # a drain that need not wait does not let others run
        elif stream.finished:
            break
        else:
            await news.wait()
    if _unwritten(writer):  # a limit of 0 stops an idle TLS transport for good
        writer.transport.set_write_buffer_limits(0)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _watch(
    stream: ReplicationStream,
    writer: StreamWriter,
    news: asyncio.Event,
    receiver: asyncio.Task[None],
) -> None:
    """Keep the time limits, all of them, with a look every second or so."""
    now = asyncio.get_running_loop().time
    begun = written = progressed = now()
    progress = 0
    outgoing = (0, 0)
    while True:
        await asyncio.sleep(min(ALIVE, PROMISED) / 5)
        if stream.remote_id is None and now() - begun > ALIVE:
            raise ProtocolError(f"no handshake within {ALIVE} seconds")
        unwritten = _unwritten(writer)
        if not unwritten or outgoing != (stream.replicated.sent, unwritten):
            outgoing, written = (stream.replicated.sent, unwritten), now()
        elif now() - written > ALIVE:
            raise ProtocolError(f"the remote took nothing for {ALIVE} seconds")
        if stream.progress != progress or unwritten or not stream.waiting:
            progress, progressed = stream.progress, now()
        elif now() - progressed > PROMISED:
            stream.stop_waiting()
            news.set()
        if receiver.done():
            # After the remote's end, nothing tells when it leaves for good. An empty frame does.
            if not unwritten:
                writer.write(b"\0")
            sock = writer.get_extra_info("socket")
            if sock is not None and (code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                raise OSError(code, os.strerror(code))
            if writer.transport.is_closing():
                raise ConnectionResetError("the remote is gone")


def _detect_loss(writer: StreamWriter) -> None:
    """Have the kernel find out, within `ALIVE` seconds, that the remote vanished."""
    sock = writer.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", ALIVE // 2),
        ("TCP_KEEPINTVL", ALIVE // 6),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", ALIVE * 1000),  # the same for data that is under way
    ):
        if hasattr(socket, name):  # not every system has all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _unwritten(writer: StreamWriter) -> int:
    try:
        return writer.transport.get_write_buffer_size()
    except AttributeError:  # Python 3.10: its TLS transport, once the connection is lost
        return 0
