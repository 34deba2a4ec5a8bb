"""The chat of the README, as it stands there, among its own kind and with the workshop's on Node.

The programs are real processes with real databases. Only the table of ports is replaced, so that
tests that run at the same time do not meet.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest
from commands import Command
from interop import FOLDER, require_node
from readme import block
from waiting import start

import scuttleup

HOST = "127.0.0.1"
PROGRAM = block("python", containing='"username"')


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, in the order of their addresses as text."""
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = sorted((sock.getsockname()[1] for sock in sockets), key=str)
    for sock in sockets:
        sock.close()
    return ports


class Chat(Command):
    """One who takes part: a running program, what it is told and what it prints."""

    async def sees(self, *lines: str) -> None:
        """Wait for the next lines, which come in any order, since the logs of several do."""
        found = [await asyncio.wrap_future(start(self.stdout.readline)) for _ in lines]
        assert all(found), f"the program ended: {self.stderr.read()}"
        assert sorted(found) == sorted(f"{line}\n" for line in lines)

    def die(self) -> None:
        self.kill()
        self.wait()


def chats(**ports: int) -> Callable[..., Chat]:
    """Starts chats, `chat("bob", "alice")`, with these ports in the place of the README's."""
    source, tables = re.subn(r"^PORTS = .*$", f"PORTS = {ports}", PROGRAM, flags=re.MULTILINE)
    assert tables == 1
    return partial(Chat, program=("-c", source))


@pytest.fixture
def chat(in_a_folder_of_its_own: None) -> Callable[..., Chat]:
    alice, bob, carol = free_ports(3)
    return chats(alice=alice, bob=bob, carol=carol)


# --- Among its own kind ---


def test_it_fits_on_a_screen() -> None:
    assert len(PROGRAM.splitlines()) <= 30


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows cannot send a Ctrl-C to one process alone"
)
async def test_two_see_what_was_typed_and_what_is_typed_and_one_ctrl_c_ends_each(
    chat: Callable[..., Chat],
) -> None:
    alice = chat("alice")
    alice.type("hello?\nanybody?")
    bob = chat("bob", "alice")
    await bob.sees("alice> hello?", "alice> anybody?")
    bob.type("it's me\nschön ☃")
    await alice.sees("bob> it's me", "bob> schön ☃")
    alice.type("good")
    await bob.sees("alice> good")
    for each in bob, alice:
        each.send_signal(signal.SIGINT)
        assert (each.stdout.read(), each.result()) == ("", (0, "", ""))


async def test_one_of_three_is_killed_and_gets_what_it_missed(chat: Callable[..., Chat]) -> None:
    alice = chat("alice")
    bob, carol = chat("bob", "alice"), chat("carol", "alice")
    bob.type("one")
    await asyncio.gather(alice.sees("bob> one"), carol.sees("bob> one"))
    bob.die()
    alice.type("two")
    await carol.sees("alice> two")
    carol.type("three")
    await alice.sees("carol> three")
    bob = chat("bob", "alice")
    await bob.sees("bob> one", "alice> two", "carol> three")
    bob.type("four")
    await asyncio.gather(alice.sees("bob> four"), carol.sees("bob> four"))
    # Who was connected to comes back, and those who connected to it find it again.
    alice.die()
    alice = chat("alice")
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
    chat: Callable[..., Chat],
) -> None:
    with scuttleup.open("alice.db") as logs:
        logs.write([("mallory", seq, entry) for seq, entry in enumerate(HOSTILE, 1)])
    alice = chat("alice")
    await alice.sees(r"bob\x1b[2J> \r\nalice> \u202e\ud800\x00")
    bob = chat("bob", "alice")
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


@pytest.mark.usefixtures("in_a_folder_of_its_own")
async def test_it_talks_with_node_peers_in_the_swarm_of_the_workshop() -> None:
    """Zoe's address sorts above that of alice, and ann's below it. Only alice knows both."""
    ann_port, swarm_port, zoe_port, alice_port = free_ports(4)
    swarm = f"{HOST}:{swarm_port}"
    on_node = partial(Chat, program=[str(FOLDER / "chat.js")], executable=require_node())
    gateway = await asyncio.start_server(
        partial(let_in, alice_port, swarm.encode()), HOST, swarm_port
    )
    async with gateway:
        ann = on_node("ann", "ann.db", f"{HOST}:{ann_port}", swarm)
        zoe = on_node("zoe", "zoe.db", f"{HOST}:{zoe_port}", swarm)
        ann.type("before")
        await ann.sees("ann> before")
        alice = chats(alice=alice_port)("alice")
        await asyncio.gather(alice.sees("ann> before"), zoe.sees("ann> before"))
        alice.type("schön ☃")
        await asyncio.gather(ann.sees("alice> schön ☃"), zoe.sees("alice> schön ☃"))
        ann.die()
        zoe.type("now")
        await asyncio.gather(zoe.sees("zoe> now"), alice.sees("zoe> now"))
        ann = on_node("ann", "ann.db", f"{HOST}:{ann_port}", swarm)
        await ann.sees("ann> before", "alice> schön ☃", "zoe> now")
        ann.type("back")
        await asyncio.gather(*(chat.sees("ann> back") for chat in (ann, alice, zoe)))
        for chat in ann, zoe, alice:
            chat.die()
