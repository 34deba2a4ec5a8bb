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
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from interop import Original
from leveldb import contents, open_leveldb
from waiting import arrival
from wire import MODES, sends

from scuttleup import Change, Replicated, Scuttleup
from scuttleup.keys import CHANGES, log_prefix

Limit = Callable[..., None]
Side = dict[str, Any]  # how one side replicates
SIDES = [{"mode": mode, "live": live} for mode in MODES for live in (True, False)]
LIVE, ONE_SHOT = SIDES[:2]


class Node(Original):
    """One process of Node for many tests: to start it takes longer than most of them."""

    path: Path  # of its database, which is a test's own

    def reopen(self, changes: Iterable[Change] = ()) -> None:
        """Close the database, store changes in it, and open it again, without a new process."""
        self.close()
        with open_leveldb(self.path) as db, Scuttleup(db) as logs:
            logs.write(changes)
        self.open(self.path, valueEncoding="utf-8")


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Node]]:
    processes: list[Node] = []
    yield processes
    for node in processes:
        with node:
            pass


@pytest.fixture
def node(processes: list[Node], tmp_path: Path) -> Iterator[Node]:
    """The original on a database of the test's own, with the id "node" and text entries."""
    if not processes or not processes[-1].runs:
        processes.append(Node())
    node = processes[-1]
    node.path = tmp_path / "node.db"
    node.open(node.path, id="node", valueEncoding="utf-8")
    yield node
    if node.runs:
        node.close()


@pytest.fixture(params=["server", "client"])
def role(request: pytest.FixtureRequest) -> str:
    """What Node is in a connection."""
    role: str = request.param
    return role


@asynccontextmanager
async def connected(
    node: Node, logs: Scuttleup, role: str = "server", ours: Side = LIVE, nodes: Side = LIVE
) -> AsyncIterator[asyncio.Task[Replicated]]:
    """Connect the two and replicate. When the block ends we have to end, and Node to end well."""
    if role == "server":
        port = node.listen(**nodes)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    else:
        accepted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(
            lambda *streams: accepted.set_result(streams), "127.0.0.1", 0
        )
        node.connect(server.sockets[0].getsockname()[1], **nodes)
        reader, writer = await accepted
        server.close()
    replication = asyncio.create_task(logs.replicate(reader, writer, **ours))
    try:
        yield replication
        await replication
        if nodes["live"] or not sends(nodes["mode"], ours["mode"]):
            assert not any(await asyncio.to_thread(node.closed))
    finally:
        replication.cancel()


async def at_node(node: Original, head: Mapping[str, int]) -> None:
    """Wait until Node has all of `head`."""
    await asyncio.to_thread(node.call, "until", head)


def entries(database: Any, peer: str = "") -> dict[bytes, bytes]:
    """The entries of `peer`, or of all logs, as they lie in a database."""
    start = log_prefix(peer) if peer else CHANGES
    return {key: value for key, value in dict(database).items() if key.startswith(start)}


def all_entries(node: Node, db: Any) -> int:
    """Check that both have the same entries, and return how many. Closes Node's database."""
    node.close()
    assert entries(db) == entries(contents(node.path))
    return len(entries(db))


def log_of(peer: str, count: int) -> list[Change]:
    return [Change(peer, seq, f"{peer} {seq}") for seq in range(1, count + 1)]


@pytest.mark.parametrize("ours", SIDES, ids=str)
@pytest.mark.parametrize("nodes", SIDES, ids=str)
async def test_what_the_modes_allow_is_sent_now_and_later_and_what_they_forbid_is_not(
    node: Node, logs: Scuttleup, db: Any, limit: Limit, role: str, ours: Side, nodes: Side
) -> None:
    """Only what goes to a one-shot Node that sends at the same time may get lost: see above."""
    if not nodes["live"]:
        limit(LINGER=0.2)
    to_node, to_us = sends(ours["mode"], nodes["mode"]), sends(nodes["mode"], ours["mode"])
    loses = to_us and not nodes["live"]
    later = 3 if ours["live"] and not loses else 0
    node.write(log_of("node", 3))
    logs.extend(["ours"] * 4)
    async with connected(node, logs, role, ours, nodes) as replication:
        for more in range(later + 1):
            if to_node and not loses:
                await at_node(node, {"us": 4 + more})
            if to_us:
                await arrival(logs, {"node": 3 + more})
            if more < later:
                logs.append("ours, later")
                await asyncio.to_thread(node.append, "Node's, later")
        if ours["live"] and loses:
            node.call("end")
        elif ours["live"] and (to_node or nodes["live"]):
            logs.close()
        result = await replication
    node.close()
    theirs = contents(node.path)
    log, arrived = list(entries(db, "us").items()), list(entries(theirs, "us").items())
    assert len(log) == 4 + later
    assert arrived == log[: len(arrived)]
    assert (loses and to_node) or result.sent == len(arrived) == (len(log) if to_node else 0)
    assert result.received == len(entries(db, "node")) == (3 + later if to_us else 0)
    assert not to_us or entries(db, "node") == entries(theirs, "node")


async def test_what_a_one_shot_node_left_unread_comes_with_the_next_meeting(
    node: Node, logs: Scuttleup, db: Any, limit: Limit, role: str
) -> None:
    limit(LINGER=0.2)
    node.append("Node's")
    logs.extend(["x" * 100] * 2000)  # more than its socket takes in one read
    async with connected(node, logs, role, ONE_SHOT, ONE_SHOT):
        pass
    node.reopen()
    had = node.head.get("us", 0)
    async with connected(node, logs, role, ONE_SHOT) as replication:
        assert await replication == Replicated(2000 - had, 0, {})
        await at_node(node, {"us": 2000})
    assert all_entries(node, db) == 2001


async def test_one_shot_loses_nothing_when_node_is_busy_for_two_seconds(
    node: Node, logs: Scuttleup, db: Any
) -> None:
    """If we had closed, what Node says then would make it lose all that it has not read."""
    logs.extend(["x" * 1000] * 2000)
    node.call("stall", 2000, "Node's, after that")
    async with connected(node, logs, ours=ONE_SHOT) as replication:
        assert (await replication).sent == 2000
    node.close()
    assert entries(contents(node.path), "us") == entries(db, "us")


async def test_a_relay_that_was_handed_bad_logs_still_brings_all_others(
    logs: Scuttleup, tmp_path: Path
) -> None:
    """It never drops what it took, and sends it at every meeting: each log is of one bad kind."""
    long, beyond = "x" * (16 * 2**20), "no\u00ff"
    good = [change for peer in ("a", "m", "z") for change in log_of(peer, 3)]
    node = Node(tmp_path / "relay.db", id="relay", valueEncoding="utf-8")
    node.write([Change(long, 1, "?"), Change(beyond, 1, "?")])
    node.write([Change("large", 1, "fits"), Change("large", 2, "y" * (17 * 2**20))])
    node.write([Change("large", 3, "follows"), Change("us", 7, "a leap"), *good])
    try:
        for meeting in range(2):
            async with connected(node, logs, ours=ONE_SHOT) as replication:
                result = await replication
            # Node takes the entry under the id with U+00FF for one of the log "no", too.
            assert result.received == (11 if meeting == 0 else 0)
            assert result.refused.keys() >= {"x" * 64 + "…", beyond, "large", "us"}
    finally:
        node.kill()  # what we left before it was sent makes it end with an error of its own
    assert logs.head == {"a": 3, "m": 3, "z": 3, "large": 1, "no": 1}


async def test_deleted_entries_leave_the_same_gaps_on_both_sides(
    node: Node, logs: Scuttleup, db: Any, role: str
) -> None:
    """So does our newest, which is promised and never comes. Node goes on with the one after it."""
    node.write(log_of("node", 5))
    logs.extend(["ours"] * 5)
    for seq in (1, 3):
        node.call("del", "node", seq)
        logs.delete("us", seq)
    logs.delete("us", 5)
    async with connected(node, logs, role) as replication:
        await at_node(node, {"us": 4})
        await arrival(logs, {"node": 5})
        logs.append("ours, later")
        await at_node(node, {"us": 6})
        node.call("end")
        assert await replication == Replicated(3, 3, {})
    assert all_entries(node, db) == 6


@pytest.mark.parametrize("first", [(1, 0), (0, 2)], ids=["node", "us"])
async def test_a_meeting_brings_only_what_is_new_and_ends_where_a_side_has_nothing(
    node: Node, logs: Scuttleup, db: Any, role: str, first: tuple[int, int]
) -> None:
    """At first neither has anything, then one, then both."""
    for nodes, ours in (0, 0), first, (1, 2), (0, 0):
        for _ in range(nodes):
            node.append("Node's")
        logs.extend(["ours"] * ours)
        async with connected(node, logs, role, ONE_SHOT) as replication:
            assert await replication == Replicated(ours, nodes, {})
            await at_node(node, logs.head)
        node.reopen()
    assert all_entries(node, db) == 3 + sum(first)


async def test_the_tail_of_our_log_comes_back_from_node(
    node: Node, logs: Scuttleup, db: Any, role: str
) -> None:
    """This is what happens after a backup was restored."""
    node.write(log_of("us", 300))
    logs.extend([f"us {seq}" for seq in range(1, 101)])
    async with connected(node, logs, role, ONE_SHOT) as replication:
        assert await replication == Replicated(0, 200, {})
    assert all_entries(node, db) == 300
    assert logs.append("ours").seq == 301


def entries_of_many_sizes(seed: int) -> list[bytes]:
    """20,000 of up to 200 bytes, and between them some of up to 1 MiB."""
    draw = random.Random(seed)
    entries = [draw.randbytes(draw.randrange(200)) for _ in range(20_000)]
    sizes = [2**20, 0, 127, 128, 16_383, 2**20 - 1, 16_384, 65_535, 65_536, 300_000]
    entries[::2000] = [draw.randbytes(size) for size in sizes]
    return entries


async def test_20_000_entries_of_many_sizes_go_both_ways_at_once(node: Node, db: Any) -> None:
    node.reopen(Change("node", *entry) for entry in enumerate(entries_of_many_sizes(1), 1))
    logs = Scuttleup(db, id="us")
    logs.extend(entries_of_many_sizes(2))
    async with connected(node, logs, ours=ONE_SHOT) as replication:
        assert await replication == Replicated(20_000, 20_000, {})
        await at_node(node, {"us": 20_000})
    assert all_entries(node, db) == 40_000


async def test_500_logs_of_which_each_side_has_a_part_are_whole_on_both_until_node_leaves(
    node: Node, logs: Scuttleup, db: Any, role: str
) -> None:
    """Each side has 200 of its own; of the other 100, one has the first half, one has all."""
    peers = [f"peer{number}" for number in range(500)]
    log = {peer: log_of(peer, 4) for peer in peers}
    for side, whole, half in (
        (logs, peers[:250], peers[250:300]),
        (node, peers[250:], peers[200:250]),
    ):
        side.write(change for peer in whole for change in log[peer])
        side.write(change for peer in half for change in log[peer][:2])
    every = dict.fromkeys(peers, 4)
    async with connected(node, logs, role) as replication:
        await arrival(logs, every)
        await at_node(node, every)
        node.call("end")
        assert await replication == Replicated(900, 900, {})
    assert all_entries(node, db) == 2000
