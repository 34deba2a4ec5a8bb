"""`Scuttleup.replicate` over real sockets: who gets what, how it ends, and what it leaves behind.

The remote is another log or, to misbehave, a `Remote`: a bare socket played by hand.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
import ssl
import struct
import sys
import threading
import weakref
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trustme

import scuttleup.limits
from scuttleup import (
    Change,
    ConnectionLost,
    DatabaseError,
    ProtocolError,
    Replicated,
    ReplicationStream,
    Scuttleup,
    ScuttleupError,
)
from scuttleup.database import binding as plyvel
from scuttleup.messages import Decoder, Handshake, encode_changes, encode_handshake

# What `replicate` leaves open, Python says when it collects it: here that fails the test.
pytestmark = pytest.mark.filterwarnings(
    "error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning"
)

LIMIT = 25  # seconds for what should take a moment

T = TypeVar("T")
Stream = tuple[StreamReader, StreamWriter]
MakeLogs = Callable[..., Scuttleup]

HELLO = encode_handshake("them", {}, "sync")
MODES = ["sync", "push", "pull"]


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end, within the limit, and see that it leaves no task behind."""

    async def watched() -> T:
        result = await asyncio.wait_for(main, LIMIT)
        me = {asyncio.current_task()}
        await until(lambda: asyncio.all_tasks() == me)
        return result

    return asyncio.run(watched())


async def until(condition: Callable[[], bool], limit: float = 10) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit
    while not condition():
        assert loop.time() < deadline, "waited in vain"
        await asyncio.sleep(0.005)


async def within(seconds: float, task: asyncio.Task[T]) -> T:
    """The result of `task`, which must not take longer; it is not waited for any more then."""
    await asyncio.wait({task}, timeout=seconds)
    ended = task.done()
    if not ended:
        task.cancel()
        await asyncio.wait({task}, timeout=5)
    assert ended, f"still running after {seconds} seconds"
    return task.result()


async def arrival(logs: Scuttleup, peer: str, seq: int) -> Any:
    """Wait for the entry."""
    with logs.create_read_stream(live=True) as changes:
        async for change in changes:
            if change[:2] == (peer, seq):
                break
    return change.entry


async def both(one: Coroutine[Any, Any, T], two: Coroutine[Any, Any, T]) -> list[T]:
    return list(await asyncio.gather(one, two))


@pytest.fixture
def peer(new_logs: MakeLogs) -> Iterator[MakeLogs]:
    """Makes logs, of which nothing may be followed any more when the test is over."""
    made: list[Scuttleup] = []

    def make(id: str = "us", count: int = 0, **options: Any) -> Scuttleup:
        logs = new_logs(id, **options)
        logs.extend(f"{id} {seq}" for seq in range(1, count + 1))
        made.append(logs)
        return logs

    yield make
    gc.collect()
    assert [logs._store._news.followers for logs in made] == [{}] * len(made)


@pytest.fixture(scope="module", autouse=True)
def _collecting_is_quick() -> Iterator[None]:
    """It looks only at what the tests made, and not at all that pytest loaded."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _asyncio_has_nothing_to_say(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No traceback of a lost task, no "socket.send() raised exception"."""
    yield
    gc.collect()
    records = caplog.get_records("call") + caplog.get_records("teardown")
    assert [record.getMessage() for record in records if record.name == "asyncio"] == []


# --- Connections ----------------------------------------------------------------------------------


def tcp_sockets() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        return left, listener.accept()[0]


Sockets = Callable[[], tuple[socket.socket, socket.socket]]


async def pair(sockets: Sockets = tcp_sockets) -> tuple[Stream, Stream]:
    left, right = sockets()
    return await asyncio.open_connection(sock=left), await asyncio.open_connection(sock=right)


@asynccontextmanager
async def serving(serve: Callable[..., Any], **options: Any) -> AsyncIterator[int]:
    """The port of a server that calls `serve` for every connection."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


class Remote:
    """The other end of a connection, by hand."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._decoder = Decoder()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, 65536)

    async def handshake(self) -> Handshake:
        while self._decoder.handshake is None:
            self._decoder.feed(await self.receive())
            list(self._decoder.digests())
        return self._decoder.handshake

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

    async def meet(self, *, head: dict[str, int] | None = None, mode: str = "sync") -> None:
        """Exchange handshakes."""
        await self.send(encode_handshake("them", head or {}, mode))
        await self.handshake()

    def end(self) -> None:
        """Send EOF, go on listening."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Be gone at once, as a crash makes it: no EOF, no more reading."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    async def end_of_stream(self) -> None:
        """Read until the other side is closed."""
        with suppress(ConnectionResetError):
            while await self.receive():
                pass


@asynccontextmanager
async def met(sockets: Sockets = tcp_sockets) -> AsyncIterator[tuple[Stream, Remote]]:
    """One side of a connection as streams, for `replicate`, and the other by hand."""
    left, right = sockets()
    with right:
        yield await asyncio.open_connection(sock=left), Remote(right)


def small_sockets() -> tuple[socket.socket, socket.socket]:
    """A Unix socket pair that holds little, so that a remote that does not read is soon felt."""
    left, right = socket.socketpair()
    for sock in (left, right):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return left, right


def server_of(logs: Scuttleup) -> Callable[[StreamReader, StreamWriter], Awaitable[None]]:
    """As the README shows it."""

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        try:
            await logs.replicate(reader, writer)
        except ScuttleupError as error:
            print(f"replicate: {error}", file=sys.stderr)

    return serve


async def connect(logs: Scuttleup, port: int, **options: Any) -> Replicated:
    return await logs.replicate(*await asyncio.open_connection("127.0.0.1", port), **options)


# --- Transports -----------------------------------------------------------------------------------


def test_replicate_is_all_that_start_server_needs(peer: MakeLogs) -> None:
    server, client = peer("server", 3), peer("client", 2)

    async def main() -> None:
        async with serving(server.replicate) as port:
            assert await connect(client, port, live=False) == Replicated(2, 3, {})

    run(main())
    assert server.head == client.head == {"server": 3, "client": 2}
    assert list(server.create_read_stream()) == list(client.create_read_stream())
    assert server.entry("client", 2) == "client 2"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(authority: trustme.CA, issuer: trustme.CA | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if issuer:
        issuer.issue_cert("client@example.org").configure_cert(context)
    return context


# What every transport has to do, over a stream for each side.


@asynccontextmanager
async def over_sockets(sockets: Sockets = tcp_sockets) -> AsyncIterator[tuple[Stream, Stream]]:
    yield await pair(sockets)


@asynccontextmanager
async def over_tls(authority: trustme.CA) -> AsyncIterator[tuple[Stream, Stream]]:
    accepted: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
    async with serving(
        lambda *stream: accepted.set_result(stream), ssl=server_context(authority)
    ) as port:
        left = await asyncio.open_connection(
            *("127.0.0.1", port),
            ssl=client_context(authority, authority),
            server_hostname="localhost",
        )
        yield left, await accepted


async def opened_pipe(read_fd: int, write_fd: int) -> Stream:
    """As a program opens them that wants to replicate over its stdin and stdout."""
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
        if reader._transport:  # type: ignore[attr-defined]
            reader._transport.close()  # type: ignore[attr-defined]


NO_PIPES = "on Windows, asyncio can use only pipes that it has made itself"


@pytest.fixture(params=["TCP", "Unix", "TLS", "pipes"])
def linked(request: pytest.FixtureRequest, authority: trustme.CA) -> Any:
    """Makes two connected streams, one for each side."""
    if request.param == "pipes" and sys.platform == "win32":
        pytest.skip(NO_PIPES)
    kinds = {
        "TCP": over_sockets,
        "Unix": partial(over_sockets, small_sockets),
        "TLS": partial(over_tls, authority),
        "pipes": over_pipes,
    }
    return kinds[request.param]


def test_every_transport_carries_everything_both_ways(peer: MakeLogs, linked: Any) -> None:
    one, two = peer("one"), peer("two")
    one.extend(f"{i} {'x' * 1000}" for i in range(2000))
    two.extend(f"{i} {'y' * 1000}" for i in range(2000))

    async def main() -> None:
        async with linked() as (left, right):
            assert (
                await both(one.replicate(*left, live=False), two.replicate(*right, live=False))
                == [Replicated(2000, 2000, {})] * 2
            )

    run(main())
    assert list(one.create_read_stream()) == list(two.create_read_stream())


@pytest.mark.parametrize("taken", [False, True], ids=["in vain", "in time"])
def test_every_transport_is_closed_though_a_slow_remote_has_not_taken_all(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch, linked: Any, taken: bool
) -> None:
    """It has some time to take what was sent before, and gets the end then."""
    monkeypatch.setattr(scuttleup.limits, "LINGER", LIMIT if taken else 0.05)
    logs = peer("us", value_encoding="binary")
    logs.extend([b"x" * 10_000] * 2_000)

    async def main() -> None:
        async with linked() as (stream, (reader, writer)):
            replication = asyncio.create_task(logs.replicate(*stream))
            writer.write(HELLO)
            await until(lambda: stream[1].transport.get_write_buffer_size() > 16 * 1024)
            await until(lambda: reader._paused)
            logs.close()
            if taken:
                assert len(await reader.read()) > 60_000
            writer.close()
            assert (await within(5, replication)).sent > 6

    run(main())


@pytest.mark.parametrize("live", [False, True], ids=["one-shot", "live"])
def test_every_transport_tells_that_the_remote_is_gone(
    peer: MakeLogs, linked: Any, live: bool
) -> None:
    logs = peer("us", value_encoding="binary")
    logs.extend([b"x" * 10_000] * 2_000)

    async def main() -> None:
        async with linked() as (stream, (reader, writer)):
            replication = asyncio.create_task(logs.replicate(*stream, live=live))
            writer.write(PROMISE)
            await until(lambda: stream[1].transport.get_write_buffer_size() > 16 * 1024)
            await until(lambda: reader._paused)
            writer.transport.abort()
            reader._transport.close()  # of a pipe, which is one way only
            with pytest.raises(ConnectionLost):
                await within(5, replication)

    run(main())


@pytest.mark.skipif(sys.platform == "win32", reason=NO_PIPES)
def test_it_runs_over_the_pipes_of_a_subprocess(peer: MakeLogs, tmp_path: Path) -> None:
    logs = peer("us", 3)

    async def main() -> None:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, str(tmp_path / "child.db")),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert child.stdin
        assert child.stdout
        replication = asyncio.create_task(logs.replicate(child.stdout, child.stdin))
        assert await arrival(logs, "child", 2) == "I have us 3"
        logs.close()
        assert await replication == Replicated(3, 2, {})
        assert await child.wait() == 0

    run(main())


async def be_the_child(path: str) -> None:
    """Replicate over stdin and stdout, and say when there are three entries."""
    with scuttleup.open(path, id="child", value_encoding="utf-8") as logs:
        replication = asyncio.create_task(logs.replicate(*await opened_pipe(0, 1)))
        logs.append("I am here")
        logs.append(f"I have {await arrival(logs, 'us', 3)}")
        await replication


def test_it_runs_over_tls_with_client_certificates(peer: MakeLogs, authority: trustme.CA) -> None:
    server, client = peer("server", 300), peer("client", 200)

    async def main() -> None:
        async with serving(server.replicate, ssl=server_context(authority)) as port:
            stream = await asyncio.open_connection(
                "127.0.0.1",
                port,
                ssl=client_context(authority, authority),
                server_hostname="localhost",
            )
            replication = asyncio.create_task(client.replicate(*stream))
            await arrival(client, "server", 300)
            server.append("live")
            assert await arrival(client, "server", 301) == "live"
            client.append("live, too")
            assert await arrival(server, "client", 201) == "live, too"
            client.close()
            assert await replication == Replicated(201, 301, {})

    run(main())


async def connect_tls(
    logs: Scuttleup, port: int, context: ssl.SSLContext, **options: Any
) -> Replicated:
    stream = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost"
    )
    return await logs.replicate(*stream, **options)


@pytest.mark.parametrize("issuer", [None, trustme.CA()], ids=["no certificate", "a stranger's"])
def test_tls_keeps_strangers_out(
    peer: MakeLogs, authority: trustme.CA, issuer: trustme.CA | None
) -> None:
    server, stranger = peer("server", 3), peer("stranger", 2)
    served: list[StreamWriter] = []

    async def main() -> None:
        async with serving(
            lambda reader, writer: served.append(writer), ssl=server_context(authority)
        ) as port:
            context = client_context(authority, issuer)
            with pytest.raises((ConnectionLost, ssl.SSLError)):
                await connect_tls(stranger, port, context)

    run(main())
    assert not served
    assert server.head == {"server": 3}
    assert stranger.head == {"stranger": 2}


# --- One-shot -------------------------------------------------------------------------------------


def sends(mode: str, remote_mode: str) -> bool:
    return mode != "pull" and remote_mode != "push"


@pytest.mark.parametrize("other_is_live", [False, True], ids=["one-shot", "live"])
@pytest.mark.parametrize("other_mode", MODES)
@pytest.mark.parametrize("mode", MODES)
def test_one_shot_ends_when_all_is_exchanged(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch, mode: str, other_mode: str, other_is_live: bool
) -> None:
    monkeypatch.setattr(scuttleup.limits, "LINGER", 0.2)
    one, two = peer("one", 300), peer("two", 500)
    there = 300 * sends(mode, other_mode)
    back = 500 * sends(other_mode, mode)

    async def main() -> None:
        left, right = await pair()
        other = asyncio.create_task(two.replicate(*right, mode=other_mode, live=other_is_live))
        assert await one.replicate(*left, mode=mode, live=False) == Replicated(there, back, {})
        if other_is_live and back and not there:
            two.close()  # else it goes on: one may have ended its side only, and still listen
        assert await other == Replicated(back, there, {})

    run(main())
    assert one.head == {"one": 300} | ({"two": 500} if back else {})
    assert two.head == {"two": 500} | ({"one": 300} if there else {})


@pytest.mark.parametrize("other_mode", MODES)
@pytest.mark.parametrize("mode", MODES)
def test_one_shot_ends_though_what_was_promised_is_deleted(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch, mode: str, other_mode: str
) -> None:
    monkeypatch.setattr(scuttleup.limits, "PROMISED", 0.05)
    one, two = peer("one", 3), peer("two", 5)
    one.delete("one", 3)
    two.delete("two", 5)
    two.delete("two", 4)
    there = 2 * sends(mode, other_mode)
    back = 3 * sends(other_mode, mode)

    async def main() -> None:
        left, right = await pair()
        assert await both(
            one.replicate(*left, mode=mode, live=False),
            two.replicate(*right, mode=other_mode, live=False),
        ) == [Replicated(there, back, {}), Replicated(back, there, {})]

    run(main())


def test_one_shot_ends_though_a_busy_remote_has_deleted_what_it_promised(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes of other logs is no sign that the promised one is still to come."""
    monkeypatch.setattr(scuttleup.limits, "PROMISED", 0.2)
    one, two = peer("one"), peer("two")
    two.write([Change("three", 1, "deleted")])
    two.delete("three", 1)

    async def main() -> None:
        left, right = await pair()
        other = asyncio.create_task(two.replicate(*right))
        replication = asyncio.create_task(one.replicate(*left, live=False))
        appending = asyncio.create_task(append_now_and_then(two))
        try:
            await within(5, replication)
        finally:
            appending.cancel()
            await asyncio.wait({appending, other})

    run(main())


async def append_now_and_then(logs: Scuttleup) -> None:
    while True:
        logs.append("more")
        await asyncio.sleep(0.02)


def test_one_shot_with_nothing_to_exchange_ends_too(peer: MakeLogs) -> None:
    one, two = peer("one"), peer("two")

    async def main() -> None:
        left, right = await pair()
        nothing = Replicated(0, 0, {})
        assert [nothing] * 2 == await both(
            one.replicate(*left, live=False), two.replicate(*right, live=False)
        )

    run(main())


@pytest.mark.parametrize("size", [0, 100, 1_000, 64 * 1024, 100_000])
@pytest.mark.parametrize("count", [1, 2, 64, 66, 256, 300])
def test_one_shot_ends_whatever_the_last_write_holds(peer: MakeLogs, count: int, size: int) -> None:
    """The remote is silent after its handshake: nothing but its own end tells a run to look again.

    What is sent comes to just one write, to a bit more or less, or to many.
    """
    logs = peer("us", value_encoding="binary")
    logs.extend([b"x" * size] * count)

    async def main() -> None:
        async with met() as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream, live=False))
            await remote.meet()
            assert len(await remote.changes(count)) == count
            assert await asyncio.wait_for(remote.receive(), 5) == b""
            remote.end()
            assert await replication == Replicated(count, 0, {})

    run(main())


def test_a_second_run_exchanges_only_what_is_new(peer: MakeLogs) -> None:
    one, two = peer("one", 10), peer("two", 10)

    async def main() -> None:
        async with serving(two.replicate) as port:
            assert await connect(one, port, live=False) == Replicated(10, 10, {})
            one.append("new")
            assert await connect(one, port, live=False) == Replicated(1, 0, {})

    run(main())


@pytest.mark.parametrize("size", [1 << 20, 10 << 20], ids=["1 MiB", "10 MiB"])
def test_large_entries_go_both_ways(peer: MakeLogs, size: int) -> None:
    one, two = peer("one", value_encoding="binary"), peer("two", value_encoding="binary")
    entries = [random.Random(i).randbytes(size) for i in range(2)]
    one.append(entries[0])
    two.append(entries[1])

    async def main() -> None:
        left, right = await pair()
        await both(one.replicate(*left, live=False), two.replicate(*right, live=False))

    run(main())
    assert two.entry("one", 1) == entries[0]
    assert one.entry("two", 1) == entries[1]


def test_a_backup_gets_the_tail_of_its_own_log_back(peer: MakeLogs) -> None:
    backup, friend = peer("us", 2), peer("friend")
    friend.write(Change("us", seq, f"us {seq}") for seq in range(1, 6))

    async def main() -> None:
        left, right = await pair()
        assert await both(
            backup.replicate(*left, live=False), friend.replicate(*right, live=False)
        ) == [Replicated(0, 3, {}), Replicated(3, 0, {})]

    run(main())
    assert backup.append("next").seq == 6


# --- Live -----------------------------------------------------------------------------------------


def test_what_any_thread_appends_reaches_the_other_side(peer: MakeLogs) -> None:
    one, two = peer("one"), peer("two")

    async def main() -> None:
        left, right = await pair()
        replications = asyncio.create_task(both(one.replicate(*left), two.replicate(*right)))
        threads = [
            threading.Thread(target=lambda: [one.append("from a thread") for _ in range(100)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        await arrival(two, "one", 400)
        for thread in threads:
            thread.join()
        one.append("from the event loop")
        await arrival(two, "one", 401)
        one.close()
        assert await replications == [Replicated(401, 0, {}), Replicated(0, 401, {})]

    run(main())
    assert list(two.create_read_stream(since={"one": 399})) == [
        Change("one", 400, "from a thread"),
        Change("one", 401, "from the event loop"),
    ]


def test_what_comes_from_one_connection_goes_to_the_others(peer: MakeLogs) -> None:
    left, middle, right = peer("left"), peer("middle"), peer("right")

    async def main() -> None:
        async with serving(middle.replicate) as port:
            replications = [asyncio.create_task(connect(logs, port)) for logs in (left, right)]
            left.append("from the left")
            assert await arrival(right, "left", 1) == "from the left"
            right.append("from the right")
            assert await arrival(left, "right", 1) == "from the right"
            middle.close()
            assert await asyncio.gather(*replications) == [Replicated(1, 1, {})] * 2

    run(main())


def test_nothing_is_sent_back_to_where_it_came_from(peer: MakeLogs) -> None:
    """Every byte on the wire is looked at, not what `replicate` says that it sent."""
    logs = peer("us", 1)

    async def main() -> None:
        async with met() as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream))
            await remote.meet()
            for seq in range(1, 101):
                await remote.send(encode_changes("them", seq, [b"ours"]))
            await remote.send(encode_changes("others", 1, [b"from others, by us"] * 100))
            await arrival(logs, "others", 100)
            logs.append("the last")
            assert await remote.changes(2) == [("us", 1, b"us 1"), ("us", 2, b"the last")]
            logs.close()
            assert await remote.receive() == b""
            remote.end()
            assert await replication == Replicated(2, 200, {})

    run(main())


def test_what_came_from_elsewhere_meanwhile_is_sent_once(peer: MakeLogs) -> None:
    logs = peer("us")

    async def main() -> None:
        async with met() as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream))
            await remote.meet()
            await remote.send(encode_changes("third", 1, [b"1", b"2"]))
            await arrival(logs, "third", 2)
            logs.write([Change("third", 2, "2"), Change("third", 3, "3")])
            assert await remote.changes(1) == [("third", 3, b"3")]
            logs.close()
            assert await remote.receive() == b""
            remote.end()
            await replication

    run(main())


def test_both_sides_may_append_at_once_for_long(peer: MakeLogs) -> None:
    one, two = peer("one"), peer("two")

    async def main() -> None:
        left, right = await pair()
        replications = asyncio.create_task(both(one.replicate(*left), two.replicate(*right)))

        def append(logs: Scuttleup) -> None:
            for i in range(3000):
                logs.append(f"{i} {'x' * (i % 500)}")

        await asyncio.gather(*(asyncio.to_thread(append, logs) for logs in (one, two)))
        await arrival(two, "one", 3000)
        await arrival(one, "two", 3000)
        assert list(one.create_read_stream()) == list(two.create_read_stream())
        one.close()
        assert await replications == [Replicated(3000, 3000, {})] * 2

    run(main())


# --- The remote's end -----------------------------------------------------------------------------

CHANGES = encode_changes("them", 1, [b"one", b"two"])
PROMISE = encode_handshake("them", {"them": 3}, "sync")  # of which the last never comes


@pytest.mark.parametrize("live", [False, True], ids=["one-shot", "live"])
@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", "before the handshake"),
        (PROMISE[:1], "middle of a frame"),
        (PROMISE[:-1], "middle of a frame"),
        (PROMISE + CHANGES[:1], "middle of a frame"),
        (PROMISE + CHANGES[:-1], "middle of a frame"),
    ],
    ids=["nothing", "a length", "half a handshake", "a change's length", "half a change"],
)
def test_an_end_too_early_is_a_lost_connection(
    peer: MakeLogs, sent: bytes, reason: str, live: bool
) -> None:
    logs = peer("us", 1)

    async def main() -> None:
        async with met() as (stream, remote):
            await remote.send(sent)
            remote.end()
            with pytest.raises(ConnectionLost, match=reason):
                await logs.replicate(*stream, live=live)

    run(main())
    # What came whole before the end is kept.
    assert logs.head == {"us": 1} | ({"them": 1} if sent.endswith(CHANGES[:-1]) else {})


def test_a_live_run_ends_when_the_remote_does(peer: MakeLogs) -> None:
    logs = peer("us")

    async def main() -> None:
        async with met() as (stream, remote):
            await remote.send(HELLO + CHANGES)
            remote.end()
            assert await logs.replicate(*stream) == Replicated(0, 2, {})
            assert logs.entry("them", 2) == "two"

    run(main())


def test_a_remote_that_has_ended_its_side_still_gets_what_it_lacks(peer: MakeLogs) -> None:
    logs = peer("us")
    logs.extend(f"{i} {'x' * 1000}" for i in range(5000))

    async def main() -> None:
        async with met() as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream))
            await remote.send(HELLO)
            remote.end()
            await remote.handshake()
            assert len(await remote.changes(5000)) == 5000
            assert await remote.receive() == b""
            assert await replication == Replicated(5000, 0, {})

    run(main())


def test_a_one_shot_run_does_not_wait_for_what_a_remote_that_ended_had_promised(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scuttleup.limits, "PROMISED", 2 * LIMIT)
    logs = peer("us")

    async def main() -> None:
        async with met() as (stream, remote):
            await remote.send(PROMISE + CHANGES)
            remote.end()
            assert await logs.replicate(*stream, live=False) == Replicated(0, 2, {})

    run(main())


@pytest.mark.parametrize(("mode", "remote_mode"), [("sync", "pull"), ("push", "sync")])
def test_a_remote_that_only_listens_may_end_its_side_at_once(
    peer: MakeLogs, mode: str, remote_mode: str
) -> None:
    logs = peer("us", 1)

    async def main() -> None:
        async with met() as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream, mode=mode))
            await remote.send(encode_handshake("them", {}, remote_mode))
            remote.end()
            await remote.handshake()
            assert await remote.changes(1) == [("us", 1, b"us 1")]
            logs.append("live")
            assert await remote.changes(1) == [("us", 2, b"live")]
            logs.close()
            assert await remote.receive() == b""
            assert await replication == Replicated(2, 0, {})

    run(main())


RESET_AFTER = {
    "nothing": b"",
    "a part of the handshake": PROMISE[:3],
    "the handshake": PROMISE,
    "a part of a change": PROMISE + CHANGES[:-1],
    "whole changes": PROMISE + CHANGES,
}


@pytest.mark.parametrize("live", [False, True], ids=["one-shot", "live"])
@pytest.mark.parametrize("sent", RESET_AFTER.values(), ids=RESET_AFTER.keys())
def test_a_reset_is_a_lost_connection(peer: MakeLogs, sent: bytes, live: bool) -> None:
    logs = peer("us", 1)

    async def main() -> None:
        async with met() as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream, live=live))
            await remote.handshake()
            await remote.send(sent)
            if CHANGES[:-1] in sent:
                await arrival(logs, "them", 1)
            remote.reset()
            # Windows may hand over a reset as an end.
            with pytest.raises(ConnectionLost, match=r"the connection (broke|ended)"):
                await replication

    run(main())


@pytest.mark.parametrize("live", [False, True], ids=["one-shot", "live"])
@pytest.mark.parametrize("taken", [0, 1, 200_000])
@pytest.mark.parametrize("ended", [False, True], ids=["", "half-closed"])
def test_a_reset_while_we_write_is_a_lost_connection(
    peer: MakeLogs, live: bool, taken: int, ended: bool
) -> None:
    logs = peer("us", value_encoding="binary")
    logs.extend([b"x" * 10_000] * 2_000)

    async def main() -> None:
        async with met() as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream, live=live))
            await remote.meet()
            if ended:
                remote.end()
            await until(lambda: stream[1].transport.get_write_buffer_size() > 0)
            received = 0
            while received < taken:
                received += len(await remote.receive())
            remote.reset()
            with pytest.raises(ConnectionLost, match="the connection broke"):
                await replication

    run(main())


def test_a_connection_that_was_reset_before_we_began_is_lost(peer: MakeLogs) -> None:
    logs = peer("us", 1)

    async def main() -> None:
        async with met() as (stream, remote):
            remote.reset()
            with pytest.raises(ConnectionResetError):
                await stream[0].read()
            with pytest.raises(ConnectionLost):
                await logs.replicate(*stream)

    run(main())


# --- Remotes that vanish --------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="not on this system")
def test_the_kernel_notices_within_a_minute_that_the_remote_vanished(peer: MakeLogs) -> None:
    logs = peer("us")

    async def main() -> None:
        async with met() as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream))
            await remote.meet()
            sock = stream[1].get_extra_info("socket")

            def option(name: str) -> int:
                value: int = sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                return value

            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            probes = option("TCP_KEEPCNT") * option("TCP_KEEPINTVL")
            assert option("TCP_KEEPIDLE") + probes <= 60
            assert option("TCP_USER_TIMEOUT") == 60_000
            assert 0 < option("TCP_USER_TIMEOUT") <= 60_000
            remote.end()
            await replication

    run(main())


def test_a_remote_that_never_says_who_it_is_is_dropped(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scuttleup.limits, "LINGER", 0.05)
    monkeypatch.setattr(scuttleup.limits, "ALIVE", 0.2)
    logs = peer("us", 1)

    async def main() -> None:
        async with met(socket.socketpair) as (stream, remote):
            with pytest.raises(ConnectionLost, match="no handshake"):
                await logs.replicate(*stream)
            await remote.end_of_stream()

    run(main())


@pytest.mark.parametrize("ended", [False, True], ids=["open", "half-closed"])
@pytest.mark.parametrize("live", [False, True], ids=["one-shot", "live"])
def test_a_remote_that_takes_nothing_is_dropped(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch, live: bool, ended: bool
) -> None:
    monkeypatch.setattr(scuttleup.limits, "LINGER", 0.05)
    monkeypatch.setattr(scuttleup.limits, "ALIVE", 0.2)
    logs = peer("us", value_encoding="binary")
    logs.extend([b"x" * 10_000] * 200)

    async def main() -> None:
        async with met(small_sockets) as (stream, remote):
            await remote.send(encode_handshake("them", {}, "pull"))
            if ended:
                remote.end()
            with pytest.raises(ConnectionLost, match="took nothing"):
                await logs.replicate(*stream, live=live)

    run(main())


def test_a_slow_remote_is_not_dropped(peer: MakeLogs, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than the limit for one entry, and is never silent that long."""
    monkeypatch.setattr(scuttleup.limits, "ALIVE", 1)
    logs = peer("us", value_encoding="binary")
    logs.append(b"x" * 1_000_000)

    async def main() -> None:
        async with met(small_sockets) as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream, live=False))
            await remote.send(HELLO)
            size = taken = 0
            while data := await asyncio.get_running_loop().sock_recv(remote.sock, 5_000):
                size += len(data)
                taken += 1
                if taken <= 100:
                    await asyncio.sleep(0.02)
            remote.end()
            assert await replication == Replicated(1, 0, {})
            assert size > 1_000_000

    run(main())


def test_a_remote_that_pauses_is_not_dropped(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scuttleup.limits, "ALIVE", 3)
    logs = peer("us", value_encoding="binary")
    logs.append(b"x" * 1_000_000)

    async def main() -> None:
        async with met(small_sockets) as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream, live=False))
            await asyncio.sleep(1)  # in this and the next, it is looked after more than once
            await remote.meet()
            await asyncio.sleep(1.5)
            assert len(await remote.changes(1)) == 1
            remote.end()
            assert await replication == Replicated(1, 0, {})

    run(main())


def test_a_one_shot_keeps_the_connection_until_the_remote_has_read_what_it_sent(
    peer: MakeLogs,
) -> None:
    """Closed before, with something unread, the kernel resets it, and the remote may lose that."""
    logs = peer("us", 1)

    async def main() -> None:
        async with met() as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream, live=False))
            await remote.meet()
            assert len(await remote.changes(1)) == 1
            assert await remote.receive() == b""
            await asyncio.sleep(0.2)
            assert not replication.done()
            remote.end()
            assert await replication == Replicated(1, 0, {})

    run(main())


def test_a_remote_that_listens_and_dies_is_noticed(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio does not look after the connection any more when the remote has ended its side."""
    logs = peer("us", 1)

    async def main() -> None:
        async with met() as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream))
            await remote.meet(mode="pull")
            remote.end()
            await remote.changes(1)
            await until(stream[0].at_eof)
            monkeypatch.setattr(scuttleup.limits, "ALIVE", 0.4)
            logs.append("so that the limit counts")
            await remote.changes(1)
            remote.reset()
            with pytest.raises(ConnectionLost, match="the connection broke"):
                await within(5, replication)

    run(main())


def test_a_remote_that_listens_and_dies_is_noticed_by_what_we_send(peer: MakeLogs) -> None:
    """At once, and not when all is sent to nobody."""
    logs = peer("us", 1)

    async def main() -> None:
        async with met() as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream))
            await remote.meet(mode="pull")
            remote.end()
            await remote.changes(1)
            await until(stream[0].at_eof)
            remote.reset()
            logs.extend(["x" * 10_000] * 1_000)
            with pytest.raises(ConnectionLost, match="the connection broke"):
                await within(5, replication)

    run(main())


@pytest.mark.parametrize("sockets", [tcp_sockets, socket.socketpair], ids=["TCP", "Unix"])
def test_a_remote_that_listened_and_leaves_is_noticed(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch, sockets: Sockets
) -> None:
    """Its system says nothing when it closes a side that it had ended: one has to ask.

    A one-shot run in mode pull leaves like this.
    """
    logs = peer("us", 1)

    async def main() -> None:
        async with met(sockets) as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream))
            await remote.meet(mode="pull")
            remote.end()
            await remote.changes(1)
            await until(stream[0].at_eof)
            monkeypatch.setattr(scuttleup.limits, "ALIVE", 0.4)
            logs.append("so that the limit counts")
            await remote.changes(1)
            remote.sock.close()
            with suppress(ConnectionLost):
                await within(5, replication)

    run(main())


# --- Cancelled ------------------------------------------------------------------------------------


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()


@pytest.mark.parametrize("sent", RESET_AFTER.values(), ids=RESET_AFTER.keys())
def test_a_cancelled_run_closes_the_connection(peer: MakeLogs, sent: bytes) -> None:
    logs = peer("us", 1)

    async def main() -> None:
        async with met() as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream))
            await remote.send(sent)
            await remote.handshake()
            await cancelled(replication)
            await remote.end_of_stream()

    run(main())


@pytest.mark.parametrize("ended", [False, True], ids=["", "half-closed"])
def test_a_run_whose_remote_does_not_read_can_be_cancelled(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    monkeypatch.setattr(scuttleup.limits, "LINGER", 0.05)
    logs = peer("us", value_encoding="binary")
    logs.extend([b"x" * 10_000] * 200)

    async def main() -> None:
        async with met(small_sockets) as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream))
            await remote.send(HELLO)
            if ended:
                remote.end()
            await until(lambda: stream[1].transport.get_write_buffer_size() > 60_000)
            await cancelled(replication)
            await remote.end_of_stream()

    run(main())


def test_a_run_can_be_cancelled_while_it_lingers(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scuttleup.limits, "LINGER", LIMIT)
    logs = peer("us", 1)

    async def main() -> None:
        async with met() as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream, live=False))
            await remote.meet()
            await remote.changes(1)
            assert await remote.receive() == b""  # so it only waits for our end now
            await cancelled(replication)

    run(main())


def test_a_run_that_is_cancelled_twice_leaves_nothing_behind(peer: MakeLogs) -> None:
    """Once while it runs and once while it cleans up, with bytes that the remote does not take."""
    logs = peer("us", value_encoding="binary")
    logs.extend([b"x" * 10_000] * 200)

    async def main() -> None:
        async with met(small_sockets) as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream))
            await remote.send(HELLO)
            await until(lambda: stream[1].transport.get_write_buffer_size() > 60_000)
            replication.cancel()
            await until(stream[1].is_closing)
            await cancelled(replication)
            await until(lambda: stream[1].get_extra_info("socket").fileno() < 0)

    run(main())


def test_a_cancel_in_the_moment_in_which_a_write_ends_is_not_lost(peer: MakeLogs) -> None:
    """Where `asyncio.wait_for` of Python 3.10 and 3.11 forgets that it was cancelled."""
    logs = peer("us", value_encoding="binary")
    logs.extend([b"x" * 10_000] * 200)
    replication: asyncio.Task[Replicated]

    class Writer(StreamWriter):
        async def drain(self) -> None:
            await super().drain()
            replication.cancel()

    async def main() -> None:
        nonlocal replication
        async with met(small_sockets) as ((reader, writer), remote):
            writer.__class__ = Writer
            replication = asyncio.create_task(logs.replicate(reader, writer))
            await remote.send(HELLO)
            reading = asyncio.create_task(remote.end_of_stream())
            await asyncio.wait({replication}, timeout=5)
            ended = replication.done()
            logs.close()
            await asyncio.wait({replication}, timeout=5)
            await reading
            assert ended
            assert replication.cancelled()

    run(main())


def test_a_timeout_around_a_run_is_the_callers(peer: MakeLogs) -> None:
    logs = peer("us", 1)

    async def main() -> None:
        async with met() as (stream, remote):
            await remote.send(HELLO)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(logs.replicate(*stream), 0.05)
            await remote.end_of_stream()

    run(main())


# --- Closed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("thread", [False, True], ids=["", "from a thread"])
@pytest.mark.parametrize("live", [False, True], ids=["one-shot", "live"])
@pytest.mark.parametrize("sent", RESET_AFTER.values(), ids=RESET_AFTER.keys())
def test_close_ends_a_run(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch, sent: bytes, live: bool, thread: bool
) -> None:
    monkeypatch.setattr(scuttleup.limits, "LINGER", 0.05)
    logs = peer("us", 1)

    async def main() -> None:
        async with met() as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream, live=live))
            await remote.send(sent)
            await remote.handshake()
            await (asyncio.to_thread(logs.close) if thread else asyncio.sleep(0))
            logs.close()
            await within(5, replication)
            await remote.end_of_stream()

    run(main())


def test_close_ends_a_run_that_receives_just_then(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own end is nobody's error."""
    monkeypatch.setattr(scuttleup.limits, "LINGER", 0.05)
    logs = peer("us")

    async def flood(remote: Remote) -> None:
        for seq in range(1, 1_000_000, 100):
            await remote.send(encode_changes("them", seq, [b"x" * 100] * 100))

    async def main() -> None:
        async with met() as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream))
            flooding = asyncio.create_task(flood(remote))
            await remote.send(HELLO)
            await arrival(logs, "them", 1000)
            logs.close()
            try:
                assert (await within(5, replication)).received == logs.head["them"]
            finally:
                await asyncio.wait({flooding})
                assert isinstance(flooding.exception(), OSError)

    run(main())


def test_close_ends_all_runs(peer: MakeLogs) -> None:
    server = peer("server", 1)
    clients = [peer(f"client {i}", 1) for i in range(5)]

    async def main() -> None:
        async with serving(server.replicate) as port:
            replications = [asyncio.create_task(connect(client, port)) for client in clients]
            for client in clients:
                for other in clients:
                    await arrival(client, other.id, 1)
            server.close()
            results = await asyncio.gather(*replications)
            assert results == [Replicated(1, 5, {})] * 5

    run(main())


def test_a_closed_log_does_not_keep_the_connection(peer: MakeLogs) -> None:
    logs = peer("us")
    logs.close()

    async def main() -> None:
        async with met() as (stream, remote):
            with pytest.raises(ScuttleupError, match="closed"):
                await logs.replicate(*stream)
            assert stream[1].is_closing()
            await remote.end_of_stream()

    run(main())


# --- Bad peers ------------------------------------------------------------------------------------


def tls_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="a.b")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


HTTP = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:2014\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"
BAD = {
    "HTTP": HTTP,
    "TLS": tls_hello(),
    **{f"random {seed}": random.Random(seed).randbytes(5000) for seed in range(8)},
    "zeros": bytes(5000),
    "an endless length": b"\xff" * 5000,
    "too large": b"\x80\x80\x80\x80\x01",
    "our own id": encode_handshake("us", {}, "sync"),
    "a change first": CHANGES,
    "two handshakes": HELLO + HELLO,
    **{f"garbage {seed}": HELLO + random.Random(seed).randbytes(5000) for seed in range(8)},
    "HTTP later": HELLO + CHANGES + HTTP,
    "a push that pulls": encode_handshake("them", {}, "pull") + CHANGES,
}


@pytest.mark.parametrize("sent", BAD.values(), ids=BAD.keys())
def test_a_bad_peer_costs_one_line_and_its_own_connection(
    peer: MakeLogs, capfd: pytest.CaptureFixture[str], sent: bytes
) -> None:
    server, client = peer("us", 1), peer("client", 1)

    async def main() -> None:
        async with serving(server_of(server)) as port:
            replication = asyncio.create_task(connect(client, port))
            await arrival(client, "us", 1)
            with socket.create_connection(("127.0.0.1", port)) as sock:
                bad = Remote(sock)
                await bad.send(sent)
                bad.end()
                await bad.end_of_stream()
            server.append("we are still here")
            assert await arrival(client, "us", 2) == "we are still here"
            client.append("me too")
            assert await arrival(server, "client", 2) == "me too"
            assert await connect(peer("new"), port, live=False) >= Replicated(0, 4, {})
            client.close()
            await replication

    run(main())
    output = capfd.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert len(lines) == 1, output.err
    assert lines[0].startswith("replicate: ")
    assert server.head["us"] == 2
    assert server.head.keys() <= {"us", "client", "them"}


def test_a_bad_peer_may_keep_sending(peer: MakeLogs) -> None:
    """It reads nothing, never ends, and its connection is closed all the same."""
    logs = peer("us", 1)

    async def main() -> None:
        async with met() as (stream, remote):
            flooding = asyncio.create_task(remote.send(b"\xff" * 50_000_000))
            with pytest.raises(ProtocolError):
                await logs.replicate(*stream)
            with pytest.raises(OSError):  # noqa: PT011, each system has other words for it
                await flooding

    run(main())


def test_what_verify_refuses_ends_the_connection(peer: MakeLogs) -> None:
    logs = peer("us", 1, verify=lambda change: bool(change.entry != "two"))

    async def main() -> None:
        async with met() as (stream, remote):
            await remote.send(HELLO + CHANGES)
            with pytest.raises(ProtocolError, match="verify refused 2 of 'them'"):
                await logs.replicate(*stream)

    run(main())
    assert logs.head == {"us": 1, "them": 1}


def test_a_wrong_mode_is_a_value_error(peer: MakeLogs) -> None:
    logs = peer("us")

    async def main() -> None:
        left, right = await pair()
        with pytest.raises(ValueError, match="'both'"):
            await logs.replicate(*left, mode="both")
        for _, writer in (left, right):
            writer.close()
            await writer.wait_closed()

    run(main())


# --- Disk and memory ------------------------------------------------------------------------------


class FailingDisk:
    """A plyvel.DB whose next batches, `failures` of them, cannot be written."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self.failures = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def write_batch(self, **options: Any) -> Any:
        return FailingBatch(self, self._db.write_batch(**options))


class FailingBatch:
    def __init__(self, disk: FailingDisk, batch: Any) -> None:
        self._disk = disk
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def write(self) -> None:
        if self._disk.failures:
            self._disk.failures -= 1
            raise plyvel.IOError(b"IO error: No space left on device")
        self._batch.write()


def test_a_disk_error_ends_the_connection_and_the_next_one_catches_up(
    db: Any, peer: MakeLogs
) -> None:
    disk = FailingDisk(db)
    logs = Scuttleup(disk, id="us", value_encoding="utf-8")
    logs.extend(["one", "two"])
    friend = peer("friend", 1000)
    other = peer("other")

    async def main() -> None:
        async with serving(server_of(logs)) as port:
            replication = asyncio.create_task(connect(other, port))
            await arrival(other, "us", 2)

            disk.failures = 1
            left, right = await pair()
            remote = asyncio.create_task(friend.replicate(*right))
            with pytest.raises(DatabaseError, match="No space left"):
                await logs.replicate(*left)
            await asyncio.wait({remote})
            assert isinstance(remote.exception(), (ConnectionLost, type(None)))
            assert logs.head == {"us": 2}
            assert other.head == {"us": 2}

            assert await connect(friend, port, live=False) >= Replicated(1000, 0, {})
            assert await arrival(other, "friend", 1000) == "friend 1000"
            other.close()
            await replication

    run(main())
    assert list(logs.create_read_stream()) == list(friend.create_read_stream())
    logs.close()


def test_a_remote_that_never_reads_costs_little_memory(peer: MakeLogs) -> None:
    logs = peer("us", value_encoding="binary")
    logs.extend([b"x" * 1_000] * 5_000)

    async def main() -> None:
        async with met(small_sockets) as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream))
            await remote.send(HELLO)
            transport = stream[1].transport
            await until(lambda: transport.get_write_buffer_size() > 60_000)
            most = 0
            for _ in range(1_000):
                logs.extend([b"y" * 1_000] * 10)
                await asyncio.sleep(0)
                most = max(most, transport.get_write_buffer_size())
            assert most < 256 * 1024

            # And when it reads at last, it gets all.
            await remote.handshake()
            assert len(await remote.changes(15_000)) == 15_000
            logs.close()
            assert await replication == Replicated(15_000, 0, {})

    run(main())


# --- What is left of it ---------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["garbage", "reset", "verify", "disk", "closed", "cancelled"])
def test_nothing_is_left_that_only_the_garbage_collector_finds(
    db: Any, peer: MakeLogs, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """An error keeps its traceback, and that keeps the frames: they must not keep the error."""
    disk = FailingDisk(db)
    logs = Scuttleup(disk, id="us", verify=lambda change: change.entry != b"two")
    made: list[weakref.ref[ReplicationStream]] = []
    create = Scuttleup.create_replication_stream

    def note(*args: Any, **options: Any) -> ReplicationStream:
        stream = create(*args, **options)
        made.append(weakref.ref(stream))
        return stream

    monkeypatch.setattr(Scuttleup, "create_replication_stream", note)

    async def main() -> None:
        async with met() as (stream, remote):
            replication = asyncio.create_task(logs.replicate(*stream))
            await remote.meet()
            if end == "garbage":
                await remote.send(b"\xff" * 20)
            elif end == "reset":
                remote.reset()
            elif end == "closed":
                logs.close()
                remote.end()
            elif end == "cancelled":
                replication.cancel()
            else:
                disk.failures = int(end == "disk")
                await remote.send(CHANGES)
            await asyncio.wait({replication}, timeout=5)
            assert replication.done()
            assert replication.cancelled() or bool(replication.exception()) == (end != "closed")
        del replication, stream
        await asyncio.sleep(0)
        assert [ref() for ref in made] == [None]

    gc.collect()
    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()
        logs.close()


def test_an_event_loop_that_is_over_is_not_kept(peer: MakeLogs) -> None:
    us, them = peer("us", 1), peer("them", 1)
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        async with serving(us.replicate) as port:
            await connect(them, port, live=False)

    run(main())
    gc.collect()
    assert [ref() for ref in loops] == [None]


def test_one_turn_is_64_kib_whatever_there_is(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = peer("us")
    sizes: list[int] = []
    receive = ReplicationStream.receive_data

    def note(stream: ReplicationStream, data: bytes) -> None:
        sizes.append(len(data))
        receive(stream, data)

    monkeypatch.setattr(ReplicationStream, "receive_data", note)

    async def main() -> None:
        async with met() as ((reader, writer), remote):
            reader.feed_data(HELLO + encode_changes("them", 1, [bytes(1000)] * 1000))
            remote.end()
            assert await logs.replicate(reader, writer) == Replicated(0, 1000, {})

    run(main())
    assert max(sizes) == 64 * 1024


def test_connections_take_turns_and_none_is_forgotten(
    peer: MakeLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However little time a round has, everybody gets something."""
    monkeypatch.setattr(scuttleup.limits, "ROUND", 0)
    server = peer("server")
    clients = [peer(f"client {i}", 50) for i in range(5)]

    async def main() -> None:
        async with serving(server.replicate) as port:
            runs = [connect(client, port, live=False) for client in clients]
            for result in await asyncio.gather(*runs):
                assert result.sent >= 50

    run(main())
    assert server.head == {f"client {i}": 50 for i in range(5)}


if __name__ == "__main__":
    asyncio.run(be_the_child(sys.argv[1]))
