"""Slow links, and remotes that stand still: nothing is given up that moves, nor without a word.

Where it may, a test makes a network namespace of its own, whose loopback is slow. Elsewhere a relay
passes on so many bytes a second. Limits and sizes are smaller than in life, and so are the times.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from interop import Original
from waiting import settle, until

import scuttleup.peer
from scuttleup import Change, ConnectionLost, Peer, Scuttleup
from scuttleup.replication import ReplicationStream, protocol

HERE = ("127.0.0.1", 0)

Sockets = tuple[socket.socket, socket.socket]
Limit = Callable[..., None]
MakeLogs = Callable[..., Scuttleup]

# Sends two ends of a connection to whoever is at the other end of stdin.
CONNECT = """
import socket
with socket.create_server(("127.0.0.1", 0)) as listener:
    left = socket.create_connection(listener.getsockname())
    right, _ = listener.accept()
    socket.send_fds(socket.socket(fileno=0), [b"-"], [left.fileno(), right.fileno()])
"""
# Connects two peers at an address that has a zone, if it is given one.
MEET = """
import asyncio, sys, scuttleup
async def main():
    with scuttleup.open("a", id="a") as a, scuttleup.open("b", id="b") as b:
        async with scuttleup.Peer(a, listen=(sys.argv[1], 0)) as server:
            async with scuttleup.Peer(b, connect=server.addresses) as client:
                while not (client.connected and server.connected):
                    await asyncio.sleep(0.01)
                print(server.addresses[0][0], client.connected[0][0], server.connected[0][0])
asyncio.run(main())
"""
# Replicates over stdin, which is a socket.
REPLICATE = """
import asyncio, socket, sys, scuttleup
async def main():
    with scuttleup.open(sys.argv[1], id="them") as logs:
        logs.append(bytes(4_000_000))
        sock = socket.socket(fileno=0)
        await logs.replicate(*await asyncio.open_connection(sock=sock))
asyncio.run(main())
"""


def in_namespace(setup: str, *command: str, **options: Any) -> bool:
    """Run a Python program in a network namespace; return whether that was possible."""
    arguments = ["unshare", "-rn", "sh", "-ec", f'{setup}\nexec "$@"', "sh", sys.executable]
    try:
        return subprocess.run([*arguments, *command], **options).returncode == 0
    except OSError:
        return False


def tcp(receive_buffer: int = 0) -> Sockets:
    with socket.create_server(HERE) as listener:
        if receive_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        left = socket.create_connection(listener.getsockname())
        return left, listener.accept()[0]


def slow_sockets(rate: int) -> Sockets | None:
    """A connection over a loopback that carries `rate` bytes a second, if that is possible."""
    setup = f"""ip link set lo up mtu 1500
        tc qdisc add dev lo root tbf rate {rate}bps burst 4kb limit 16kb"""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if not in_namespace(setup, "-c", CONNECT, stdin=theirs, stderr=subprocess.DEVNULL):
            return None
        left, right = socket.recv_fds(ours, 1, 2)[1]
    return socket.socket(fileno=left), socket.socket(fileno=right)


async def pass_on(source: socket.socket, target: socket.socket, rate: int) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while data := await loop.sock_recv(source, rate // 20):
            await asyncio.sleep(len(data) / rate)
            await loop.sock_sendall(target, data)
        target.shutdown(socket.SHUT_WR)


@asynccontextmanager
async def relayed(rate: int, receive_buffer: int = 0) -> AsyncIterator[Sockets]:
    """A connection by way of a relay, which takes `receive_buffer` bytes more than it passes on."""
    (left, near), (right, far) = tcp(receive_buffer), tcp(receive_buffer)
    for sock in (left, near, far, right):
        sock.setblocking(False)
    ways = [asyncio.create_task(pass_on(*way, rate)) for way in ((near, far), (far, near))]
    with near, far:
        yield left, right
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)


@asynccontextmanager
async def slow(rate: int) -> AsyncIterator[Sockets]:
    """A connection over a link that carries `rate` bytes a second."""
    if sockets := slow_sockets(rate):
        yield sockets
    else:
        async with relayed(rate, 4096) as sockets:
            yield sockets


async def opened(sock: socket.socket) -> tuple[StreamReader, StreamWriter]:
    return await asyncio.open_connection(sock=sock)


@pytest.fixture(params=["reports", "original"])
def reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the two report, or are like the original and its kind."""
    if request.param == "original":
        pieces: Any = vars(protocol)["handshake_pieces"]

        def silent(*about: Any, reports: bool) -> Any:
            return pieces(*about, reports=False)

        monkeypatch.setattr(protocol, "handshake_pieces", silent)
    return bool(request.param == "reports")


both_kinds = pytest.mark.usefixtures("reports")


async def test_a_large_entry_arrives_at_a_peer_that_says_something_all_the_time(
    new_logs: MakeLogs, limit: Limit, reports: bool
) -> None:
    """It takes much longer than a remote may go on to read after our end."""
    limit(LINGER=0.7)
    us, them = new_logs("us"), new_logs("them")
    us.append("x" * 200_000)

    async def talk() -> None:
        while True:
            them.append("hello")
            await asyncio.sleep(0.05)

    async with slow(100_000) as (left, right):
        there = asyncio.create_task(them.replicate(*await opened(right)))
        talking = asyncio.create_task(talk())
        ended = await us.replicate(*await opened(left), live=False)
        talking.cancel()
        await there
    assert (ended.sent, ended.delivered) == (1, 1 if reports else None)
    assert them.head["us"] == 1
    assert us.head["them"] > 5


@both_kinds
async def test_what_comes_slowly_is_waited_for(new_logs: MakeLogs, limit: Limit) -> None:
    """It takes much longer than a promise stands without progress."""
    limit(PROMISED=0.5)
    us, them = new_logs("us"), new_logs("them")
    them.append("x" * 60_000)
    async with slow(40_000) as (left, right):
        there = asyncio.create_task(them.replicate(*await opened(right)))
        assert (await us.replicate(*await opened(left), live=False)).received == 1
        await there


@both_kinds
async def test_a_remote_is_waited_for_that_has_to_read_of_many_logs_first(
    new_logs: MakeLogs, limit: Limit
) -> None:
    """Our handshake takes much longer than a promise stands, and comes before any answer."""
    limit(PROMISED=0.5)
    us, them = new_logs("us"), new_logs("them")
    us.write(Change(f"{n:040}", 1, "") for n in range(2000))
    them.append("new")
    async with slow(50_000) as (left, right):
        there = asyncio.create_task(them.replicate(*await opened(right), live=False))
        ended = await us.replicate(*await opened(left), mode="pull", live=False)
        assert ended.received == 1
        await there


def test_a_node_with_many_logs_is_waited_for(tmp_path: Path, logs: Scuttleup, limit: Limit) -> None:
    """It looks through all of them before it sends what is new."""
    limit(PROMISED=0.05)
    many = [Change(f"{n:040}", 1, "") for n in range(3000)]
    with Original(tmp_path / "node.db", id="node", valueEncoding="utf-8") as node:
        node.write(many)
        logs.write(many)
        node.append("new")
        port = node.listen()

        async def meet() -> None:
            streams = await asyncio.open_connection("127.0.0.1", port)
            ended = await logs.replicate(*streams, live=False)
            assert (ended.received, ended.given_up) == (1, 0)

        asyncio.run(meet())


async def test_a_fast_first_hop_into_a_slow_tunnel_is_not_dropped(
    new_logs: MakeLogs, limit: Limit
) -> None:
    """Our kernel takes more of us only when a third of what it holds has gone, which lasts long."""
    limit(PROMISED=1)  # so we look five times a second
    us, them = new_logs("us"), new_logs("them")
    us.append("x" * 3_500_000)
    async with relayed(700_000) as (left, right):
        there = asyncio.create_task(them.replicate(*await opened(right)))
        here = asyncio.create_task(us.replicate(*await opened(left), live=False))
        await settle()
        limit(ALIVE=0.7)  # the kernel, which counts by the frame, has been given a minute
        assert (await here).sent == 1
        assert (await there).received == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows stops no process")
async def test_a_remote_that_is_stopped_within_a_frame_is_lost_and_not_in_error(
    logs: Scuttleup, limit: Limit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came, receive = 0, ReplicationStream.receive_data

    def count(stream: ReplicationStream, data: bytes) -> None:
        nonlocal came
        came += len(data)
        receive(stream, data)

    limit(ALIVE=5)  # so we look every second
    monkeypatch.setattr(ReplicationStream, "receive_data", count)
    async with slow(1_000_000) as (left, right):
        right.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        command = [sys.executable, "-c", REPLICATE, str(tmp_path / "them.db")]
        with right, subprocess.Popen(command, stdin=right.fileno()) as remote:
            try:
                run = asyncio.create_task(logs.replicate(*await opened(left)))
                await until(lambda: came > 100_000)
                remote.send_signal(signal.SIGSTOP)
                limit(ALIVE=0.5)
                with pytest.raises(ConnectionLost, match="half a frame"):
                    await run
            finally:
                remote.kill()


async def test_a_name_whose_first_address_is_silent_reaches_the_second(
    new_logs: MakeLogs, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system does not answer who knocks where too many are waiting to be let in."""
    limit(CONNECT_SECONDS=0.3)
    us, them = new_logs("us"), new_logs("them")
    them.append("hello")
    waiting = []
    with socket.create_server(HERE, backlog=0) as silent:
        for _ in range(3):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(silent.getsockname())
        async with Peer(them, listen=HERE) as server:
            addresses = [silent.getsockname(), *server.addresses]
            found = [(socket.AF_INET, 0, 0, "", it) for it in addresses]
            monkeypatch.setattr(scuttleup.peer, "_resolve", AsyncMock(return_value=found))
            async with Peer(us, connect=[("them", 1)], live=False) as peer:
                assert (await peer.wait()).received == 1
                assert peer.failures == 0
    for sock in waiting:
        sock.close()


def test_an_address_keeps_its_zone(tmp_path: Path) -> None:
    """Where there is no namespace, it is an address without a zone."""
    setup = """ip link set lo up
        ip link add eth7 type veth peer name eth8
        ip address add fe80::1/64 dev eth7 nodad
        ip link set eth7 up && ip link set eth8 up"""
    with open(tmp_path / "out", "w+") as out:
        host = "fe80::1%eth7"
        if not in_namespace(setup, "-c", MEET, host, cwd=tmp_path, stdout=out):
            host = "127.0.0.1"
            program = [sys.executable, "-c", MEET, host]
            subprocess.run(program, cwd=tmp_path, stdout=out, check=True)
        out.seek(0)
        assert out.read().split() == [host] * 3
