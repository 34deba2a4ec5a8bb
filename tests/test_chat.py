"""The chat of the README, as it stands there, among its own kind and with the workshop's on Node.

The programs are real processes with real databases. Only the table of ports is replaced, so that
tests that run at the same time do not meet.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from interop import FOLDER, require_node
from readme import ROOT, block

import scuttleup

HOST = "127.0.0.1"
PROGRAM = block("python", containing='"username"')
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, in the order of their addresses as text."""
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = sorted((sock.getsockname()[1] for sock in sockets), key=str)
    for sock in sockets:
        sock.close()
    return ports


class Chat:
    """One who takes part: a running program, what it is told and what it prints."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def type(self, *lines: str) -> None:
        assert self.process.stdin
        self.process.stdin.write("".join(f"{line}\n" for line in lines).encode())

    async def sees(self, *lines: str) -> None:
        """Wait for the next lines, which come in any order, since the logs of several do."""
        assert self.process.stdout
        assert self.process.stderr
        found = []
        for _ in lines:
            line = await self.process.stdout.readline()
            assert line, f"the program ended: {(await self.process.stderr.read()).decode()}"
            found.append(line.decode().rstrip())
        assert sorted(found) == sorted(lines)

    async def interrupt(self) -> tuple[int | None, bytes, bytes]:
        """The exit status, and what it printed since the last line that was waited for."""
        self.process.send_signal(signal.SIGINT)
        out, err = await self.process.communicate()
        return self.process.returncode, out, err

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.communicate()


Start = Callable[..., Awaitable[Chat]]


@asynccontextmanager
async def chats(folder: Path, ports: dict[str, int] | None = None) -> AsyncIterator[Start]:
    """Starts chats, `await start("bob", "alice")`, whose databases are in `folder`."""
    ports = ports or dict(zip(("alice", "bob", "carol"), free_ports(3), strict=True))
    program, tables = re.subn(r"^PORTS = .*$", f"PORTS = {ports}", PROGRAM, flags=re.MULTILINE)
    assert tables == 1
    async with AsyncExitStack() as stack:

        async def start(*args: object, command: tuple[str, ...] = ()) -> Chat:
            process = await asyncio.create_subprocess_exec(
                *(command or (sys.executable, "-c", program)),
                *map(str, args),
                cwd=folder,
                env=ENVIRONMENT,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
            )
            chat = Chat(process)
            stack.push_async_callback(chat.kill)
            return chat

        yield start


# --- Among its own kind ---


def test_it_fits_on_a_screen() -> None:
    assert len(PROGRAM.splitlines()) <= 30


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows cannot send a Ctrl-C to one process alone"
)
async def test_two_see_what_was_typed_and_what_is_typed_and_one_ctrl_c_ends_each(
    tmp_path: Path,
) -> None:
    async with chats(tmp_path) as start:
        alice = await start("alice")
        alice.type("hello?", "anybody?")
        bob = await start("bob", "alice")
        await bob.sees("alice> hello?", "alice> anybody?")
        bob.type("it's me", "schön ☃")
        await alice.sees("bob> it's me", "bob> schön ☃")
        alice.type("good")
        await bob.sees("alice> good")
        for chat in bob, alice:
            assert await chat.interrupt() == (0, b"", b"")


async def test_one_of_three_is_killed_and_gets_what_it_missed(tmp_path: Path) -> None:
    async with chats(tmp_path) as start:
        alice = await start("alice")
        bob = await start("bob", "alice")
        carol = await start("carol", "alice")
        bob.type("one")
        await asyncio.gather(alice.sees("bob> one"), carol.sees("bob> one"))
        await bob.kill()
        alice.type("two")
        await carol.sees("alice> two")
        carol.type("three")
        await alice.sees("carol> three")
        bob = await start("bob", "alice")
        await bob.sees("bob> one", "alice> two", "carol> three")
        bob.type("four")
        await asyncio.gather(alice.sees("bob> four"), carol.sees("bob> four"))
        # Who was connected to comes back, and those who connected to it find it again.
        await alice.kill()
        alice = await start("alice")
        await alice.sees("bob> one", "alice> two", "carol> three", "bob> four")
        bob.type("five")
        await asyncio.gather(alice.sees("bob> five"), carol.sees("bob> five"))


HOSTILE = [
    b"",
    b"no JSON",
    b"NaN",
    b"\xff\xfe",
    b"[" * 100_000,
    b"9" * 5000,
    b"null",
    b"[1, 2]",
    b'"text"',
    b"{}",
    b'{"username": "mallory"}',
    b'{"username": 7, "message": "x"}',
    b'{"username": "mallory", "message": ["x"]}',
    # This one is of the right form, and wants to clear the screen and to write on a new line.
    b'{"username": "bob\\u001b[2J", "message": "\\r\\nalice> \\u202e\\ud800\\u0000"}',
]


async def test_entries_of_any_other_form_neither_end_it_nor_reach_the_terminal(
    tmp_path: Path,
) -> None:
    with scuttleup.open(tmp_path / "alice.db") as logs:
        logs.write([("mallory", seq, entry) for seq, entry in enumerate(HOSTILE, 1)])
    async with chats(tmp_path) as start:
        alice = await start("alice")
        await alice.sees(r"bob\x1b[2J> \r\nalice> \u202e\ud800\x00")
        bob = await start("bob", "alice")
        bob.type("hello")
        await alice.sees("bob> hello")


# --- With the swarm module of the workshop on Node ---


async def hear(reader: StreamReader) -> bytes:
    [length] = await reader.readexactly(1)  # a varint, and no address has 128 bytes
    return await reader.readexactly(length)


async def pass_on(reader: StreamReader, writer: StreamWriter) -> None:
    while data := await reader.read(2**16):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def let_in(to: int, me: bytes, reader: StreamReader, writer: StreamWriter) -> None:
    """Connect one who comes to the address `me` with port `to`, but first greet each other.

    This is how `fully-connected-topology` 1.1.1 does that: each side sends its own address, the one
    that calls first. If the address of the one that calls sorts higher, it sends it once more. Such
    a peer calls only once if nobody answers its greeting, so it is answered even if `to` is away.
    """
    with suppress(OSError, asyncio.IncompleteReadError):  # either may be away, or leave
        caller = await hear(reader)
        writer.write(bytes([len(me)]) + me)
        if caller > me:
            await hear(reader)
        far_reader, far_writer = await asyncio.open_connection(HOST, to)
        try:
            await asyncio.gather(pass_on(reader, far_writer), pass_on(far_reader, writer))
        finally:
            far_writer.close()
    writer.close()


async def test_it_talks_with_node_peers_in_the_swarm_of_the_workshop(tmp_path: Path) -> None:
    """Zoe's address sorts above that of alice, and ann's below it. Only alice knows both."""
    ann_port, swarm_port, zoe_port, alice_port = free_ports(4)
    swarm = f"{HOST}:{swarm_port}"
    gateway = await asyncio.start_server(
        partial(let_in, alice_port, swarm.encode()), HOST, swarm_port
    )
    async with gateway, chats(tmp_path, {"alice": alice_port}) as start:

        async def start_node(name: str, port: int) -> Chat:
            command = (require_node(), str(FOLDER / "chat.js"))
            return await start(name, f"{name}.db", f"{HOST}:{port}", swarm, command=command)

        ann = await start_node("ann", ann_port)
        zoe = await start_node("zoe", zoe_port)
        ann.type("before")
        await ann.sees("ann> before")
        alice = await start("alice")
        await asyncio.gather(alice.sees("ann> before"), zoe.sees("ann> before"))
        alice.type("schön ☃")
        await asyncio.gather(ann.sees("alice> schön ☃"), zoe.sees("alice> schön ☃"))
        await ann.kill()
        zoe.type("now")
        await asyncio.gather(zoe.sees("zoe> now"), alice.sees("zoe> now"))
        ann = await start_node("ann", ann_port)
        await ann.sees("ann> before", "alice> schön ☃", "zoe> now")
        ann.type("back")
        await asyncio.gather(*(chat.sees("ann> back") for chat in (ann, alice, zoe)))
