"""Signed logs that are carried by peers which know nothing of them: the original, unmodified.

A relay on Node stores what it is handed and hands it on at every meeting, honest or not. Whoever
gets a signed log from it checks it.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from interop import FOLDER, Original, require_node
from readme import TEXT

import scuttleup
from scuttleup import Change, Replicated, Scuttleup
from scuttleup.keys import log_prefix, pack_seq

HOST = "127.0.0.1"


@pytest.fixture
def author(tmp_path: Path) -> Iterator[Scuttleup]:
    """A signed log with three entries."""
    with scuttleup.open(tmp_path / "author.db", signed=True) as author:
        author.extend([b"one", b"", b"three"])
        yield author


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Scuttleup]:
    with scuttleup.open(tmp_path / "reader.db", signed=True, only_signed=True) as reader:
        yield reader


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Original]:
    """The original, with a log of its own that is not signed."""
    with Original(tmp_path / "relay.db", id="relay", valueEncoding="utf-8") as relay:
        relay.append("not signed")
        yield relay


async def meet(logs: Scuttleup, port: int) -> Replicated:
    streams = await asyncio.open_connection(HOST, port)
    return await logs.replicate(*streams, live=False)


# --- A relay on Node ---


async def test_a_relay_on_node_carries_a_signed_log_to_a_reader_that_checks_it(
    author: Scuttleup, relay: Original, reader: Scuttleup
) -> None:
    """First what is there and then, live, what the author appends, but not what Node appends."""
    port = relay.listen()
    async with (
        scuttleup.Peer(author, connect=[(HOST, port)]),
        scuttleup.Peer(reader, connect=[(HOST, port)]),
    ):
        stream = reader.create_read_stream(live=True)
        assert [(await anext(stream)).entry for _ in range(3)] == [b"one", b"", b"three"]
        await asyncio.to_thread(relay.append, "not signed, either")
        author.append(b"four")
        assert await anext(stream) == Change(author.id, 4, b"four")
    assert reader.head == {author.id: 4}


async def test_garbage_in_the_relay_harms_the_log_it_pretends_to_be_in_and_no_other(
    author: Scuttleup, relay: Original, reader: Scuttleup, tmp_path: Path
) -> None:
    """That is so at every meeting, whoever comes. The author may come, too."""
    port = relay.listen()
    with scuttleup.open(tmp_path / "other.db", signed=True) as other:
        await meet(author, port)
        await asyncio.to_thread(relay.call, "until", author.head)
        relay.write([Change(author.id, 4, "garbage " * 20), Change(author.id, 5, "short")])
        for meeting in 1, 2:
            other.append(b"honest")
            await meet(other, port)
            await asyncio.to_thread(relay.call, "until", other.head)
            for logs in reader, author:
                refused = (await meet(logs, port)).refused
                assert refused[author.id] == "4 is not signed by its author"
                assert (logs.head[author.id], logs.head[other.id]) == (3, meeting)
    # The author goes on, and a reader gets the rest from anybody who has it.
    author.append(b"four")
    async with scuttleup.Peer(author, listen=(HOST, 0)) as peer:
        await meet(reader, peer.addresses[0][1])
    assert reader.entry(author.id, 4) == b"four"


# --- A program on Node that has the database itself ---


def node(code: str, folder: Path) -> str:
    """What a program on Node prints that has the original's two modules."""
    modules = "const level = require('level'), scuttleup = require('scuttleup')\n"
    result = subprocess.run(
        [require_node(), "-e", modules + code],
        cwd=folder,
        env={**os.environ, "NODE_PATH": str(FOLDER / "node_modules")},
        stdout=subprocess.PIPE,
        encoding="utf-8",
        timeout=30,
        check=True,
    )
    return result.stdout


def test_the_javascript_of_the_readme_takes_off_what_a_signed_entry_has_more(
    tmp_path: Path,
) -> None:
    with scuttleup.open(tmp_path / "logs.db", signed=True) as logs:
        logs.extend(["signed", "grün", ""])
        # Other entries stay as they are, those of a log whose id only looks like a key as well.
        logs._store.database.db.put(log_prefix(logs.id[:-1] + "B") + pack_seq(1), b"o" * 100)
        logs.write([("plain", 1, b"p" * 100)])
    [pattern] = re.findall(r"`(/\^ed25519.*?/)`", TEXT)
    code = f"""
        const logs = scuttleup(level('logs.db'), {{ valueEncoding: 'binary' }}), signed = {pattern}
        const strip = ({{ peer, entry }}) => signed.test(peer) ? entry.slice(0, -96) : entry
        logs.createReadStream().on('data', (change) => console.log(strip(change).toString()))
    """
    printed = node(code, tmp_path).splitlines()
    # The ids are random, and with them the order of the first two logs.
    assert [entry for entry in printed if entry[:1] not in ("o", "p")] == ["signed", "grün", ""]
    assert sorted(printed)[-3:] == ["o" * 100, "p" * 100, "signed"]


def test_a_program_on_node_that_reads_json_stops_at_the_first_signed_entry(tmp_path: Path) -> None:
    with scuttleup.open(tmp_path / "logs.db", value_encoding="json", signed=True) as logs:
        logs.write([("a", 1, {"n": 1}), ("z", 1, {"n": 2})])
        logs.append({"n": 3})
    read = """
        const stream = scuttleup(level('logs.db'), { valueEncoding: 'json' }).createReadStream()
        stream.on('data', ({ peer }) => console.log(peer))
        for (const event of ['error', 'end', 'close']) stream.on(event, () => console.log(event))
    """
    assert node(read, tmp_path).splitlines() == ["a", "close"]  # and neither "error" nor "z"
