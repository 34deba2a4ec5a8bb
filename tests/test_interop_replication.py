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
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from interop import Original

import scuttleup.limits
from scuttleup import Change, Replicated, Scuttleup
from scuttleup.database import binding as plyvel

TIME_LIMIT = 60  # seconds that a test's meetings may take on a slow machine; most take 0.05
CHANGES = "c\xff".encode()

Entries = dict[bytes, bytes]

modes = pytest.mark.parametrize(
    ("mode", "node_mode"),
    [(ours, nodes) for ours in ("sync", "push", "pull") for nodes in ("sync", "push", "pull")],
    ids=lambda mode: str(mode),
)


def allowed(mode: str, node_mode: str) -> tuple[bool, bool]:
    """Whether entries go to Node, and whether they come to us."""
    return mode != "pull" and node_mode != "push", node_mode != "pull" and mode != "push"


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
        if node_live or not allowed(mode, node_mode)[1]:
            assert not any(await asyncio.to_thread(node.closed))
    finally:
        replication.cancel()


def run(test: Coroutine[Any, Any, None], *nodes: Original) -> None:
    async def limited() -> None:
        try:
            await asyncio.wait_for(test, TIME_LIMIT)
        except TimeoutError:
            for node in nodes:
                node.kill()  # else the thread that waits for its answer would wait on
            raise

    asyncio.run(limited())


async def at_node(node: Original, head: Mapping[str, int]) -> None:
    """Wait until Node has all of `head`."""
    await asyncio.to_thread(node.until, head)


async def at_ours(logs: Scuttleup, head: Mapping[str, int]) -> None:
    """Wait until we have all of `head`."""
    with logs.create_read_stream(live=True) as changes:
        async for _ in changes:
            if all(logs.head.get(peer, 0) >= seq for peer, seq in head.items()):
                return


def entries_in(db: Any) -> Entries:
    """Every entry in the database by its key, in bytes."""
    return {key: value for key, value in db if key.startswith(CHANGES)}


def entries_of(node: Original, path: Path) -> Entries:
    """The same of Node's database at `path`, which this closes."""
    node.close()
    db = plyvel.DB(str(path), create_if_missing=False)
    try:
        return entries_in(db)
    finally:
        db.close()


def only(peer: str, entries: Entries) -> Entries:
    prefix = CHANGES + f"{peer}\xff".encode()
    return {key: entry for key, entry in entries.items() if key.startswith(prefix)}


def refill(node: Original, path: Path, changes: list[Change]) -> None:
    """Put many entries into Node's database at `path`, in less time than it takes Node."""
    node.close()
    db = plyvel.DB(str(path))
    logs = Scuttleup(db)
    logs.write(changes)
    logs.close()
    db.close()
    node.open(path, valueEncoding="utf-8")


def log_of(peer: str, entries: list[bytes]) -> list[Change]:
    return [Change(peer, seq, entry) for seq, entry in enumerate(entries, 1)]


def log_of_text(peer: str, count: int) -> list[Change]:
    return [Change(peer, seq, f"{peer} {seq}") for seq in range(1, count + 1)]


@modes
def test_one_shot_brings_what_the_modes_allow_and_ends(
    node: Original, logs: Scuttleup, db: Any, tmp_path: Path, role: str, mode: str, node_mode: str
) -> None:
    to_node, to_us = allowed(mode, node_mode)
    node.write(log_of_text("node", 3))
    logs.extend(["ours"] * 4)

    async def test() -> None:
        async with connected(
            node, logs, role, mode=mode, live=False, node_mode=node_mode
        ) as replication:
            assert await replication == Replicated(4 if to_node else 0, 3 if to_us else 0, {})
            if to_node:
                await at_node(node, {"us": 4})

    run(test(), node)
    ours, nodes = entries_in(db), entries_of(node, tmp_path / "node.db")
    assert (len(only("us", ours)), len(only("node", nodes))) == (4, 3)
    assert ours == only("us", ours) | (only("node", nodes) if to_us else {})
    assert nodes == only("node", nodes) | (only("us", ours) if to_node else {})


@modes
def test_live_brings_what_the_modes_allow_now_and_later(
    node: Original, logs: Scuttleup, db: Any, tmp_path: Path, role: str, mode: str, node_mode: str
) -> None:
    to_node, to_us = allowed(mode, node_mode)
    node.write(log_of_text("node", 3))
    logs.extend(["ours"] * 4)

    async def test() -> None:
        async with connected(
            node, logs, role, mode=mode, live=True, node_mode=node_mode
        ) as replication:
            for more in range(4):
                if to_node:
                    await at_node(node, {"us": 4 + more})
                if to_us:
                    await at_ours(logs, {"node": 3 + more})
                if more < 3:
                    logs.append("ours, later")
                    await asyncio.to_thread(node.append, "Node's, later")
            logs.close()
            assert await replication == Replicated(7 if to_node else 0, 6 if to_us else 0, {})

    run(test(), node)
    ours, nodes = entries_in(db), entries_of(node, tmp_path / "node.db")
    assert (len(only("us", ours)), len(only("node", nodes))) == (7, 6)
    assert ours == only("us", ours) | (only("node", nodes) if to_us else {})
    assert nodes == only("node", nodes) | (only("us", ours) if to_node else {})


@modes
@pytest.mark.parametrize("live", [True, False], ids=["live", "one-shot"])
def test_with_a_one_shot_node_what_the_modes_allow_comes_and_what_they_forbid_does_not_go(
    node: Original,
    logs: Scuttleup,
    db: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    role: str,
    live: bool,
    mode: str,
    node_mode: str,
) -> None:
    """What goes to a Node that sends at the same time may get lost there, see above; no more."""
    monkeypatch.setattr(scuttleup.limits, "LINGER", 0.2)
    to_node, to_us = allowed(mode, node_mode)
    node.write(log_of_text("node", 3))
    logs.extend(["ours"] * 4)

    async def test() -> None:
        async with connected(
            node, logs, role, mode=mode, live=live, node_mode=node_mode, node_live=False
        ) as replication:
            if to_us:
                await at_ours(logs, {"node": 3})
                if live:
                    node.end()
            elif to_node:
                await at_node(node, {"us": 4})
                if live:
                    logs.append("ours, later")
                    await at_node(node, {"us": 5})
                    logs.close()
            assert (await replication).received == (3 if to_us else 0)

    run(test(), node)
    ours, nodes = entries_in(db), entries_of(node, tmp_path / "node.db")
    assert len(only("node", nodes)) == 3
    assert ours == only("us", ours) | (only("node", nodes) if to_us else {})
    arrived = only("us", nodes)
    if to_us or not to_node:
        assert arrived == dict(list(only("us", ours).items())[: len(arrived)])
        assert to_node or not arrived
    else:
        assert arrived == only("us", ours)
    assert nodes == only("node", nodes) | arrived


def test_what_a_one_shot_node_left_unread_comes_with_the_next_meeting(
    node: Original,
    logs: Scuttleup,
    db: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    role: str,
) -> None:
    monkeypatch.setattr(scuttleup.limits, "LINGER", 0.2)
    node.append("Node's")
    logs.extend(["x" * 100] * 2000)  # more than its socket takes in one read

    async def test() -> None:
        async with connected(node, logs, role, live=False, node_live=False):
            pass
        node.close()
        node.open(tmp_path / "node.db", valueEncoding="utf-8")
        had = node.head.get("us", 0)
        async with connected(node, logs, role, live=False) as replication:
            assert await replication == Replicated(2000 - had, 0, {})
            await at_node(node, {"us": 2000})

    run(test(), node)
    assert len(entries_in(db)) == 2001
    assert entries_in(db) == entries_of(node, tmp_path / "node.db")


def test_live_ends_when_node_leaves(
    node: Original, logs: Scuttleup, db: Any, tmp_path: Path, role: str
) -> None:
    node.append("Node's")
    logs.append("ours")

    async def test() -> None:
        async with connected(node, logs, role) as replication:
            await at_node(node, {"us": 1})
            await at_ours(logs, {"node": 1})
            node.end()
            assert await replication == Replicated(1, 1, {})

    run(test(), node)
    assert entries_in(db) == entries_of(node, tmp_path / "node.db")


@pytest.mark.parametrize("filled", ["neither", "node", "us"])
def test_one_shot_ends_where_a_side_has_nothing(
    node: Original, logs: Scuttleup, db: Any, tmp_path: Path, role: str, filled: str
) -> None:
    if filled == "node":
        node.append("Node's")
    if filled == "us":
        logs.append("ours")

    async def test() -> None:
        async with connected(node, logs, role, live=False):
            pass

    run(test(), node)
    assert entries_in(db) == entries_of(node, tmp_path / "node.db")
    assert len(entries_in(db)) == (0 if filled == "neither" else 1)


@pytest.mark.parametrize("mode", ["sync", "pull"])
@pytest.mark.parametrize("deleted", [1, 3], ids=["the-newest", "all"])
def test_one_shot_ends_when_node_deleted_what_it_promised(
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
    for _ in range(3):
        node.append("Node's")
    for seq in range(4 - deleted, 4):
        node.delete("node", seq)

    async def test() -> None:
        async with connected(node, logs, role, mode=mode, live=False) as replication:
            assert (await replication).received == 3 - deleted
            if mode == "sync":
                await at_node(node, {"us": 1})

    run(test(), node)
    ours, nodes = entries_in(db), entries_of(node, tmp_path / "node.db")
    assert len(only("node", ours)) == 3 - deleted
    assert ours == only("us", ours) | only("node", nodes)
    assert nodes == only("node", nodes) | (only("us", ours) if mode == "sync" else {})


def test_one_shot_ends_when_what_node_promised_is_deleted_and_other_entries_never_end(
    node: Original, logs: Scuttleup, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """What else comes is no sign that what was promised is still to come."""
    monkeypatch.setattr(scuttleup.limits, "PROMISED", 0.5)
    node.write(log_of_text("deleted", 2))
    node.delete("deleted", 2)
    node.append_every(20, "Node's")

    async def test() -> None:
        async with connected(node, logs, role, mode="pull", live=False) as replication:
            done, _ = await asyncio.wait({replication}, timeout=8)
            assert done, "16 times the limit after the last promised entry"

    run(test(), node)
    assert logs.head["deleted"] == 1


def test_one_shot_loses_nothing_when_node_is_busy_for_two_seconds(
    node: Original, logs: Scuttleup, db: Any, tmp_path: Path
) -> None:
    """What Node says then, on a connection that we had closed, would make it lose all unread."""
    logs.extend(["x" * 1000] * 2000)
    node.stall(2000, "Node's, after that")

    async def test() -> None:
        async with connected(node, logs, live=False) as replication:
            assert (await replication).sent == 2000

    run(test(), node)
    nodes = entries_of(node, tmp_path / "node.db")
    assert only("us", nodes) == only("us", entries_in(db))


def test_a_relay_that_was_handed_bad_logs_still_brings_all_others(
    logs: Scuttleup, tmp_path: Path
) -> None:
    """It never drops what it took, and sends it at every meeting: each log is of one bad kind."""
    long, beyond = "x" * (16 * 2**20), "no\u00ff"
    good = [change for peer in ("a", "m", "z") for change in log_of_text(peer, 3)]
    node = Original(tmp_path / "relay.db", id="relay", valueEncoding="utf-8")
    node.write([Change(long, 1, "?"), Change(beyond, 1, "?")])
    node.write([Change("large", 1, "fits"), Change("large", 2, "y" * (17 * 2**20))])
    node.write([Change("large", 3, "follows"), Change("us", 7, "a leap"), *good])

    async def test() -> None:
        for meeting in range(2):
            async with connected(node, logs, live=False) as replication:
                result = await replication
            # It takes that of the id with U+00FF for one of "no", too.
            assert result.received == (11 if meeting == 0 else 0)
            assert result.refused.keys() >= {"x" * 64 + "…", beyond, "large", "us"}

    try:
        run(test(), node)
    finally:
        node.kill()  # what we left before it was sent makes it end with an error of its own
    assert logs.head == {"a": 3, "m": 3, "z": 3, "large": 1, "no": 1}


def test_an_entry_that_node_deleted_leaves_the_same_gap_here(
    node: Original, logs: Scuttleup, db: Any, tmp_path: Path, role: str
) -> None:
    node.write(log_of_text("node", 5))
    node.delete("node", 1)
    node.delete("node", 3)

    async def test() -> None:
        async with connected(node, logs, role, live=False) as replication:
            assert (await replication).received == 3

    run(test(), node)
    assert len(entries_in(db)) == 3
    assert entries_in(db) == entries_of(node, tmp_path / "node.db")


def test_entries_that_we_deleted_leave_the_same_gaps_at_node(
    node: Original, logs: Scuttleup, db: Any, tmp_path: Path, role: str
) -> None:
    """The newest, too, which is promised and never comes. Node goes on with the one after it."""
    logs.extend(["ours"] * 5)
    for seq in (1, 3, 5):
        logs.delete("us", seq)

    async def test() -> None:
        async with connected(node, logs, role) as replication:
            await at_node(node, {"us": 4})
            logs.append("ours, later")
            await at_node(node, {"us": 6})
            node.end()
            assert (await replication).sent == 3

    run(test(), node)
    assert len(entries_in(db)) == 3
    assert entries_in(db) == entries_of(node, tmp_path / "node.db")


def test_a_later_meeting_brings_only_what_is_new(
    node: Original, logs: Scuttleup, db: Any, tmp_path: Path, role: str
) -> None:
    async def test() -> None:
        for meeting in range(1, 4):
            node.append("Node's")
            logs.extend(["ours", "ours"])
            async with connected(node, logs, role, live=False) as replication:
                assert await replication == Replicated(2, 1, {})
                await at_node(node, {"us": 2 * meeting})
            node.close()
            node.open(tmp_path / "node.db", valueEncoding="utf-8")

    run(test(), node)
    assert len(entries_in(db)) == 9
    assert entries_in(db) == entries_of(node, tmp_path / "node.db")


def test_the_tail_of_our_log_comes_back_from_node(
    node: Original, logs: Scuttleup, db: Any, tmp_path: Path, role: str
) -> None:
    """As after a backup was restored."""
    node.write(log_of_text("us", 300))
    logs.extend([f"us {seq}" for seq in range(1, 101)])

    async def test() -> None:
        async with connected(node, logs, role, live=False) as replication:
            assert await replication == Replicated(0, 200, {})

    run(test(), node)
    assert logs.append("ours").seq == 301
    assert len(entries_in(db)) == 301
    assert entries_in(db).items() > entries_of(node, tmp_path / "node.db").items()


def entries_of_many_sizes(seed: int) -> list[bytes]:
    """20,000 of up to 200 bytes, and between them some of up to 1 MiB."""
    draw = random.Random(seed)
    entries = [draw.randbytes(draw.randrange(200)) for _ in range(20_000)]
    sizes = [2**20, 0, 127, 128, 16_383, 2**20 - 1, 16_384, 65_535, 65_536, 300_000]
    entries[::2000] = [draw.randbytes(size) for size in sizes]
    return entries


@pytest.mark.parametrize("live", [True, False], ids=["live", "one-shot"])
def test_20_000_entries_of_many_sizes_go_both_ways_at_once(
    node: Original, db: Any, tmp_path: Path, live: bool
) -> None:
    refill(node, tmp_path / "node.db", log_of("node", entries_of_many_sizes(1)))
    logs = Scuttleup(db, id="us")
    logs.extend(entries_of_many_sizes(2))

    async def test() -> None:
        async with connected(node, logs, live=live) as replication:
            if live:
                await at_ours(logs, {"node": 20_000})
                await at_node(node, {"us": 20_000})
                node.end()
            assert await replication == Replicated(20_000, 20_000, {})
            await at_node(node, {"us": 20_000})

    run(test(), node)
    assert len(entries_in(db)) == 40_000
    assert entries_in(db) == entries_of(node, tmp_path / "node.db")


@pytest.mark.parametrize("live", [True, False], ids=["live", "one-shot"])
def test_500_logs_of_which_each_side_has_a_part_are_whole_on_both(
    node: Original, logs: Scuttleup, db: Any, tmp_path: Path, role: str, live: bool
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

    async def test() -> None:
        async with connected(node, logs, role, live=live) as replication:
            if live:
                await at_ours(logs, dict.fromkeys(peers, 4))
                await at_node(node, dict.fromkeys(peers, 4))
                node.end()
            assert await replication == Replicated(900, 900, {})
            await at_node(node, dict.fromkeys(peers, 4))

    run(test(), node)
    assert len(entries_in(db)) == 2000
    assert entries_in(db) == entries_of(node, tmp_path / "node.db")


def test_entries_pass_through_us_from_node_to_node_unchanged(
    node: Original, db: Any, tmp_path: Path
) -> None:
    """Both connect to us, and have entries before and later; so have we."""
    far_path = tmp_path / "far.db"
    logs = Scuttleup(db, id="us")
    texts = ["", "hello", "Grüße, мир, 世界 \0\n", "🦊👩‍👩‍👧", "x" * 2**20]
    binary = [b"", bytes(range(256)), b"\xff\xfe\0", random.Random(1).randbytes(2**20)]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await logs.replicate(reader, writer)

    async def test(far: Original) -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        for text in texts:
            node.append(text)
        for entry in binary:
            far.append(entry.hex())
        far.connect(port)
        node.connect(port)
        for round in range(1, 4):
            every = {"node": 5 * round, "far": 4 * round, "us": round}
            logs.append("ours, between")
            await at_node(node, every)
            await at_node(far, every)
            await at_ours(logs, every)
            if round < 3:
                for text in texts:
                    await asyncio.to_thread(node.append, text)
                for entry in binary:
                    await asyncio.to_thread(far.append, entry.hex())
        logs.close()
        for peer in (node, far):
            assert await asyncio.to_thread(peer.closed) == [None]
        server.close()

    with Original(far_path, id="far", valueEncoding="hex") as far:
        run(test(far), node, far)
        ours = entries_in(db)
        assert list(only("node", ours).values()) == [text.encode() for text in texts] * 3
        assert list(only("far", ours).values()) == binary * 3
        assert entries_of(node, tmp_path / "node.db") == ours
        assert entries_of(far, far_path) == ours
