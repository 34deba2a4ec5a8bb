"""Replication with the original on Node, both ways round, over default sockets.

After each meeting both databases are compared key by key. Node has to live on, and its sockets to
close without an error: in a program without a listener for it, as the original's README has it, an
error ends the process.

One thing the original cannot do: a stream of `{live: false}` destroys itself as soon as it has
sent the last of its own entries. What it has not read by then it never reads, nor does it close
the socket, with another original no more than with us.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from interop import Original
from leveldb import contents, open_leveldb
from waiting import arrival
from wire import MODES, sends

import scuttleup.limits
from scuttleup import Change, Replicated, Scuttleup

Entries = dict[str, dict[bytes, bytes]]  # by log and key


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Original]]:
    """One process of Node for many tests: to start it takes longer than most of them."""
    processes: list[Original] = []
    yield processes
    for node in processes:
        with node:
            pass


@pytest.fixture
def node(processes: list[Original], tmp_path: Path) -> Iterator[Original]:
    """The original on a database of the test's own, with the id "node" and text entries."""
    if not processes or not processes[-1].runs:
        processes.append(Original())
    node = processes[-1]
    node.open(tmp_path / "node.db", id="node", valueEncoding="utf-8")
    yield node
    if node.runs:
        node.close()


@pytest.fixture
def reopen(node: Original, tmp_path: Path) -> Callable[..., None]:
    """Begins a new life of Node's database, with more changes in it, in less time than Node."""

    def reopen(changes: list[Change] | None = None) -> None:
        node.close()
        if changes:
            with open_leveldb(tmp_path / "node.db") as db, Scuttleup(db) as logs:
                logs.write(changes)
        node.open(tmp_path / "node.db", valueEncoding="utf-8")

    return reopen


@pytest.fixture(params=["server", "client"])
def role(request: pytest.FixtureRequest) -> str:
    """What Node is."""
    role: str = request.param
    return role


@asynccontextmanager
async def connected(
    node: Original,
    logs: Scuttleup,
    role: str = "server",
    *,
    mode: str = "sync",
    live: bool = True,
    node_mode: str = "sync",
    node_live: bool = True,
) -> AsyncIterator[asyncio.Task[Replicated]]:
    """Connects the two and replicates. At the end we have to end, and Node has to end well."""
    if role == "server":
        port = node.listen(node_mode, live=node_live)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    else:
        accepted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(
            lambda *streams: accepted.set_result(streams), "127.0.0.1", 0
        )
        node.connect(server.sockets[0].getsockname()[1], node_mode, live=node_live)
        reader, writer = await accepted
        server.close()
    replication = asyncio.create_task(logs.replicate(reader, writer, mode=mode, live=live))
    try:
        yield replication
        await replication
        if node_live or not sends(node_mode, mode):
            assert not any(await asyncio.to_thread(node.closed))
    finally:
        replication.cancel()


async def at_node(node: Original, head: Mapping[str, int]) -> None:
    """Wait until Node has all of `head`."""
    await asyncio.to_thread(node.until, head)


def entries_in(pairs: Any) -> Entries:
    """Every entry in a database, in bytes."""
    found: Entries = {}
    for key, value in pairs:
        kind, peer, *_ = key.split("\xff".encode())
        if kind == b"c":
            found.setdefault(peer.decode(), {})[key] = value
    return found


def entries_of(node: Original, path: Path) -> Entries:
    """The same of Node's database at `path`, which this closes."""
    node.close()
    return entries_in(contents(path).items())


@pytest.fixture
def all_entries(db: Any, node: Original, tmp_path: Path) -> Callable[[], int]:
    """How many entries both have in the end, who must have the same."""

    def compare() -> int:
        ours = entries_in(db)
        assert ours == entries_of(node, tmp_path / "node.db")
        return sum(map(len, ours.values()))

    return compare


def log_of(peer: str, entries: list[bytes]) -> list[Change]:
    return [Change(peer, seq, entry) for seq, entry in enumerate(entries, 1)]


def log_of_text(peer: str, count: int) -> list[Change]:
    return [Change(peer, seq, f"{peer} {seq}") for seq in range(1, count + 1)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("node_mode", MODES)
@pytest.mark.parametrize("live", [True, False], ids=["live", "one-shot"])
@pytest.mark.parametrize("node_live", [True, False], ids=["live", "one-shot Node"])
async def test_what_the_modes_allow_comes_now_and_later_and_what_they_forbid_does_not_go(
    node: Original,
    logs: Scuttleup,
    db: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    role: str,
    live: bool,
    mode: str,
    node_live: bool,
    node_mode: str,
) -> None:
    """What goes to a one-shot Node that sends at the same time may get lost, see above; no more."""
    if not node_live:
        monkeypatch.setattr(scuttleup.limits, "LINGER", 0.2)
    to_node, to_us = sends(mode, node_mode), sends(node_mode, mode)
    node.write(log_of_text("node", 3))
    logs.extend(["ours"] * 4)
    loses = to_us and not node_live
    async with connected(
        *(node, logs, role), mode=mode, live=live, node_mode=node_mode, node_live=node_live
    ) as replication:
        if loses:
            await arrival(logs, {"node": 3})
            if live:
                node.end()
        for more in range(4 if live and not loses else 0):
            if to_node:
                await at_node(node, {"us": 4 + more})
            if to_us:
                await arrival(logs, {"node": 3 + more})
            if more < 3:
                logs.append("ours, later")
                await asyncio.to_thread(node.append, "Node's, later")
        if live and not loses and (to_node or node_live):
            logs.close()
        result = await replication
        if to_node and not loses:
            await at_node(node, {"us": result.sent})
    ours, nodes = entries_in(db), entries_of(node, tmp_path / "node.db")
    later = 3 if live and not loses else 0
    assert (len(ours["us"]), len(nodes["node"])) == (4 + later, 3 + later)
    assert result.received == (3 + later if to_us else 0)
    assert ours == {"us": ours["us"]} | ({"node": nodes["node"]} if to_us else {})
    arrived = nodes.pop("us", {})
    assert nodes.keys() == {"node"}
    assert loses or result.sent == len(arrived) == (4 + later if to_node else 0)
    assert arrived == dict(list(ours["us"].items())[: len(arrived)])
    assert to_node or not arrived


async def test_what_a_one_shot_node_left_unread_comes_with_the_next_meeting(
    node: Original,
    logs: Scuttleup,
    reopen: Callable[..., None],
    all_entries: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    role: str,
) -> None:
    monkeypatch.setattr(scuttleup.limits, "LINGER", 0.2)
    node.append("Node's")
    logs.extend(["x" * 100] * 2000)  # more than its socket takes in one read
    async with connected(node, logs, role, live=False, node_live=False):
        pass
    reopen()
    had = node.head.get("us", 0)
    async with connected(node, logs, role, live=False) as replication:
        assert await replication == Replicated(2000 - had, 0, {})
        await at_node(node, {"us": 2000})
    assert all_entries() == 2001


async def test_live_ends_when_node_leaves(
    node: Original, logs: Scuttleup, all_entries: Callable[[], int], role: str
) -> None:
    node.append("Node's")
    logs.append("ours")
    async with connected(node, logs, role) as replication:
        await at_node(node, {"us": 1})
        await arrival(logs, {"node": 1})
        node.end()
        assert await replication == Replicated(1, 1, {})
    assert all_entries() == 2


@pytest.mark.parametrize("filled", ["neither", "node", "us"])
async def test_one_shot_ends_where_a_side_has_nothing(
    node: Original, logs: Scuttleup, all_entries: Callable[[], int], role: str, filled: str
) -> None:
    if filled == "node":
        node.append("Node's")
    if filled == "us":
        logs.append("ours")
    async with connected(node, logs, role, live=False):
        pass
    assert all_entries() == (0 if filled == "neither" else 1)


@pytest.mark.parametrize("mode", ["sync", "pull"])
@pytest.mark.parametrize("deleted", [1, 3], ids=["the-newest", "all"])
async def test_one_shot_ends_when_node_deleted_what_it_promised(
    node: Original,
    logs: Scuttleup,
    db: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    role: str,
    mode: str,
    deleted: int,
) -> None:
    monkeypatch.setattr(scuttleup.limits, "PROMISED", 0.2)
    logs.append("ours")
    node.write(log_of_text("node", 3))
    for seq in range(4 - deleted, 4):
        node.delete("node", seq)
    async with connected(node, logs, role, mode=mode, live=False) as replication:
        assert (await replication).received == 3 - deleted
        if mode == "sync":
            await at_node(node, {"us": 1})
    ours, nodes = entries_in(db), entries_of(node, tmp_path / "node.db")
    assert len(ours.get("node", {})) == 3 - deleted
    assert nodes == {peer: ours[peer] for peer in ours if peer == "node" or mode == "sync"}


async def test_one_shot_ends_when_what_node_promised_is_deleted_and_other_entries_never_end(
    node: Original, logs: Scuttleup, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """What else comes is no sign that what was promised is still to come."""
    monkeypatch.setattr(scuttleup.limits, "PROMISED", 0.5)
    node.write(log_of_text("deleted", 2))
    node.delete("deleted", 2)
    node.append_every(20, "Node's")
    async with connected(node, logs, role, mode="pull", live=False) as replication:
        done, _ = await asyncio.wait({replication}, timeout=8)
        assert done, "16 times the limit after the last promised entry"
    assert logs.head["deleted"] == 1


async def test_one_shot_loses_nothing_when_node_is_busy_for_two_seconds(
    node: Original, logs: Scuttleup, db: Any, tmp_path: Path
) -> None:
    """What Node says then, on a connection that we had closed, would make it lose all unread."""
    logs.extend(["x" * 1000] * 2000)
    node.stall(2000, "Node's, after that")
    async with connected(node, logs, live=False) as replication:
        assert (await replication).sent == 2000
    assert entries_of(node, tmp_path / "node.db")["us"] == entries_in(db)["us"]


async def test_a_relay_that_was_handed_bad_logs_still_brings_all_others(
    logs: Scuttleup, tmp_path: Path
) -> None:
    """It never drops what it took, and sends it at every meeting: each log is of one bad kind."""
    long, beyond = "x" * (16 * 2**20), "no\u00ff"
    good = [change for peer in ("a", "m", "z") for change in log_of_text(peer, 3)]
    node = Original(tmp_path / "relay.db", id="relay", valueEncoding="utf-8")
    node.write([Change(long, 1, "?"), Change(beyond, 1, "?")])
    node.write([Change("large", 1, "fits"), Change("large", 2, "y" * (17 * 2**20))])
    node.write([Change("large", 3, "follows"), Change("us", 7, "a leap"), *good])
    try:
        for meeting in range(2):
            async with connected(node, logs, live=False) as replication:
                result = await replication
            # It takes that of the id with U+00FF for one of "no", too.
            assert result.received == (11 if meeting == 0 else 0)
            assert result.refused.keys() >= {"x" * 64 + "…", beyond, "large", "us"}
    finally:
        node.kill()  # what we left before it was sent makes it end with an error of its own
    assert logs.head == {"a": 3, "m": 3, "z": 3, "large": 1, "no": 1}


async def test_deleted_entries_leave_the_same_gaps_on_both_sides(
    node: Original, logs: Scuttleup, all_entries: Callable[[], int], role: str
) -> None:
    """Our newest, too, which is promised and never comes. Node goes on with the one after it."""
    node.write(log_of_text("node", 5))
    logs.extend(["ours"] * 5)
    for seq in (1, 3):
        node.delete("node", seq)
        logs.delete("us", seq)
    logs.delete("us", 5)
    async with connected(node, logs, role) as replication:
        await at_node(node, {"us": 4})
        await arrival(logs, {"node": 5})
        logs.append("ours, later")
        await at_node(node, {"us": 6})
        node.end()
        assert await replication == Replicated(3, 3, {})
    assert all_entries() == 6


async def test_a_later_meeting_brings_only_what_is_new(
    node: Original,
    logs: Scuttleup,
    reopen: Callable[..., None],
    all_entries: Callable[[], int],
    role: str,
) -> None:
    for meeting in range(1, 4):
        node.append("Node's")
        logs.extend(["ours", "ours"])
        async with connected(node, logs, role, live=False) as replication:
            assert await replication == Replicated(2, 1, {})
            await at_node(node, {"us": 2 * meeting})
        reopen()
    assert all_entries() == 9


async def test_the_tail_of_our_log_comes_back_from_node(
    node: Original, logs: Scuttleup, all_entries: Callable[[], int], role: str
) -> None:
    """As after a backup was restored."""
    node.write(log_of_text("us", 300))
    logs.extend([f"us {seq}" for seq in range(1, 101)])
    async with connected(node, logs, role, live=False) as replication:
        assert await replication == Replicated(0, 200, {})
    assert all_entries() == 300
    assert logs.append("ours").seq == 301


def entries_of_many_sizes(seed: int) -> list[bytes]:
    """20,000 of up to 200 bytes, and between them some of up to 1 MiB."""
    draw = random.Random(seed)
    entries = [draw.randbytes(draw.randrange(200)) for _ in range(20_000)]
    sizes = [2**20, 0, 127, 128, 16_383, 2**20 - 1, 16_384, 65_535, 65_536, 300_000]
    entries[::2000] = [draw.randbytes(size) for size in sizes]
    return entries


@pytest.mark.parametrize("live", [True, False], ids=["live", "one-shot"])
async def test_20_000_entries_of_many_sizes_go_both_ways_at_once(
    node: Original, db: Any, reopen: Callable[..., None], all_entries: Callable[[], int], live: bool
) -> None:
    reopen(log_of("node", entries_of_many_sizes(1)))
    logs = Scuttleup(db, id="us")
    logs.extend(entries_of_many_sizes(2))
    async with connected(node, logs, live=live) as replication:
        if live:
            await arrival(logs, {"node": 20_000})
            await at_node(node, {"us": 20_000})
            node.end()
        assert await replication == Replicated(20_000, 20_000, {})
        await at_node(node, {"us": 20_000})
    assert all_entries() == 40_000


@pytest.mark.parametrize("live", [True, False], ids=["live", "one-shot"])
async def test_500_logs_of_which_each_side_has_a_part_are_whole_on_both(
    node: Original, logs: Scuttleup, all_entries: Callable[[], int], role: str, live: bool
) -> None:
    """Each side has 200 of its own; of the other 100, one has the first half, one has all."""
    peers = [f"peer{number}" for number in range(500)]
    log = {peer: log_of_text(peer, 4) for peer in peers}
    for side, whole, half in (
        (logs, peers[:250], peers[250:300]),
        (node, peers[250:], peers[200:250]),
    ):
        side.write(change for peer in whole for change in log[peer])
        side.write(change for peer in half for change in log[peer][:2])
    every = dict.fromkeys(peers, 4)
    async with connected(node, logs, role, live=live) as replication:
        if live:
            await arrival(logs, every)
            await at_node(node, every)
            node.end()
        assert await replication == Replicated(900, 900, {})
        await at_node(node, every)
    assert all_entries() == 2000


async def test_entries_pass_through_us_from_node_to_node_unchanged(
    node: Original, db: Any, all_entries: Callable[[], int], tmp_path: Path
) -> None:
    """Both connect to us, and have entries before and later; so have we."""
    logs = Scuttleup(db, id="us")
    texts = ["", "hello", "Grüße, мир, 世界 \0\n", "🦊👩‍👩‍👧", "x" * 2**20]
    binary = [b"", bytes(range(256)), b"\xff\xfe\0", random.Random(1).randbytes(2**20)]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await logs.replicate(reader, writer)

    def append() -> None:
        for text in texts:
            node.append(text)
        for entry in binary:
            far.append(entry.hex())

    with Original(tmp_path / "far.db", id="far", valueEncoding="hex") as far:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        append()
        for peer in (far, node):
            peer.connect(server.sockets[0].getsockname()[1])
        for round in range(1, 4):
            every = {"node": 5 * round, "far": 4 * round, "us": round}
            logs.append("ours, between")
            await at_node(node, every)
            await at_node(far, every)
            await arrival(logs, every)
            if round < 3:
                await asyncio.to_thread(append)
        logs.close()
        for peer in (node, far):
            assert await asyncio.to_thread(peer.closed) == [None]
        server.close()
        ours = entries_in(db)
        assert list(ours["node"].values()) == [text.encode() for text in texts] * 3
        assert list(ours["far"].values()) == binary * 3
        assert all_entries() == 30
        assert entries_of(far, tmp_path / "far.db") == ours
