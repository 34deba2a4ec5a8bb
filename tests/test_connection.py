"""`Scuttleup.replicate` over real sockets: who gets what, how it ends, and what it leaves behind.

The remote is another log or, to misbehave, a `Remote`: a bare socket played by hand.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
import socket
import ssl
import struct
import sys
import weakref
from asyncio import StreamReader, StreamWriter, Task
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import trustme
from leveldb import FakeDB
from waiting import LIMIT, arrival, start, until
from wire import HTTP, MODES, Mode, encode_handshake, sends, tls_hello

import scuttleup
from scuttleup import ConnectionLost, ProtocolError, Replicated, Scuttleup, limits
from scuttleup.replication.messages import Decoder, decode_report, encode_changes
from scuttleup.replication.protocol import ReplicationStream

# Python warns when it collects what `replicate` has left open. Here a warning fails the test.
pytestmark = pytest.mark.filterwarnings("error")

Stream = tuple[StreamReader, StreamWriter]
MakeLogs = Callable[..., Scuttleup]
Limit = Callable[..., None]
Skip = Callable[[float], Awaitable[None]]

NEVER = 1000  # seconds, which no test has

HELLO = encode_handshake("them", {}, "sync")
PROMISE = encode_handshake("them", {"them": 3}, "sync")  # of which the last never comes
CHANGES = encode_changes("them", 1, [b"one", b"two"])
# How far a remote comes before it is gone, or we are.
SAID = {
    "nothing": b"",
    "a part of the handshake": PROMISE[:3],
    "the handshake": PROMISE,
    "a part of a change": PROMISE + CHANGES[:-1],
    "whole changes": PROMISE + CHANGES,
}

one_shot_and_live = pytest.mark.parametrize("live", [False, True], ids=["one-shot", "live"])
open_and_half_closed = pytest.mark.parametrize("ended", [False, True], ids=["", "half-closed"])
after_each_part = pytest.mark.parametrize("said", SAID.values(), ids=SAID.keys())


@pytest.fixture
def peer(new_logs: MakeLogs) -> MakeLogs:
    """Makes logs: `peer("us", 3)` has 3 short entries, `peer("us", 3, 1000)` 3 of 1,000 bytes."""

    def make(id: str = "us", count: int = 0, size: int | None = None) -> Scuttleup:
        logs = new_logs(id)
        logs.extend(f"{id} {seq}" if size is None else "x" * size for seq in range(1, count + 1))
        return logs

    return make


@pytest.fixture(autouse=True)
def _asyncio_has_nothing_to_say(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No traceback of a lost task, no "socket.send() raised exception"."""
    gc.freeze()  # collecting is quick when it looks only at what the test makes
    yield
    gc.collect()
    gc.unfreeze()
    records = caplog.get_records("call") + caplog.get_records("teardown")
    assert [record.getMessage() for record in records if record.name == "asyncio"] == []


# --- Connections ----------------------------------------------------------------------------------

Sockets = Callable[[], tuple[socket.socket, socket.socket]]


def tcp() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        return left, listener.accept()[0]


def slow() -> tuple[socket.socket, socket.socket]:
    """TCP to a remote whose kernel holds little, so that ours holds what it does not read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        left = socket.create_connection(listener.getsockname())
        return left, listener.accept()[0]


def unix() -> tuple[socket.socket, socket.socket]:
    """A Unix socket pair that holds little, so that a remote that does not read is soon felt."""
    left, right = socket.socketpair()
    for sock in (left, right):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return left, right


@asynccontextmanager
async def serving(serve: Callable[..., Any], **options: Any) -> AsyncIterator[int]:
    """The port of a server that calls `serve` for every connection."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def connect(logs: Scuttleup, port: int, **options: Any) -> Replicated:
    return await logs.replicate(*await asyncio.open_connection("127.0.0.1", port), **options)


class Remote:
    """The other end of a connection, where a test decides what is said."""

    stream: Stream  # our end
    run: Task[Replicated]  # what we do with it

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._decoder = Decoder()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self, size: int = 65536) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, size)

    async def handshake(self) -> None:
        while self._decoder.handshake is None:
            self._decoder.feed(await self.receive())
            list(self._decoder.digests())

    async def changes(self, count: int) -> list[tuple[str, int, bytes]]:
        """The next changes, `count` of them or more."""
        changes: list[tuple[str, int, bytes]] = []
        while True:
            for peer, first, entries in self._decoder.changes():
                changes += [(peer, first + i, entry) for i, entry in enumerate(entries)]
            if len(changes) >= count:
                return changes
            data = await self.receive()
            assert data, "the connection ended too early"
            self._decoder.feed(data)

    async def meet(self, mode: str = "sync") -> None:
        """Exchange handshakes."""
        await self.send(encode_handshake("them", {}, mode))
        await self.handshake()

    def end(self) -> None:
        """Send EOF, go on listening."""
        self.sock.shutdown(socket.SHUT_WR)

    def leave(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Be gone at once, as after a crash: send no EOF, and read no more."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    async def end_of_stream(self) -> None:
        """Read until the other side is closed."""
        with suppress(ConnectionResetError):
            while await self.receive():
                pass

    async def unread(self, more_than: int) -> None:
        """Wait until more than so many bytes wait at our end, because the remote does not read."""
        await until(lambda: self.stream[1].transport.get_write_buffer_size() > more_than)


@asynccontextmanager
async def met(
    logs: Scuttleup, says: bytes = b"", ends: bool = False, sockets: Sockets = tcp, **options: Any
) -> AsyncIterator[Remote]:
    """`logs` replicate with a remote by hand, who `says` this first and perhaps `ends` then."""
    left, right = sockets()
    with right:
        remote = Remote(right)
        remote.stream = await asyncio.open_connection(sock=left)
        remote.run = asyncio.create_task(logs.replicate(*remote.stream, **options))
        await remote.send(says)
        if ends:
            remote.end()
        yield remote


# --- Transports -----------------------------------------------------------------------------------


@asynccontextmanager
async def over_sockets(sockets: Sockets = tcp) -> AsyncIterator[tuple[Stream, Stream]]:
    left, right = sockets()
    yield await asyncio.open_connection(sock=left), await asyncio.open_connection(sock=right)


@asynccontextmanager
async def over_tls() -> AsyncIterator[tuple[Stream, Stream]]:
    authority, client = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(client)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    accepted: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
    async with serving(lambda *stream: accepted.set_result(stream), ssl=server) as port:
        left = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        yield left, await accepted


async def opened_pipe(read_fd: int, write_fd: int) -> Stream:
    """Open pipes as a program does that wants to replicate over its stdin and stdout."""
    loop = asyncio.get_running_loop()
    reader = StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await loop.connect_read_pipe(lambda: protocol, os.fdopen(read_fd, "rb", 0))
    transport, flow = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(write_fd, "wb", 0)
    )
    return reader, StreamWriter(transport, flow, None, loop)


@asynccontextmanager
async def over_pipes() -> AsyncIterator[tuple[Stream, Stream]]:
    (left_in, right_out), (right_in, left_out) = os.pipe(), os.pipe()
    streams = await opened_pipe(left_in, left_out), await opened_pipe(right_in, right_out)
    yield streams
    for reader, _ in streams:
        reader._transport.close()  # type: ignore[attr-defined]


needs_pipes = pytest.mark.skipif(
    sys.platform == "win32", reason="on Windows, asyncio can use only pipes that it has made itself"
)
# `linked` makes two connected streams, one for each side.
over_every_transport = pytest.mark.parametrize(
    "linked",
    [
        pytest.param(over_sockets, id="TCP"),
        pytest.param(partial(over_sockets, unix), id="Unix"),
        pytest.param(over_tls, id="TLS"),
        pytest.param(over_pipes, id="pipes", marks=needs_pipes),
    ],
)


@over_every_transport
@one_shot_and_live
async def test_everything_goes_both_ways(
    peer: MakeLogs, limit: Limit, linked: Any, live: bool
) -> None:
    """Live, threads of both sides append at once."""
    limit(REPORT=NEVER)  # one that meets a remote that has just closed would reset the connection
    later = 500 * live
    one, two = peer("one", 2000, 1000), peer("two", 2000, 1000)
    async with linked() as (left, right):
        runs = asyncio.gather(one.replicate(*left, live=live), two.replicate(*right, live=live))
        if live:
            await asyncio.gather(arrival(two, {"one": 2000}), arrival(one, {"two": 2000}))
            appends = [
                partial(logs.append, "x" * size) for size in range(500) for logs in (one, two)
            ]
            await asyncio.gather(*map(asyncio.to_thread, appends))
            await asyncio.gather(arrival(two, {"one": 2500}), arrival(one, {"two": 2500}))
            assert list(one.create_read_stream()) == list(two.create_read_stream())
            one.close()
        assert [ended[:3] for ended in await runs] == [(2000 + later, 2000 + later, {})] * 2
    assert two.head == {"one": 2000 + later, "two": 2000 + later}


async def held_up(linked: Any, logs: Scuttleup, says: bytes, **options: Any) -> Any:
    """A run whose remote has taken something and takes no more, and the remote's stream."""
    stream, (reader, writer) = linked
    run = asyncio.create_task(logs.replicate(*stream, **options))
    writer.write(says)
    await until(lambda: reader._paused and stream[1]._protocol._paused)
    return run, reader, writer


@over_every_transport
@pytest.mark.parametrize("taken", [False, True], ids=["in vain", "in time"])
async def test_close_gives_a_slow_remote_some_time_to_take_what_was_sent(
    peer: MakeLogs, limit: Limit, linked: Any, taken: bool
) -> None:
    """A remote that takes it in time also gets the end of the connection."""
    limit(LINGER=NEVER if taken else 0.05)
    logs = peer("us", 2_000, 10_000)
    async with linked() as streams:
        run, reader, writer = await held_up(streams, logs, HELLO)
        logs.close()
        if taken:
            assert len(await reader.read()) > 60_000
        writer.close()
        assert (await asyncio.wait_for(run, LIMIT)).sent > 6


@over_every_transport
@one_shot_and_live
async def test_a_remote_that_is_gone_is_noticed(peer: MakeLogs, linked: Any, live: bool) -> None:
    logs = peer("us", 2_000, 10_000)
    async with linked() as streams:
        run, reader, writer = await held_up(streams, logs, PROMISE, live=live)
        writer.transport.abort()
        reader._transport.close()  # of a pipe, which is one way only
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(run, LIMIT)


async def test_tls_that_knows_nothing_any_more_is_closed(peer: MakeLogs, limit: Limit) -> None:
    """The remote never answers the end of TLS. What is closed twice has no socket to ask."""
    limit(LINGER=0.2)
    async with over_tls() as (stream, (_, writer)):
        run = asyncio.create_task(peer("us", 1).replicate(*stream, live=False))
        writer.write(HELLO)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(stream[1].is_closing)
        stream[1].close()
        assert (await asyncio.wait_for(run, LIMIT)).sent == 1
        writer.transport.abort()


@needs_pipes
async def test_it_runs_over_the_pipes_of_a_subprocess(peer: MakeLogs, tmp_path: Path) -> None:
    child: Any = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, str(tmp_path / "child.db")), stdin=PIPE, stdout=PIPE
    )
    us = peer("us", 3)
    ended = await us.replicate(child.stdout, child.stdin, live=False)
    assert ended == Replicated(3, 2, {}, delivered=3)
    assert await child.wait() == 0


async def be_the_child(path: str) -> None:
    """Replicate over stdin and stdout."""
    with scuttleup.open(path, id="child") as logs:
        logs.extend([b"I am", b"here"])
        assert (await logs.replicate(*await opened_pipe(0, 1)))[:3] == (2, 3, {})


# --- One-shot and live ----------------------------------------------------------------------------


@pytest.mark.parametrize(("other_live", "deleted"), [(False, 0), (True, 0), (False, 2)])
@pytest.mark.parametrize("other_mode", MODES)
@pytest.mark.parametrize("mode", MODES)
async def test_one_shot_ends_when_all_is_exchanged(
    peer: MakeLogs, limit: Limit, mode: Mode, other_mode: Mode, other_live: bool, deleted: int
) -> None:
    """It ends even if both have `deleted` some of what they promise."""
    one, two = peer("one", 300), peer("two", 500)
    limit(LINGER=0.2)
    for seq in range(deleted):
        limit(PROMISED=0.05)
        one.delete("one", 300 - seq)
        two.delete("two", 500 - seq)
    there = (300 - deleted) * sends(mode, other_mode)
    back = (500 - deleted) * sends(other_mode, mode)
    async with over_sockets() as (left, right):
        other = asyncio.create_task(two.replicate(*right, mode=other_mode, live=other_live))
        ended = await one.replicate(*left, mode=mode, live=False)
        assert ended == Replicated(there, back, {}, delivered=there)
        if other_live and back and not there:
            two.close()  # else it goes on: one may have ended its side only, and still listen
        assert await other == Replicated(back, there, {}, delivered=back)
    assert one.head == {"one": 300} | ({"two": back} if back else {})
    assert two.head == {"two": 500} | ({"one": there} if there else {})


@pytest.mark.parametrize("size", [0, 100, 1_000, 64 * 1024, 100_000])
@pytest.mark.parametrize("count", [1, 2, 64, 66, 256, 300])
async def test_one_shot_ends_after_any_last_write_and_listens_until_the_remote_ends(
    peer: MakeLogs, count: int, size: int
) -> None:
    """The remote is silent after its handshake: nothing but its own end tells a run to look again.

    What is sent comes to just one write, to a bit more or less, or to many. If we closed with
    something unread, the kernel would reset the connection, and the remote lose data.
    """
    async with met(peer("us", count, size), live=False) as remote:
        await remote.meet()
        assert len(await remote.changes(count)) == count
        assert await asyncio.wait_for(remote.receive(), LIMIT) == b""
        await remote.send(CHANGES)
        remote.end()
        assert await remote.run == Replicated(count, 2, {})


async def test_what_a_thread_appends_is_on_its_way_at_once(peer: MakeLogs) -> None:
    """The event loop sleeps when it has nothing to do: it has to be woken."""
    logs = peer("us")
    async with met(logs, HELLO) as remote:
        await remote.handshake()
        for _ in range(50):
            start(partial(logs.append, "new"))
            await asyncio.wait_for(remote.changes(1), LIMIT)
        remote.end()
        assert await remote.run == Replicated(50, 0, {})


# --- The remote's end -----------------------------------------------------------------------------


async def test_a_live_run_ends_with_a_remote_that_has_all(peer: MakeLogs, limit: Limit) -> None:
    limit(PROMISED=0)  # so we look for the remote all the time, also when we have just ended
    async with met(peer("us", 5000, 1000), HELLO + CHANGES, ends=True) as remote:
        await remote.handshake()
        assert len(await remote.changes(5000)) == 5000
        await remote.end_of_stream()
        assert await remote.run == Replicated(5000, 2, {})


@asynccontextmanager
async def listening(logs: Scuttleup, sockets: Sockets = tcp) -> AsyncIterator[Remote]:
    """As `met`, with a remote that has ended its side and has all that there is."""
    async with met(logs, sockets=sockets) as remote:
        await remote.meet(mode="pull")
        remote.end()
        await remote.changes(1)
        await until(remote.stream[0].at_eof)
        yield remote


async def test_a_remote_that_only_listens_may_end_its_side(peer: MakeLogs) -> None:
    logs = peer("us", 1)
    async with listening(logs) as remote:
        logs.append("live")
        assert await remote.changes(1) == [("us", 2, b"live")]
        logs.close()
        # Empty frames may come before the end: they ask whether the remote is still there.
        assert (await remote.receive()).strip(b"\0") == b""
        assert await remote.run == Replicated(2, 0, {})


@one_shot_and_live
@after_each_part
async def test_a_reset_is_a_lost_connection(peer: MakeLogs, said: bytes, live: bool) -> None:
    logs = peer("us", 1)
    async with met(logs, live=live) as remote:
        await remote.handshake()
        await remote.send(said)
        if CHANGES[:-1] in said:
            await arrival(logs, {"them": 1})
        remote.reset()
        # Windows may hand over a reset as an end.
        with pytest.raises(ConnectionLost, match=r"the connection (broke|ended)"):
            await remote.run


@one_shot_and_live
@open_and_half_closed
async def test_a_reset_while_we_write_is_noticed(peer: MakeLogs, live: bool, ended: bool) -> None:
    async with met(peer("us", 2_000, 10_000), HELLO, ends=ended, live=live) as remote:
        await remote.unread(0)
        remote.reset()
        with pytest.raises(ConnectionLost, match="the connection broke"):
            await remote.run


async def test_a_connection_that_was_reset_before_we_began_is_lost(peer: MakeLogs) -> None:
    left, right = tcp()
    stream = await asyncio.open_connection(sock=left)
    Remote(right).reset()
    with pytest.raises(ConnectionResetError):
        await stream[0].read()
    with pytest.raises(ConnectionLost):
        await peer("us", 1).replicate(*stream)


# --- Remotes that vanish --------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="not on this system")
async def test_the_kernel_notices_within_a_minute_that_the_remote_vanished(peer: MakeLogs) -> None:
    async with met(peer()) as remote:
        await remote.meet()
        sock = remote.stream[1].get_extra_info("socket")
        option = partial(sock.getsockopt, socket.IPPROTO_TCP)
        asking = option(socket.TCP_KEEPCNT) * option(socket.TCP_KEEPINTVL)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert option(socket.TCP_KEEPIDLE) + asking <= 60
        assert option(socket.TCP_USER_TIMEOUT) == 60_000
        remote.end()
        await remote.run


async def test_a_remote_that_never_says_who_it_is_is_dropped(peer: MakeLogs, limit: Limit) -> None:
    limit(LINGER=0.05, ALIVE=0.2)
    async with met(peer("us", 1), sockets=socket.socketpair) as remote:
        with pytest.raises(ConnectionLost, match="no handshake"):
            await remote.run
        await remote.end_of_stream()


@one_shot_and_live
@open_and_half_closed
async def test_a_remote_that_takes_nothing_is_dropped(
    peer: MakeLogs, limit: Limit, live: bool, ended: bool
) -> None:
    limit(LINGER=0.05, ALIVE=0.2, PROMISED=0.2)
    us = peer("us", 200, 10_000)
    async with met(us, HELLO, ends=ended, sockets=unix, live=live) as remote:
        with pytest.raises(ConnectionLost, match="took nothing"):
            await remote.run


async def test_a_one_shot_does_not_end_before_the_remote_has_room_for_all(
    peer: MakeLogs, limit: Limit
) -> None:
    """When it has, the one-shot waits for the end of the remote, and no longer than LINGER."""
    limit(LINGER=0.05)
    async with met(peer("us", 1, 60_000), HELLO, sockets=unix, live=False) as remote:
        await remote.unread(30_000)
        assert not (await asyncio.wait({remote.run}, timeout=0.3))[0]
        await remote.handshake()
        assert len(await remote.changes(1)) == 1
        remote.end()
        assert await remote.run == Replicated(1, 0, {})


async def test_a_slow_remote_is_not_dropped(peer: MakeLogs, limit: Limit, skip: Skip) -> None:
    """It takes longer than the limit for one entry, and never pauses that long."""
    limit(ALIVE=10)
    async with met(peer("us", 1, 1_000_000), sockets=unix, live=False) as remote:
        await skip(5)
        await remote.send(HELLO)
        for _ in range(5):
            await remote.receive(5_000)
            await skip(5)
        await remote.end_of_stream()
        remote.end()
        assert await remote.run == Replicated(1, 0, {})


async def test_whoever_takes_something_is_waited_for(peer: MakeLogs, skip: Skip) -> None:
    """A slow link, and a remote that says something now and then: our kernel still holds most."""
    async with met(peer("us", 1, 100_000), HELLO, sockets=slow, live=False) as remote:
        size = 0
        while data := await remote.receive():
            size += len(data)
            await skip(limits.LINGER / 10)
            await remote.send(b"\0")
        assert size > 100_000
        remote.end()
        assert (await remote.run).sent == 1


LOOPS = ["asyncio"] + ["uvloop"] * (sys.platform != "win32")
LOOPS += ["eager"] * (sys.version_info >= (3, 12))


@pytest.mark.parametrize("kind", LOOPS)
def test_every_loop_tells_the_same(peer: MakeLogs, kind: str) -> None:
    us = peer("us", 1)

    async def main() -> None:
        if kind == "eager":
            asyncio.get_running_loop().set_task_factory(vars(asyncio)["eager_task_factory"])
        for said, error in ((b"\x01\xff", ProtocolError), (b"", ConnectionLost), (HELLO, None)):
            async with met(us, said, ends=True, live=False) as remote:
                if error:
                    with pytest.raises(error):
                        await remote.run
                else:
                    assert (await remote.run).sent == 1
        async with met(us, HELLO) as remote:
            await remote.handshake()
            remote.stream[1].transport.abort()
            us.append("more")
            with suppress(ConnectionLost):
                await remote.run

    make = pytest.importorskip("uvloop").new_event_loop if kind == "uvloop" else None
    with asyncio.Runner(debug=True, loop_factory=make) as runner:
        runner.run(main())


@pytest.mark.parametrize(
    ("sockets", "go"),
    [(tcp, Remote.reset), (tcp, Remote.leave), (socket.socketpair, Remote.leave)],
    ids=["dies", "leaves", "leaves a Unix socket"],
)
async def test_a_remote_that_listened_and_is_gone_is_noticed(
    peer: MakeLogs, limit: Limit, sockets: Sockets, go: Callable[[Remote], None]
) -> None:
    """asyncio does not look after the connection any more when the remote has ended its side.

    Its system says nothing, either, when it closes a side that it had ended: one has to ask. A
    one-shot run in mode pull leaves like this.
    """
    logs = peer("us", 1)
    async with listening(logs, sockets) as remote:
        limit(ALIVE=0.4)
        logs.append("so that the limit counts")
        await remote.changes(1)
        go(remote)
        with pytest.raises(ConnectionLost, match="the connection broke"):
            await asyncio.wait_for(remote.run, LIMIT)


# --- Cancelled or closed --------------------------------------------------------------------------


async def cancelled(task: Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=LIMIT)
    assert task.cancelled()


@one_shot_and_live
@after_each_part
@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_a_run_that_is_cancelled_or_whose_logs_are_closed_ends_with_its_connection(
    peer: MakeLogs, limit: Limit, said: bytes, live: bool, how: str
) -> None:
    limit(LINGER=0.05)
    logs = peer("us", 1)
    async with met(logs, said, live=live) as remote:
        await remote.handshake()
        if how == "cancelled":
            await cancelled(remote.run)
        else:
            await asyncio.to_thread(logs.close)
            await asyncio.wait_for(remote.run, LIMIT)
        await remote.end_of_stream()


@open_and_half_closed
async def test_a_held_up_run_can_be_cancelled(peer: MakeLogs, limit: Limit, ended: bool) -> None:
    limit(LINGER=0.05)
    async with met(peer("us", 200, 10_000), HELLO, ends=ended, sockets=unix) as remote:
        await remote.unread(60_000)
        await cancelled(remote.run)
        await remote.end_of_stream()


async def test_a_run_can_be_cancelled_while_it_lingers(peer: MakeLogs, limit: Limit) -> None:
    limit(LINGER=NEVER)
    async with met(peer("us", 1), live=False) as remote:
        await remote.meet()
        await remote.changes(1)
        assert await remote.receive() == b""  # so it only waits for our end now
        await cancelled(remote.run)


async def test_a_run_that_is_cancelled_twice_leaves_nothing_behind(peer: MakeLogs) -> None:
    """It is cancelled as it runs and as it cleans up, with bytes that the remote does not take."""
    async with met(peer("us", 200, 10_000), HELLO, sockets=unix) as remote:
        await remote.unread(60_000)
        remote.run.cancel()
        await until(remote.stream[1].is_closing)
        await cancelled(remote.run)
        await until(lambda: remote.stream[1].get_extra_info("socket").fileno() < 0)


async def test_a_cancel_in_the_moment_in_which_a_write_ends_is_not_lost(peer: MakeLogs) -> None:
    """In that moment `asyncio.wait_for` of Python 3.10 and 3.11 forgets that it was cancelled."""

    class Writer(StreamWriter):
        async def drain(self) -> None:
            await super().drain()
            if not remote.run.cancelling():
                remote.run.cancel()

    async with met(peer("us", 200, 10_000), sockets=unix) as remote:
        remote.stream[1].__class__ = Writer
        await remote.send(HELLO)
        await asyncio.wait_for(remote.end_of_stream(), LIMIT)
        await asyncio.wait({remote.run})
        assert remote.run.cancelled()


async def test_close_ends_a_run_that_receives_just_then(peer: MakeLogs, limit: Limit) -> None:
    """What breaks because we have ended is nobody's error."""
    limit(LINGER=0.05)
    logs = peer("us")
    flood = encode_changes("them", 1, [b"x" * 100] * 200_000)
    async with met(logs, HELLO) as remote:
        flooding = asyncio.create_task(remote.send(flood))
        await arrival(logs, {"them": 1000})
        logs.close()
        assert (await remote.run).received == logs.head["them"]
        with pytest.raises(OSError):  # noqa: PT011, each system has other words for it
            await flooding


async def test_close_ends_all_runs(peer: MakeLogs, limit: Limit) -> None:
    limit(REPORT=NEVER)
    server = peer("server", 1)
    clients = [peer(f"client {i}", 1) for i in range(5)]
    async with serving(server.replicate) as port:
        runs = [asyncio.create_task(connect(client, port)) for client in clients]
        for client in clients:
            await arrival(client, {other.id: 1 for other in clients})
        server.close()
        assert [ended[:3] for ended in await asyncio.gather(*runs)] == [(1, 5, {})] * 5


async def test_closed_logs_do_not_keep_the_connection(peer: MakeLogs) -> None:
    logs = peer("us")
    logs.close()
    async with met(logs) as remote:
        with pytest.raises(scuttleup.ScuttleupError, match="closed"):
            await remote.run
        await remote.end_of_stream()


# --- Bad remotes, a full disk, and memory ---------------------------------------------------------

# The tests of the protocol have more.
BAD = {
    "HTTP": HTTP,
    "TLS": tls_hello(),
    "zeros": bytes(5000),
    **{f"random {seed}": random.Random(seed).randbytes(5000) for seed in range(2)},
    **{f"garbage {seed}": HELLO + random.Random(seed).randbytes(5000) for seed in range(2)},
    "HTTP later": HELLO + CHANGES + HTTP,
}


@pytest.mark.parametrize("sent", BAD.values(), ids=BAD.keys())
async def test_a_bad_remote_costs_one_line_and_its_own_connection(
    peer: MakeLogs, limit: Limit, capfd: pytest.CaptureFixture[str], sent: bytes
) -> None:
    limit(REPORT=NEVER)
    us, friend = peer("us", 1), peer("friend", 1)
    async with met(us, sent, ends=True) as bad, over_sockets() as (left, right):
        runs = asyncio.gather(us.replicate(*left), friend.replicate(*right))
        with pytest.raises((ProtocolError, ConnectionLost)) as error:
            await bad.run
        assert len(str(error.value).splitlines()) == 1
        await bad.end_of_stream()
        us.append("we are still here")
        friend.append("me too")
        await asyncio.gather(arrival(friend, {"us": 2}), arrival(us, {"friend": 2}))
        friend.close()
        await runs
    assert us.head.keys() <= {"us", "friend", "them"}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("sockets", [tcp, unix], ids=["TCP", "Unix"])
async def test_a_remote_that_reports_hears_what_was_left_out_before_its_error_ends_all(
    peer: MakeLogs, limit: Limit, sockets: Sockets
) -> None:
    """It hears that although its live side would have let the report wait."""
    limit(REPORT=NEVER)
    hello = encode_handshake("them", {}, "sync", reports=True)
    unsigned = encode_changes("ed25519.nonsense", 1, [b"three"])
    async with met(peer("us", 1), hello + CHANGES + unsigned, sockets=sockets) as remote:
        await remote.handshake()
        await remote.changes(1)
        # A frame that cannot be read, and more than is read in a turn.
        sending = asyncio.create_task(remote.send(b"\x01\x07" + b"\xff" * 100_000))
        while data := await remote.receive():
            remote._decoder.feed(data)
        assert list(remote._decoder.changes()) == []
        report = decode_report(remote._decoder.reports[-1])
        assert (report.taken, report.lost) == (3, 1)
        assert [(it.peer, it.reason) for it in report.refused] == [
            ("ed25519.nonsense", "begins like a public key and is none")
        ]
        with pytest.raises(ProtocolError):
            await remote.run
        await sending


async def test_a_remote_in_error_that_is_gone_hears_nothing(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel notices only when we end our side, which takes luck."""
    hello = encode_handshake("them", {}, "sync", reports=True)
    async with met(peer("us"), hello) as remote:
        gone = OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        monkeypatch.setattr(remote.stream[1], "write_eof", Mock(side_effect=gone))
        await remote.send(CHANGES + HTTP)
        with pytest.raises(ProtocolError):
            await remote.run


async def test_a_bad_remote_may_keep_sending(peer: MakeLogs) -> None:
    """It reads nothing, never ends, and its connection is closed all the same."""
    async with met(peer("us", 1)) as remote:
        flooding = asyncio.create_task(remote.send(b"\xff" * 50_000_000))
        with pytest.raises(ProtocolError):
            await remote.run
        with pytest.raises(OSError):  # noqa: PT011, each system has other words for it
            await flooding


async def test_a_remote_that_never_reads_costs_little_memory(peer: MakeLogs) -> None:
    logs = peer("us", 5_000, 1_000)
    async with met(logs, HELLO, sockets=unix) as remote:
        await remote.unread(60_000)
        for _ in range(1_000):
            logs.extend(["y" * 1_000] * 10)
            await asyncio.sleep(0)
            assert remote.stream[1].transport.get_write_buffer_size() < 256 * 1024
        # And when it reads at last, it gets all.
        await remote.handshake()
        assert len(await remote.changes(15_000)) == 15_000
        logs.close()
        assert await remote.run == Replicated(15_000, 0, {})


# --- What is left of it ---------------------------------------------------------------------------


def streams() -> int:
    """How many there are, also those that only the garbage collector finds."""
    return sum(type(each) is ReplicationStream for each in gc.get_objects())


@pytest.mark.parametrize("end", ["garbage", "reset", "disk", "closed", "cancelled"])
async def test_nothing_is_left_to_the_garbage_collector(fake: FakeDB, end: str) -> None:
    """An error keeps its traceback, and that keeps the frames: they must not keep the error."""
    logs = Scuttleup(fake, id="us")
    gc.collect()
    gc.disable()
    before = streams()
    try:
        async with met(logs) as remote:
            await remote.meet()
            assert streams() == before + 1
            if end == "garbage":
                await remote.send(b"\xff" * 20)
            elif end == "reset":
                remote.reset()
            elif end == "closed":
                logs.close()
                remote.end()
            elif end == "cancelled":
                remote.run.cancel()
            else:
                fake.before = OSError()
                await remote.send(CHANGES)
            await asyncio.wait({remote.run}, timeout=LIMIT)
            assert remote.run.cancelled() or bool(remote.run.exception()) == (end != "closed")
        del remote
        fake.before = None  # the error, whose traceback has the frames
        await asyncio.sleep(0)
        assert streams() == before
    finally:
        gc.enable()
        logs.close()


def test_an_event_loop_that_is_over_is_not_kept(peer: MakeLogs) -> None:
    us, them = peer("us", 1), peer("them", 1)

    async def main() -> weakref.ref[asyncio.AbstractEventLoop]:
        async with serving(us.replicate) as port:
            await connect(them, port, live=False)
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(main())
    gc.collect()
    assert loop() is None


async def test_one_turn_is_64_kib_whatever_there_is(peer: MakeLogs) -> None:
    receive = ReplicationStream.receive_data
    with patch.object(ReplicationStream, "receive_data", autospec=True, side_effect=receive) as spy:
        async with met(peer()) as remote:  # its run begins at the next `await`
            remote.stream[0].feed_data(HELLO + encode_changes("them", 1, [bytes(1000)] * 1000))
            remote.end()
            assert await remote.run == Replicated(0, 1000, {})
    assert max(len(call.args[1]) for call in spy.call_args_list) == 64 * 1024


async def test_connections_take_turns_and_none_is_forgotten(
    peer: MakeLogs, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little time a round has, somebody has a turn in it, and in the end all have all."""
    limit(ROUND=0)
    server = peer("server")
    clients = [peer(f"client {i}", 50) for i in range(5)]
    now, turns, receive = 0, Counter[int](), ReplicationStream.receive_data

    def take_turn(stream: ReplicationStream, data: bytes) -> None:
        turns[now] += 1
        receive(stream, data)

    monkeypatch.setattr(ReplicationStream, "receive_data", take_turn)
    async with serving(server.replicate) as port:
        runs = asyncio.gather(*(connect(client, port, live=False) for client in clients))
        while not runs.done():
            now += 1
            await asyncio.sleep(0)
    assert server.head == {f"client {i}": 50 for i in range(5)}
    assert max(turns.values()) <= 2, "one before this test in that round, and one after it"


if __name__ == "__main__":
    asyncio.run(be_the_child(sys.argv[1]))
