"""What strangers can cost a peer: rows of `benchmark.py`. Figures are of the peer's own process."""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import psutil

import scuttleup
from scuttleup import Peer
from scuttleup.messages import encode_changes, encode_handshake

FORK = multiprocessing.get_context("fork")  # before anything is opened
HELLO = encode_handshake("remote", {}, "sync")
MIB = 2**20


def tiny_logs(seq: int) -> bytes:
    return HELLO + b"".join(encode_changes(f"{n:06x}", seq, [b"x"]) for n in range(100_000))


def two_logs_by_turns() -> bytes:
    entries = (encode_changes(peer, seq, [b"x"]) for seq in range(1, 50_001) for peer in "ab")
    return HELLO + b"".join(entries)


def handshake(digests: int) -> bytes:
    return encode_handshake("remote", {f"{n:032x}": 5 for n in range(digests)}, "sync")


INPUTS: dict[str, Callable[[], bytes]] = {
    "100,000 logs of one entry": lambda: tiny_logs(1),
    "100,000 logs whose only entry is number 1000": lambda: tiny_logs(1000),
    "two logs by turns, 100,000 entries": two_logs_by_turns,
    "a handshake of 300,000 digests": lambda: handshake(300_000),
}


def longest_rounds() -> Iterator[tuple[str, str, str]]:
    """The longest round of the event loop, in processor time, for what a stranger may send."""
    for name, make in INPUTS.items():
        figures = [f"{longest_round(make(), followers) * 1e3:.0f} ms" for followers in (0, 50)]
        yield f"longest round: {name}", f"{figures[0]}, with 50 followers {figures[1]}", "< 100 ms"


def longest_round(data: bytes, followers: int) -> float:
    """Seconds of the longest round while a remote sends `data`, which others follow."""

    async def run(port: Any, done: Any) -> float:
        times = []
        with tempfile.TemporaryDirectory() as folder, scuttleup.open(folder, id="us") as logs:
            async with Peer(logs, listen=("127.0.0.1", 0)) as peer:
                port.send(peer.addresses[0][1])
                while not done.poll():
                    times.append(time.thread_time())
                    await asyncio.sleep(0)
        return max(after - before for before, after in pairwise(times))

    port, its_port = FORK.Pipe()
    done, its_done = FORK.Pipe()
    remotes = FORK.Process(target=send_and_follow, args=(its_port, its_done, data, followers))
    remotes.start()
    longest = asyncio.run(run(port, done))
    remotes.join()
    return longest


def send_and_follow(port: Any, done: Any, data: bytes, followers: int) -> None:
    number = port.recv()
    with selectors.DefaultSelector() as selector:
        for follower in range(followers):
            sock = socket.create_connection(("127.0.0.1", number))
            sock.sendall(encode_handshake(f"follower {follower}", {}, "sync"))
            selector.register(sock, selectors.EVENT_READ)
        sender = threading.Thread(target=send, args=(number, data))
        sender.start()
        while sender.is_alive() or selector.select(0.5):
            for key, _ in selector.select(0.1):
                key.fileobj.recv(MIB)  # type: ignore[union-attr]
    done.send("all is sent and read")


def send(port: int, data: bytes) -> None:
    """Send it, and wait until the peer has had it."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(MIB):
            pass


def huge_handshakes() -> Iterator[tuple[str, str, str]]:
    """Memory and time that six handshakes of 16 MiB cost, one after another."""
    # 1.86 million digests of three letters; there are no more than 830,584 such ids.
    ids = (bytes((33 + n % 94, 33 + n // 94 % 94, 33 + n // 8836 % 94)) for n in range(1_860_000))
    message = b"\x0a\x06remote" + b"".join(b"\x12\x07\x0a\x03%b\x10\x05" % id for id in ids)
    length = len(message)
    varint = bytes(
        (length >> shift & 0x7F | (0x80 if shift < 21 else 0)) for shift in (0, 7, 14, 21)
    )
    with RunningPeer() as (process, port):
        before = process.memory_info().rss
        most = waits = 0.0
        for _ in range(6):
            sender = threading.Thread(target=send, args=(port, varint + message))
            sender.start()
            while sender.is_alive():
                start = time.perf_counter()
                with socket.create_connection(("127.0.0.1", port)) as probe:
                    probe.recv(1)
                waits = max(waits, time.perf_counter() - start)
                most = max(most, process.memory_info().rss - before)
                time.sleep(0.01)
        left = process.memory_info().rss - before
    work = "six handshakes of 16 MiB, one after another"
    yield f"memory after {work}", f"{left / MIB:.0f} MiB", "< 100 MiB"
    yield "memory meanwhile, at the most", f"{most / MIB:.0f} MiB", "< 400 MiB"
    yield "longest wait of another connection meanwhile", f"{waits:.2f} s", "< 1 s"


def idle_connections(count: int = 1000, seconds: float = 5) -> Iterator[tuple[str, str, str]]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with RunningPeer() as (process, port), ExitStack() as opened:
        before = process.memory_info().rss
        for n in range(count):
            remote = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
            remote.sendall(encode_handshake(f"remote {n}", {}, "sync"))
            assert remote.recv(1024)  # the peer has accepted it and said its own handshake
        memory = process.memory_info().rss - before
        used = sum(process.cpu_times()[:2])
        time.sleep(seconds)
        used = sum(process.cpu_times()[:2]) - used
    figure = f"{memory / count / 1024:.0f} KiB each, {100 * used / seconds:.1f} % of a processor"
    yield f"{count:,} idle connections", figure, "–"


class RunningPeer(ExitStack):
    """`with RunningPeer() as (process, port)`: the command, in a process of its own."""

    def __enter__(self) -> tuple[psutil.Process, int]:  # type: ignore[override]
        folder = self.enter_context(tempfile.TemporaryDirectory())
        peer = self.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "scuttleup", "replicate", "--listen", "0"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        self.callback(peer.terminate)
        assert peer.stderr
        port = int(peer.stderr.readline().rpartition(":")[2])
        threading.Thread(target=peer.stderr.read, daemon=True).start()
        return psutil.Process(peer.pid), port
