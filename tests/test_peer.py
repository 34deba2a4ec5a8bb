"""`Peer`: connected for as long as its `async with` runs, whoever comes, breaks off or attacks."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from asyncio import StreamWriter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, AsyncMock, Mock

import psutil
import pytest
from readme import ROOT, block
from waiting import LIMIT, arrival, until
from wire import HTTP, frame

import scuttleup.peer
from scuttleup import DatabaseError, Peer, Scuttleup, ScuttleupError, Tls, load_tls
from scuttleup.notes import Events

if sys.platform != "win32":
    import resource

HERE = ("127.0.0.1", 0)

NewLogs = Callable[..., Scuttleup]
NewCertificates = Callable[[], list[str]]
Limit = Callable[..., None]

pytestmark = pytest.mark.filterwarnings("error")  # a socket that nobody closed is one, for instance


def told(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.name == "scuttleup"]
    return [message for message in messages if text in message]


@pytest.fixture
def alice(new_logs: NewLogs) -> Scuttleup:
    return new_logs("alice")


@pytest.fixture
def bob(new_logs: NewLogs) -> Scuttleup:
    return new_logs("bob")


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A remote that is away is soon asked again."""
    monkeypatch.setattr(scuttleup.peer, "FIRST_DELAY", 0.01)


# --- What it is for ---


async def test_two_peers_exchange_what_they_have_and_what_comes(
    alice: Scuttleup, bob: Scuttleup
) -> None:
    alice.append("before")
    async with Peer(alice, listen=HERE) as server, Peer(bob, connect=server.addresses) as client:
        bob.append("after")
        await arrival(alice, {"alice": 1, "bob": 1})
        await arrival(bob, {"alice": 1, "bob": 1})
        assert client.connected == server.addresses
        assert [host for host, _ in server.connected] == ["127.0.0.1"]
    assert client.connected == server.connected == []


async def test_a_name_means_all_its_addresses(alice: Scuttleup, bob: Scuttleup) -> None:
    async with Peer(alice, listen=("localhost", 0)) as server:
        assert all(port > 0 for _, port in server.addresses)
        async with Peer(bob, connect=[("localhost", server.addresses[0][1])]) as client:
            await until(lambda: client.connected)


async def test_of_a_name_the_address_counts_with_which_it_goes_well(
    alice: Scuttleup, bob: Scuttleup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is dead, the second leads to ourselves, and the third closes at once."""
    alice.append("hello")

    async def close(_: object, writer: StreamWriter) -> None:
        writer.close()

    async with Peer(alice, listen=HERE) as server, Peer(bob, listen=HERE) as ourselves:
        closing = await asyncio.start_server(close, *HERE)
        names = [("127.0.0.1", 1), *ourselves.addresses, closing.sockets[0].getsockname()]
        found = [(socket.AF_INET, 0, 0, "", it) for it in (*names, *server.addresses)]
        monkeypatch.setattr(scuttleup.peer, "_resolve", AsyncMock(return_value=found))
        async with closing, Peer(bob, connect=[("replicas", 1)], live=False) as peer:
            assert (await peer.wait()).received == 1
            assert peer.failures == 0


async def test_it_knows_how_far_each_has_come_and_when_all_have_caught_up(
    alice: Scuttleup, bob: Scuttleup
) -> None:
    alice.append("before")
    async with Peer(alice, listen=HERE) as server, Peer(bob, connect=server.addresses) as client:
        await client.caught_up()
        assert bob.head == {"alice": 1}
        assert client.connections == [(*server.addresses, "alice", 0, 0, 1, True)]
        bob.append("after")
        await client.caught_up()
        assert alice.head == {"alice": 1, "bob": 1}
        assert client.connections == [(*server.addresses, "alice", 1, 1, 1, True)]
        waiter = asyncio.create_task(client.caught_up())
        bob.append("more")
        bob.close()
        with pytest.raises(ScuttleupError, match="closed"):
            await waiter


async def test_addresses_come_and_go_while_it_runs(alice: Scuttleup, bob: Scuttleup) -> None:
    async with Peer(alice, listen=HERE) as server, Peer(bob, max_connections=1) as client:
        [address] = server.addresses
        client.connect(address)
        await until(lambda: client.connected == [address])
        with pytest.raises(ValueError, match="max_connections"):
            client.connect(HERE)
        client.disconnect(address)
        await until(lambda: not client.connected and not server.connected)
        with pytest.raises(ValueError, match="not an address that is connected to"):
            client.disconnect(address)
        client.connect(address)
        await until(lambda: client.connected)


async def test_without_live_a_remote_that_is_not_there_is_a_failure(alice: Scuttleup) -> None:
    async with Peer(alice, connect=[("127.0.0.1", 1)], live=False) as peer:
        assert (await peer.wait())[:2] == (0, 0)
        assert peer.failures == 1


async def test_who_never_answers_is_given_up(
    alice: Scuttleup, tls: Tls, caplog: pytest.LogCaptureFixture, limit: Limit
) -> None:
    limit(CONNECT_SECONDS=0.1)
    with socket.create_server(HERE) as silent:
        address = silent.getsockname()
        async with Peer(alice, connect=[address], tls=tls, live=False) as peer:
            await peer.wait()
            assert peer.failures == 1
    assert told(caplog, f"{address[1]}: cannot connect: no answer")


# --- How it ends ---


@pytest.mark.skipif(sys.platform == "win32", reason="Windows counts no descriptors")
async def test_leaving_leaves_no_task_and_no_socket(
    alice: Scuttleup, bob: Scuttleup, tls: Tls
) -> None:
    with socket.create_server(HERE) as silent:  # a remote that never says anything
        gc.collect()  # what other tests have left
        tasks, before = asyncio.all_tasks(), psutil.Process().num_fds()
        async with (
            Peer(alice, listen=HERE) as server,
            Peer(bob, connect=[*server.addresses, silent.getsockname()]) as client,
            Peer(alice, listen=HERE, tls=tls) as secure,
        ):
            strangers = [socket.create_connection(it.addresses[0]) for it in (server, secure)]
            await until(lambda: len(server.connected) == len(client.connected) == 2)
            await until(lambda: len(secure._sessions) == 1)
        assert asyncio.all_tasks() == tasks
        assert psutil.Process().num_fds() - before == len(strangers)
        for stranger in strangers:
            stranger.close()


async def test_it_can_be_left_at_once(alice: Scuttleup) -> None:
    async with Peer(alice, listen=HERE) as peer:
        sock = socket.create_connection(peer.addresses[0])
    with sock, suppress(ConnectionResetError):  # a reset is one way to be closed
        assert sock.recv(1) == b""


async def test_it_can_be_entered_once(alice: Scuttleup) -> None:
    async with Peer(alice, listen=HERE) as peer:
        with pytest.raises(RuntimeError):
            await peer.__aenter__()


async def test_a_loop_that_cannot_tell_who_is_readable_serves_as_well(
    alice: Scuttleup, bob: Scuttleup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop of Windows is like that."""
    bob.append("hello")
    no_reader = Mock(side_effect=NotImplementedError)
    async with Peer(alice, listen=HERE) as server:
        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", no_reader)
        async with Peer(bob, connect=server.addresses):
            await arrival(alice, {"bob": 1})


async def test_it_ends_when_the_logs_are_closed(alice: Scuttleup, bob: Scuttleup) -> None:
    async with Peer(alice, listen=HERE) as server, Peer(bob, connect=server.addresses) as client:
        await until(lambda: server.connected and client.connected)
        threading.Thread(target=bob.close).start()
        await client.wait()
        alice.close()
        await server.wait()
        await asyncio.wait({*server._acceptors, *server._sessions})
        assert not server.connected
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*server.addresses[0])


async def test_closed_logs_cannot_be_connected(alice: Scuttleup) -> None:
    alice.close()
    with pytest.raises(ScuttleupError, match="closed"):
        async with Peer(alice, listen=HERE):
            pass


async def test_trouble_with_our_own_database_ends_the_body_and_reaches_the_user(
    alice: Scuttleup, bob: Scuttleup, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble = DatabaseError("alice.db cannot be written")
    trouble.__cause__ = cause = OSError("no space")
    monkeypatch.setattr(alice._store, "commit", Mock(side_effect=trouble))
    bob.append("too much")
    with pytest.raises(DatabaseError, match="cannot be written") as caught:
        async with Peer(alice, listen=HERE) as server, Peer(bob, connect=server.addresses):
            await asyncio.get_running_loop().create_future()  # something that has no end
    assert caught.value.__cause__ is cause
    # Whoever catches the error can go on.
    assert not asyncio.current_task().cancelling()  # type: ignore[union-attr]


async def test_an_error_of_the_body_stays_what_it_is(alice: Scuttleup) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with Peer(alice, listen=HERE):
            raise KeyError("mine")


async def test_a_name_server_that_does_not_answer_does_not_hold_up_the_end(
    alice: Scuttleup, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    look_up = Mock(side_effect=lambda *_: answer.wait() and [])
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with Peer(alice, connect=[("example.invalid", 1)]):
        await until(lambda: look_up.called)
    answer.set()


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows cannot send a Ctrl-C to one process alone"
)
@pytest.mark.parametrize(
    "body",
    [
        "await peer.wait()",
        "[_ async for _ in logs.create_read_stream(live=True)]",
        "signal.signal(signal.SIGINT, lambda *_: logs.close()); await peer.wait()",
    ],
    ids=["waits", "follows", "closes its logs"],
)
async def test_a_server_prints_nothing_and_one_ctrl_c_ends_it(
    body: str, bob: Scuttleup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(HERE) as free:
        address = free.getsockname()
    code = block("python", containing="alice.db").replace("2014", str(address[1]))
    command = [sys.executable, "-c", "import signal\n" + code.replace("await peer.wait()", body)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server,
        ExitStack() as failing,
    ):
        failing.callback(server.kill)
        async with Peer(bob, connect=[address] * 3) as peer:
            await until(lambda: len(peer.connected) == 3)
            with socket.create_connection(address), socket.create_connection(address) as browser:
                # One of the two says nothing, and what the other does wrong is a warning.
                browser.sendall(frame(HTTP))
                with suppress(ConnectionResetError):
                    while browser.recv(1 << 16):
                        pass
                server.send_signal(signal.SIGINT)
                said, _ = server.communicate(timeout=LIMIT)
        assert (server.returncode, said) == (0, b"")


# --- Coming back ---


async def test_it_comes_back_to_a_peer_that_was_away(alice: Scuttleup, bob: Scuttleup) -> None:
    async with AsyncExitStack() as stack:
        async with Peer(alice, listen=HERE) as server:
            client = await stack.enter_async_context(Peer(bob, connect=server.addresses))
            await until(lambda: client.connected)
        await until(lambda: client.failures)
        bob.append("while you were away")
        async with Peer(alice, listen=server.addresses[0]):
            await arrival(alice, {"bob": 1})


async def test_a_wait_grows_until_a_link_outlasts_it_and_is_long_after_an_error(
    alice: Scuttleup, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = asyncio.sleep
    waits: list[float] = []
    lost, wrong = scuttleup.ConnectionLost("lost"), scuttleup.ProtocolError("wrong")
    # What each exchange ends with, or how many seconds it takes.
    exchanges: Iterator[Any] = iter([lost, lost, 0, 1, wrong, 0, DatabaseError("enough")])

    async def wait(delay: float) -> None:
        if delay:
            waits.append(delay)
        await sleep(0)

    async def replicate(make_stream: Any, *_: object) -> scuttleup.Replicated:
        make_stream(wake=lambda: None).close()
        what = next(exchanges)
        if isinstance(what, Exception):
            raise what
        await sleep(what)
        return scuttleup.Replicated(0, 0, {})

    for name, value in (("FIRST_DELAY", 0.2), ("LONGEST_DELAY", 0.8), ("ERROR_DELAY", 99)):
        monkeypatch.setattr(scuttleup.peer, name, value)
    monkeypatch.setattr(random, "uniform", max)
    monkeypatch.setattr(asyncio, "sleep", wait)
    monkeypatch.setattr(scuttleup.peer, "replicate", replicate)
    with socket.create_server(HERE) as remote, pytest.raises(DatabaseError, match="enough"):
        async with Peer(alice, connect=[remote.getsockname()]) as peer:
            await peer.wait()
    assert waits == [0.2, 0.4, 0.8, 0.2, 99, 0.8]


async def test_a_system_without_threads_to_spare_is_tried_again(
    alice: Scuttleup, bob: Scuttleup, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_thread = Mock(side_effect=RuntimeError("can't start new thread"))
    async with Peer(alice, listen=HERE) as server:
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        async with Peer(bob, connect=server.addresses) as client:
            await until(lambda: client.failures)
            monkeypatch.undo()
            await until(lambda: client.connected)


# --- Strangers ---


async def test_what_one_remote_does_wrong_is_told_and_ends_no_other(
    alice: Scuttleup, bob: Scuttleup, caplog: pytest.LogCaptureFixture
) -> None:
    async with Peer(alice, listen=HERE) as server, Peer(bob, connect=server.addresses) as client:
        await until(lambda: client.connected)
        reader, writer = await asyncio.open_connection(*server.addresses[0])
        host, port = writer.get_extra_info("sockname")
        writer.write(b"\x04GET / HTTP/1.1\r\n\r\n")
        await reader.read()
        await until(lambda: told(caplog, f"{host}:{port}: "))
        bob.append("still there?")
        await arrival(alice, {"bob": 1})
        writer.close()


async def test_a_mistake_of_ours_ends_one_exchange_and_is_told(
    alice: Scuttleup, bob: Scuttleup, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistakes: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: mistakes.append(context))
    fail_once = chain([ZeroDivisionError], repeat(DEFAULT))
    commit = Mock(wraps=alice._store.commit, side_effect=fail_once)
    monkeypatch.setattr(alice._store, "commit", commit)
    bob.append("comes with the next exchange")
    async with Peer(alice, listen=HERE) as server, Peer(bob, connect=server.addresses):
        await arrival(alice, {"bob": 1})
        assert server.failures == 1
    assert isinstance(mistakes[0]["exception"], ZeroDivisionError)


async def served(address: tuple[str, int]) -> StreamWriter | None:
    """A connection that got a handshake; None if it was closed at once."""
    reader, writer = await asyncio.open_connection(*address)
    with suppress(ConnectionError):
        if await reader.read(1):
            return writer
    writer.close()
    return None


async def test_a_host_gets_a_quarter_of_the_places_and_one_too_many_is_told_once(
    alice: Scuttleup, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Peer(alice, listen=[HERE, HERE], max_connections=8) as peer:
        address, other = peer.addresses
        first, second = await served(address), await served(address)
        assert first
        assert second
        assert not await served(other)
        assert not await served(address)
        assert len(told(caplog, "too many")) == 1
        first.close()
        await until(lambda: len(peer._sessions) == 1)
        third = await served(address)
        monkeypatch.setattr(scuttleup.peer, "_host_of", lambda _: "another host")
        fourth = await served(other)
        for writer in (second, third, fourth):
            assert writer
            writer.close()


def test_a_host_of_ipv6_has_a_network_and_an_address_keeps_its_zone() -> None:
    host, address = scuttleup.peer._host_of, scuttleup.peer._address_of
    assert host(("2001:db8::1%lo", 1)) == host(("2001:db8::ffff:0:0:2", 2)) != host(("::1", 1))
    [(index, name), *_] = socket.if_nameindex()
    assert address(("fe80::1", 2014, 0, index)) == (f"fe80::1%{name}", 2014)


async def test_who_does_not_finish_the_tls_handshake_is_closed(
    alice: Scuttleup, tls: Tls, limit: Limit
) -> None:
    limit(CONNECT_SECONDS=0.1)
    async with Peer(alice, listen=HERE, tls=tls) as peer:
        assert not await served(peer.addresses[0])


async def test_strangers_do_not_take_the_places_of_those_we_connect_to(
    alice: Scuttleup, bob: Scuttleup
) -> None:
    bob.append("hello")
    with socket.create_server(HERE) as free:  # for a port that nobody listens on yet
        address = free.getsockname()
    async with Peer(alice, listen=HERE, connect=[address], max_connections=2) as peer:
        stranger = await served(peer.addresses[0])
        assert stranger
        assert not await served(peer.addresses[0])
        async with Peer(bob, listen=address):
            await arrival(alice, {"bob": 1})
        stranger.close()


@pytest.fixture
def few_descriptors() -> Iterator[Callable[[int], None]]:
    """Lowers the limit of this process: it can open so many more descriptors."""
    if sys.platform != "linux":
        pytest.skip("only Linux has a folder that lists what is open")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def lower(more: int) -> None:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + more, before[1]))

    yield lower
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_out_of_descriptors_it_serves_again_when_there_are_some(
    alice: Scuttleup, few_descriptors: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    async with Peer(alice, listen=HERE) as peer:
        with socket.socket() as stranger, ExitStack() as rest:
            stranger.setblocking(False)
            few_descriptors(5)
            with suppress(OSError):
                while True:
                    rest.callback(os.close, os.dup(0))
            await loop.sock_connect(stranger, peer.addresses[0])
            await until(lambda: told(caplog, "cannot accept a connection: Too many open files"))
            rest.close()
            assert await loop.sock_recv(stranger, 1)


async def test_strangers_cannot_take_the_descriptors_of_those_we_connect_to(
    alice: Scuttleup, bob: Scuttleup
) -> None:
    with socket.create_server(HERE) as free:  # for a port that nobody listens on yet
        address = free.getsockname()
    async with Peer(alice, listen=HERE, connect=[address] * 10) as peer:
        os.close(lowest_free := os.dup(0))
        peer._first_spare = lowest_free + 30  # bob, who is in this process, needs some as well
        # In a process of their own, where they take none of our descriptors.
        program = f"""if True:
            import socket
            strangers = [socket.create_connection({peer.addresses[0]}) for _ in range(40)]
            print(flush=True)
            input()
        """
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as strangers:
            await asyncio.to_thread(strangers.stdout.readline)  # type: ignore[union-attr]
            await until(lambda: len(peer.connected) > 10)
            async with Peer(bob, listen=address):
                await until(lambda: address in peer.connected)
            strangers.kill()


async def test_the_soft_limit_of_descriptors_is_raised_as_far_as_that_needs(
    alice: Scuttleup, few_descriptors: Callable[[int], None]
) -> None:
    few_descriptors(200)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    async with Peer(alice, listen=HERE, max_connections=10) as peer:
        assert peer._first_spare == max(soft, 266) - 64
    async with Peer(alice, listen=HERE, max_connections=1000) as peer:
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1256
        assert peer._first_spare == 1192


def test_an_event_is_told_once_in_its_time_and_then_with_a_count(
    caplog: pytest.LogCaptureFixture, limit: Limit
) -> None:
    caplog.set_level(logging.INFO, "scuttleup")
    limit(MAX_TOLD=3)
    events = Events()
    for n in range(10):
        events.tell("info", "came", f"alice {n}", "alice")
    events.tell("info", "left", "alice left", "alice")
    events.tell("info", "came", "bob came", "bob")
    for n in range(10):
        events.tell("info", "came", f"stranger {n}", str(n))
    assert told(caplog, "") == ["alice 0", "alice left", "bob came", "stranger 0"]
    limit(TELL_SECONDS=0)
    events.tell("info", "came", "alice again", "alice")
    assert told(caplog, "")[4:] == [
        "alice 9 (9 of this kind in 0 seconds)",
        "stranger 9 (9 of this kind in 0 seconds)",
        "alice again",
    ]


# --- TLS ---


@pytest.fixture
def tls(new_certificates: NewCertificates) -> Tls:
    return load_tls(*new_certificates())


async def test_with_tls_those_with_a_certificate_meet_and_strangers_do_not(
    alice: Scuttleup, bob: Scuttleup, tls: Tls, new_certificates: NewCertificates
) -> None:
    alice.append("secret")
    async with Peer(alice, listen=HERE, tls=tls) as server:
        for other in (None, load_tls(*new_certificates())):
            async with Peer(bob, connect=server.addresses, tls=other, live=False) as client:
                await client.wait()
                assert client.failures
                assert bob.head == {}
        async with Peer(bob, connect=server.addresses, tls=tls, live=False) as client:
            assert (await client.wait())[:2] == (0, 1)


async def test_a_tls_handshake_that_ends_is_told_with_a_reason(
    alice: Scuttleup, tls: Tls, caplog: pytest.LogCaptureFixture
) -> None:
    async with Peer(alice, listen=HERE, tls=tls) as server:
        socket.create_connection(server.addresses[0]).close()
        await until(lambda: server.failures)
    assert any(text.endswith(": the connection was closed") for text in caplog.messages)


def test_files_that_are_no_certificates_are_named(new_certificates: NewCertificates) -> None:
    cert, key, ca = new_certificates()
    for files in ((key, cert, ca), (cert, key, "missing.pem"), (cert, key, "")):
        with pytest.raises(ValueError, match=f"certificates {re.escape(', '.join(files))}: "):
            load_tls(*files)


# --- Wrong arguments, and addresses that cannot be had ---


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"logs": "logs.db", "listen": HERE}, TypeError, "'logs.db'"),
        ({"listen": "127.0.0.1:2014"}, TypeError, "127.0.0.1:2014"),
        ({"listen": ("127.0.0.1", "2014")}, TypeError, "'2014'"),
        ({"listen": ("", 2014)}, ValueError, "''"),
        ({"connect": ("127.0.0.1", 2014)}, TypeError, "'127.0.0.1'"),
        ({"connect": [("127.0.0.1", 65536)]}, ValueError, "65536"),
        ({"connect": [("127.0.0.1", -1)]}, ValueError, "-1"),
        ({"listen": HERE, "mode": "pushpull"}, ValueError, "pushpull"),
        ({"listen": HERE, "max_connections": 0}, ValueError, "not 0"),
        ({"listen": HERE, "max_connections": "1"}, ValueError, "'1'"),
        ({"listen": HERE, "tls": ("a", "b", "c")}, TypeError, "load_tls"),
        ({"connect": [HERE, HERE], "max_connections": 1}, ValueError, "2 addresses"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], error: type[Exception], named: str, logs: Scuttleup
) -> None:
    with pytest.raises(error, match=named):
        Peer(**{"logs": logs, **arguments})


async def test_an_address_that_it_cannot_listen_on_is_named(
    alice: Scuttleup, bob: Scuttleup
) -> None:
    async with Peer(bob, listen=HERE) as taken:
        for host, port in *taken.addresses, ("203.0.113.1", 0), ("a..b", 0), ("name.invalid", 0):
            with pytest.raises(ScuttleupError, match=f"cannot listen on {host}:{port}: ."):
                async with Peer(alice, listen=(host, port)):
                    pass


async def test_of_all_addresses_of_a_name_it_listens_on_each_or_on_none(
    alice: Scuttleup, bob: Scuttleup, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[socket.socket] = []
    create = socket.create_server

    def note(*args: Any, **options: Any) -> socket.socket:
        made.append(create(*args, **options))
        return made[-1]

    monkeypatch.setattr(socket, "create_server", note)
    async with Peer(bob, listen=HERE) as taken:
        found = [(socket.AF_INET, 0, 0, "", address) for address in (HERE, *taken.addresses)]
        monkeypatch.setattr(scuttleup.peer, "_resolve", AsyncMock(return_value=found))
        with pytest.raises(ScuttleupError, match="cannot listen"):
            async with Peer(alice, listen=HERE):
                pass
    assert [listener.fileno() for listener in made] == [-1, -1]
