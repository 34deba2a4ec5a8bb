"""`Peer`: connected for as long as its `async with` runs, whoever comes, breaks off or attacks."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from waiting import LIMIT, arrival, until

import scuttleup.peer
from scuttleup import (
    ConnectionLost,
    DatabaseError,
    Peer,
    ProtocolError,
    Replicated,
    Scuttleup,
    ScuttleupError,
    Tls,
    load_tls,
)
from scuttleup.changes import Run

if sys.platform != "win32":
    import resource

HERE = ("127.0.0.1", 0)

NewLogs = Callable[..., Scuttleup]

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
        for _, port in server.addresses:
            assert port > 0
        async with Peer(bob, connect=[("localhost", server.addresses[0][1])]) as client:
            await until(lambda: client.connected)


async def test_not_live_it_ends_when_all_is_exchanged(alice: Scuttleup, bob: Scuttleup) -> None:
    alice.extend(["1", "2", "3"])
    bob.append("4")
    async with (
        Peer(alice, listen=HERE, live=False) as server,
        Peer(bob, connect=server.addresses, live=False) as client,
    ):
        assert (await client.wait())[:2] == (1, 3)
        assert (await server.wait())[:2] == (3, 1)
    assert (client.failures, server.failures) == (0, 0)
    assert alice.head == bob.head


async def test_not_live_a_peer_that_is_not_there_is_a_failure(alice: Scuttleup) -> None:
    async with Peer(alice, connect=[("127.0.0.1", 1)], live=False) as peer:
        assert (await peer.wait())[:2] == (0, 0)
        assert peer.failures == 1


# --- How it ends ---


def descriptors() -> set[str]:
    """What is open, apart from the folder that lists it."""
    if sys.platform != "linux":
        pytest.skip("only Linux has a folder that lists what is open")
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return {entry for entry in found if "/proc/" not in entry}


async def test_leaving_leaves_no_task_and_no_socket(
    alice: Scuttleup, bob: Scuttleup, new_logs: NewLogs, tls: Tls
) -> None:
    carol = new_logs("carol")
    with socket.create_server(HERE) as full:  # a remote that never says anything
        tasks, before = asyncio.all_tasks(), descriptors()
        async with (
            Peer(alice, listen=HERE) as server,
            Peer(bob, connect=[*server.addresses, full.getsockname()]) as client,
            Peer(carol, listen=HERE, tls=tls) as secure,
        ):
            strangers = [
                await asyncio.open_connection(*address)
                for address in (*server.addresses, *secure.addresses)
            ]
            await until(lambda: len(server.connected) == len(client.connected) == 2)
            await until(lambda: len(secure._links) == 1)
        assert asyncio.all_tasks() == tasks
        assert len(descriptors() - before) == len(strangers)
        for _, writer in strangers:
            writer.close()


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
    """As on Windows."""

    def add_reader(*_: object) -> None:
        raise NotImplementedError

    bob.append("hello")
    async with Peer(alice, listen=HERE) as server:
        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", add_reader)
        async with Peer(bob, connect=server.addresses):
            await arrival(alice, {"bob": 1})


async def test_it_ends_when_the_logs_are_closed(alice: Scuttleup, bob: Scuttleup) -> None:
    async with Peer(alice, listen=HERE) as server, Peer(bob, connect=server.addresses) as client:
        await until(lambda: server.connected and client.connected)
        threading.Thread(target=bob.close).start()
        await client.wait()
        alice.close()
        await server.wait()
        await asyncio.wait({*server._acceptors, *server._links})
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
    cause = OSError("no space")

    def fail(*_: object, **__: object) -> int:
        raise DatabaseError("alice.db cannot be written") from cause

    monkeypatch.setattr(alice._store, "write_proven", fail)
    bob.append("too much")
    with pytest.raises(DatabaseError, match="cannot be written") as caught:
        async with Peer(alice, listen=HERE) as server, Peer(bob, connect=server.addresses):
            await asyncio.get_running_loop().create_future()  # something that has no end
    assert caught.value.__cause__ is cause
    current = asyncio.current_task()
    assert current
    assert not current.cancelling()  # whoever catches the error can go on


async def test_an_error_of_the_body_stays_what_it_is(alice: Scuttleup) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with Peer(alice, listen=HERE):
            raise KeyError("mine")


async def test_a_name_server_that_does_not_answer_does_not_keep_it(
    alice: Scuttleup, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def look_up(*_: object, **__: object) -> list[Any]:
        asked.set()
        answer.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with Peer(alice, connect=[("example.invalid", 1)]):
        await until(asked.is_set)
    answer.set()


# --- Coming back ---


async def test_it_comes_back_to_a_peer_that_was_away(
    alice: Scuttleup, bob: Scuttleup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scuttleup.peer, "FIRST_DELAY", 0.01)
    async with Peer(alice, listen=HERE) as server:
        address = server.addresses[0]
        client = await Peer(bob, connect=[address]).__aenter__()
        await until(lambda: client.connected)
    await until(lambda: client.failures)
    bob.append("while you were away")
    async with Peer(alice, listen=address):
        await arrival(alice, {"bob": 1})
        await client.__aexit__(None, None, None)


async def test_a_wait_grows_until_a_link_outlasts_it_and_is_long_after_an_error(
    alice: Scuttleup, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = asyncio.sleep
    waits: list[float] = []
    exchanges = [ConnectionLost("a"), ConnectionLost("b"), None, "long", ProtocolError("c"), None]
    future = asyncio.get_running_loop().create_future()

    async def wait(delay: float) -> None:
        if delay:
            waits.append(delay)
            if len(waits) == len(exchanges):
                future.set_result(None)
                await sleep(LIMIT)
        await sleep(0)

    async def replicate(*_: object, **__: object) -> Replicated:
        what = exchanges[len(waits)]
        if isinstance(what, Exception):
            raise what
        if what == "long":
            await sleep(1)
        return alice.create_replication_stream().replicated

    for name, value in (("FIRST_DELAY", 0.2), ("LONGEST_DELAY", 0.8), ("ERROR_DELAY", 99)):
        monkeypatch.setattr(scuttleup.peer, name, value)
    monkeypatch.setattr(random, "uniform", max)
    monkeypatch.setattr(asyncio, "sleep", wait)
    monkeypatch.setattr(alice, "replicate", replicate)
    with socket.create_server(HERE, backlog=len(exchanges)) as remote:
        async with Peer(alice, connect=[remote.getsockname()]):
            await future
    assert waits == [0.2, 0.4, 0.8, 0.2, 99, 0.8]


async def test_a_system_without_threads_to_spare_is_tried_again(
    alice: Scuttleup, bob: Scuttleup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(scuttleup.peer, "FIRST_DELAY", 0.01)
    async with Peer(alice, listen=HERE) as server:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            client = await Peer(bob, connect=server.addresses).__aenter__()
            await until(lambda: client.failures)
        await until(lambda: client.connected)
        await client.__aexit__(None, None, None)


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
    alice: Scuttleup, new_logs: NewLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistakes: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: mistakes.append(context))
    write = alice._store.write_proven

    def fail_for_mallory(runs: list[Run], *others: Any) -> int:
        return 1 // 0 if runs and runs[0].peer == "mallory" else write(runs, *others)

    monkeypatch.setattr(alice._store, "write_proven", fail_for_mallory)
    bob, mallory = new_logs("bob"), new_logs("mallory")
    async with Peer(alice, listen=HERE) as server, Peer(bob, connect=server.addresses) as client:
        await until(lambda: client.connected)
        mallory.append("what we do not expect")
        async with Peer(mallory, connect=server.addresses):
            await until(lambda: mistakes)
        bob.append("still there?")
        await arrival(alice, {"bob": 1})
    assert isinstance(mistakes[0]["exception"], ZeroDivisionError)


StreamPair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def served(address: tuple[str, int]) -> StreamPair | None:
    """A connection that got a handshake; None if it was closed at once."""
    reader, writer = await asyncio.open_connection(*address)
    with suppress(ConnectionError):
        if await reader.read(1):
            return reader, writer
    writer.close()
    return None


async def test_one_connection_too_many_is_closed_at_once_and_told_once(
    alice: Scuttleup, caplog: pytest.LogCaptureFixture
) -> None:
    async with Peer(alice, listen=HERE, max_connections=2) as peer:
        [address] = peer.addresses
        first, second = await served(address), await served(address)
        assert first
        assert second
        assert not await served(address)
        assert not await served(address)
        assert len(told(caplog, "too many")) == 1
        first[1].close()
        await until(lambda: len(peer._links) == 1)
        third = await served(address)
        assert third
        for _, writer in (second, third):
            writer.close()


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
        stranger[1].close()


@pytest.fixture
def few_descriptors() -> Iterator[Callable[[int], None]]:
    """Lowers the limit of this process to that many more than it has open."""
    if sys.platform != "linux":
        pytest.skip("only Linux has a folder that lists what is open")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def lower(more: int) -> None:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + more, before[1]))

    yield lower
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_out_of_descriptors_it_serves_again_when_there_are_some(
    alice: Scuttleup,
    few_descriptors: Callable[[int], None],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
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
    assert capfd.readouterr() == ("", "")


async def test_strangers_cannot_take_the_descriptors_of_those_we_connect_to(
    alice: Scuttleup, bob: Scuttleup
) -> None:
    with socket.create_server(HERE) as place:
        address = place.getsockname()
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


async def test_an_event_is_told_once_in_its_time_and_then_with_a_count(
    alice: Scuttleup, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "scuttleup")
    monkeypatch.setattr(scuttleup.peer, "TELL_SECONDS", 0.2)
    monkeypatch.setattr(scuttleup.peer, "MAX_TOLD", 3)
    events = scuttleup.peer._Events()
    for n in range(10):
        events.tell(logging.INFO, "came", f"alice {n}", who="alice")
    events.tell(logging.INFO, "left", "alice left", who="alice")
    events.tell(logging.INFO, "came", "bob came", who="bob")
    for n in range(10):
        events.tell(logging.INFO, "came", f"stranger {n}", who=str(n))
    assert told(caplog, "") == ["alice 0", "alice left", "bob came", "stranger 0"]
    await until(lambda: len(told(caplog, "")) == 6)
    assert told(caplog, "of this kind") == [
        "alice 9 (9 of this kind in 0 seconds)",
        "stranger 9 (9 of this kind in 0 seconds)",
    ]
    await until(lambda: not events._timers)
    events.tell(logging.INFO, "came", "alice again", who="alice")
    assert told(caplog, "again")
    events.close()


async def test_it_prints_nothing(
    alice: Scuttleup, bob: Scuttleup, capfd: pytest.CaptureFixture[str]
) -> None:
    # As in a program that has not set up any logging.
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        async with (
            Peer(alice, listen=HERE) as server,
            Peer(bob, connect=[*server.addresses, ("127.0.0.1", 1)]) as client,
        ):
            await until(lambda: client.failures and client.connected)
    finally:
        root.handlers = handlers
    assert capfd.readouterr() == ("", "")


# --- TLS ---


def make_certificates(folder: Path, name: str, ca: trustme.CA) -> list[str]:
    cert = ca.issue_cert("not.where.it.runs.example")
    paths = [str(folder / f"{name}{end}") for end in (".pem", "-key.pem", "-ca.pem")]
    cert.cert_chain_pems[0].write_to_path(paths[0])
    cert.private_key_pem.write_to_path(paths[1])
    ca.cert_pem.write_to_path(paths[2])
    return paths


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return load_tls(*make_certificates(tmp_path, "us", trustme.CA()))


async def test_with_tls_those_with_a_certificate_meet_and_strangers_do_not(
    alice: Scuttleup, bob: Scuttleup, tls: Tls, tmp_path: Path
) -> None:
    alice.append("secret")
    theirs = load_tls(*make_certificates(tmp_path, "stranger", trustme.CA()))
    async with Peer(alice, listen=HERE, tls=tls) as server:
        for other in (None, theirs):
            async with Peer(bob, connect=server.addresses, tls=other, live=False) as client:
                await client.wait()
                assert client.failures
                assert bob.head == {}
        async with Peer(bob, connect=server.addresses, tls=tls, live=False) as client:
            assert (await client.wait())[:2] == (0, 1)


def test_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    cert, key, ca = make_certificates(tmp_path, "us", trustme.CA())
    for files in ((key, cert, ca), (cert, key, "missing.pem"), (cert, key, "")):
        with pytest.raises(ValueError, match="certificates") as caught:
            load_tls(*files)
        assert str(files[2]) in str(caught.value)


# --- Wrong arguments, and addresses that cannot be had ---


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({}, ValueError, "needs an address"),
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
        Peer(logs, **arguments)


@pytest.mark.parametrize("address", [("203.0.113.1", 0), ("a..b", 0), ("name.invalid", 0)])
async def test_an_address_that_it_cannot_listen_on_is_named(
    alice: Scuttleup, address: tuple[str, int]
) -> None:
    with pytest.raises(ScuttleupError, match=f"cannot listen on {address[0]}:0: ."):
        async with Peer(alice, listen=address):
            pass


async def test_two_peers_cannot_listen_on_one_address(alice: Scuttleup, bob: Scuttleup) -> None:
    async with Peer(alice, listen=HERE) as peer:
        with pytest.raises(ScuttleupError, match=rf"cannot listen on {HERE[0]}:\d+: ."):
            async with Peer(bob, listen=peer.addresses[0]):
                pass


# --- Whole programs ---

SERVER = """
import asyncio
import scuttleup

async def serve(logs):
    async with scuttleup.Peer(logs, listen=("127.0.0.1", 2014)) as peer:
        await peer.wait()

try:
    with scuttleup.open("alice.db") as logs:
        asyncio.run(serve(logs))
except KeyboardInterrupt:
    pass
"""
PROGRAMS = {
    "waits": SERVER,
    "follows": SERVER.replace(
        "await peer.wait()", "async for _ in logs.create_read_stream(live=True):\n            pass"
    ),
    "closes its logs": SERVER.replace(
        "        asyncio.run",
        "        import signal; signal.signal(signal.SIGINT, lambda *_: logs.close())\n"
        "        asyncio.run",
    ),
}


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows cannot send a Ctrl-C to one process alone"
)
@pytest.mark.parametrize("code", PROGRAMS.values(), ids=PROGRAMS)
async def test_one_ctrl_c_ends_a_server_in_silence(
    code: str, bob: Scuttleup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scuttleup.peer, "FIRST_DELAY", 0.01)
    with socket.create_server(HERE) as free:
        address = free.getsockname()
    with (
        subprocess.Popen(
            [sys.executable, "-c", code.replace("2014", str(address[1]))],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(scuttleup.__file__).parent.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as server,
        ExitStack() as failing,
    ):
        failing.callback(server.kill)
        async with Peer(bob, connect=[address] * 3) as peer:
            await until(lambda: len(peer.connected) == 3)
            with socket.create_connection(address):  # and one who says nothing
                server.send_signal(signal.SIGINT)
                said, _ = server.communicate(timeout=LIMIT)
        assert (server.returncode, said) == (0, b"")
