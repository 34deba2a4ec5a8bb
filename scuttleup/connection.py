"""Run a replication over an asyncio reader and writer."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from contextlib import suppress

import plyvel

from .changes import Change
from .errors import ProtocolError
from .replication import Replicated, ReplicationStream
from .store import Store

READ_BYTES = 256 * 1024
# Seconds.
ALIVE = 60  # without a sign of life, or taking anything, or a handshake: the remote is gone
PROMISED = 5  # without a byte of what was promised to us, one-shot: it was deleted over there
LINGER = 1  # for the remote's end, after ours: who closes with bytes unread resets the connection


async def replicate(
    store: Store,
    reader: StreamReader,
    writer: StreamWriter,
    *,
    mode: str,
    live: bool,
    verify: Callable[[Change], bool] | None,
    max_frame: int,
) -> Replicated:
    """Replicate until one side is over, then close `writer`; see `Scuttleup.replicate`."""
    loop = asyncio.get_running_loop()
    loop_thread = threading.get_ident()
    news = asyncio.Event()  # for the sender: look again

    def wake() -> None:
        if threading.get_ident() == loop_thread:
            news.set()
        else:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(news.set)

    try:
        stream = ReplicationStream(
            store, mode=mode, live=live, verify=verify, max_frame=max_frame, wake=wake
        )
        _detect_loss(writer)
        return await _run(stream, reader, writer, news)
    except plyvel.Error:  # which may be an OSError, too
        raise
    except OSError as error:
        raise ProtocolError(f"the connection broke: {error}") from error
    finally:
        await _close(writer)


async def _run(
    stream: ReplicationStream, reader: StreamReader, writer: StreamWriter, news: asyncio.Event
) -> Replicated:
    receiver = asyncio.create_task(_receive(stream, reader, news))
    sender = asyncio.create_task(_send(stream, writer, news, receiver))
    try:
        await asyncio.wait({receiver, sender}, return_when=asyncio.FIRST_COMPLETED)
        if receiver.done():
            receiver.result()  # first: what is wrong with the remote, not what became of it
        await sender
        await asyncio.wait({receiver}, timeout=LINGER)
        if receiver.done():
            receiver.result()
        return stream.replicated
    finally:
        receiver.cancel()
        sender.cancel()
        await asyncio.gather(receiver, sender, return_exceptions=True)
        stream.close()


async def _receive(stream: ReplicationStream, reader: StreamReader, news: asyncio.Event) -> None:
    data = b"-"
    while data:
        data = await reader.read(READ_BYTES)
        stream.receive_data(data)
        news.set()


async def _send(
    stream: ReplicationStream,
    writer: StreamWriter,
    news: asyncio.Event,
    receiver: asyncio.Task[None],
) -> None:
    while not stream.finished:
        if data := stream.data_to_send():
            writer.write(data)
            await _drain(writer)
            await asyncio.sleep(0)  # a drain that need not wait does not let others run
        elif stream.remote_id is None:
            if not await _within(ALIVE, news):
                raise ProtocolError(f"no handshake within {ALIVE} seconds")
        elif stream.waiting:
            if not await _within(PROMISED, news):
                stream.stop_waiting()
        elif receiver.done():
            if not await _within(ALIVE / 4, news):
                _check_loss(writer)
        else:
            await news.wait()
        news.clear()
    writer.transport.set_write_buffer_limits(0)
    await _drain(writer)
    if writer.can_write_eof():
        writer.write_eof()


async def _within(seconds: float, news: asyncio.Event) -> bool:
    # A twentieth of what asyncio.wait_for takes, which makes a task of it.
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    timer = loop.call_at(deadline, news.set)
    try:
        await news.wait()
    finally:
        timer.cancel()
    return loop.time() < deadline


async def _drain(writer: StreamWriter) -> None:
    if writer.transport.get_write_buffer_size():
        try:
            await asyncio.wait_for(writer.drain(), ALIVE)
        except asyncio.TimeoutError:
            raise ProtocolError(f"the remote took nothing for {ALIVE} seconds") from None


async def _close(writer: StreamWriter) -> None:
    writer.close()
    try:
        await asyncio.wait_for(writer.wait_closed(), LINGER)
    except (OSError, asyncio.TimeoutError):
        writer.transport.abort()


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


def _check_loss(writer: StreamWriter) -> None:
    """Raise OSError if the kernel has. asyncio does not look after the remote's end of file."""
    sock = writer.get_extra_info("socket")
    if sock is not None and (code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
        raise OSError(code, os.strerror(code))
