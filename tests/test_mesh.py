"""Many peers over links that break, simulated and real, and one peer that is killed.

The links of `simulate.py` carry the bytes of both kinds of mesh, until all peers have every entry.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from simulate import TOPOLOGIES, Link, Result, drive, simulate

import scuttleup.peer
from scuttleup import Change, Peer, Replicated, ReplicationStream, Scuttleup

HERE = ("127.0.0.1", 0)

# --- A mesh without sockets -----------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 0.1], ids=["whole links", "links that are cut"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_all_peers_agree_over_late_links(topology: str, cut: float) -> None:
    """Without cuts nothing is lost, and a star sends nothing twice."""
    result = simulate(topology, 12, logs_each=2, cut=cut)
    assert result == simulate(topology, 12, logs_each=2, cut=cut), "a seed gives the same run again"
    assert result.received == 11 * 24
    assert (result.lost > 0) == (cut > 0)
    if not cut:
        assert (result.known == 0) == (topology == "star")


# --- A mesh with sockets --------------------------------------------------------------------------

PEERS = 20
ENTRIES = 30  # of each peer, at least
CUTS = 50  # of all links, at least: how many a run has in the same time depends on the machine


class Plug(asyncio.Protocol):
    """Where a link ends at a `Peer`: what that sends is carried by the link alone."""

    replicated = Replicated(0, 0, {})  # only the peers know

    def __init__(self) -> None:
        self.heard = bytearray()

    def connection_made(self, transport: Any) -> None:
        self.receive_data, self.close = transport.write, transport.abort

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def data_to_send(self) -> bytes:
        data = bytes(self.heard)
        self.heard.clear()
        return data


class Cable:
    """Leads a `Peer` that connects to `address` to the one that listens on `leads_to`."""

    async def laid(self, leads_to: tuple[str, int]) -> Cable:
        self.leads_to = leads_to
        self.plugs: list[Plug] = []
        self.server = await asyncio.get_running_loop().create_server(self.plug, *HERE)
        self.address = self.server.sockets[0].getsockname()
        return self

    def plug(self) -> Plug:
        plug = Plug()
        self.far_side = asyncio.create_task(self.connect(plug))
        return plug

    async def connect(self, near: Plug) -> None:
        _, far = await asyncio.get_running_loop().create_connection(Plug, *self.leads_to)
        self.plugs = [near, far]

    def plugged(self) -> list[Plug]:
        plugs, self.plugs = self.plugs, []
        return plugs


async def test_all_logs_of_a_mesh_whose_links_break_end_up_the_same(
    new_logs: Callable[..., Scuttleup],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    choose, total, links = random.Random(3), Result(), []
    everybody = [new_logs(f"peer {i}", value_encoding="binary") for i in range(PEERS)]
    monkeypatch.setattr(scuttleup.peer, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(scuttleup.peer, "LONGEST_DELAY", 0.01)

    def append_and_compare() -> bool:
        for logs in choose.sample(everybody, 3):
            if logs.head.get(logs.id, 0) < ENTRIES or total.cuts < CUTS:
                # Large ones, too: a link is then cut in the middle of a frame.
                size = choose.choice([0, 10, 100, 100, 1_000, 1_000, 1_000, 20_000])
                logs.extend([choose.randbytes(size) for _ in range(choose.randint(1, 4))])
        whole = {logs.id: logs.head.get(logs.id, 0) for logs in everybody}
        enough = min(whole.values()) >= ENTRIES and total.cuts >= CUTS
        return enough and all(logs.head == whole for logs in everybody)

    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(Peer(logs, listen=HERE)) for logs in everybody]
        for one, other in TOPOLOGIES["2 random"](PEERS, choose):
            cable = await Cable().laid(peers[other].addresses[0])
            stack.callback(cable.server.close)
            links.append(Link(cable.plugged, choose, total))
            await stack.enter_async_context(Peer(everybody[one], connect=[cable.address]))
        await drive(links, total, 0.01, append_and_compare)

    assert [text for text in caplog.messages if "the connection" not in text] == []
    changes = list(everybody[0].create_read_stream())
    for logs in everybody:
        assert list(logs.create_read_stream()) == changes


# --- A kill ---------------------------------------------------------------------------------------

KILLS = 8
LOGS = {"one": 10_000, "three": 10_000, "two": 10_000}


def log_of(peer: str, head: int) -> list[Change]:
    return [
        Change(peer, seq, b"%s %d %s" % (peer.encode(), seq, b"x" * (seq % 200)))
        for seq in range(1, head + 1)
    ]


KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # the latter kills on Windows


async def receive(path: str, port: str, enough: str) -> None:
    """Be the receiver, and be killed in the middle of receiving when there are `enough` entries."""
    receive_data = ReplicationStream.receive_data

    def receive_or_die(stream: ReplicationStream, data: bytes) -> None:
        if sum(logs.head.values()) >= int(enough):
            threading.Thread(target=os.kill, args=(os.getpid(), KILL)).start()
        receive_data(stream, data)

    ReplicationStream.receive_data = receive_or_die  # type: ignore[method-assign, assignment]
    logs = scuttleup.open(path, id="receiver")
    stream = await asyncio.open_connection("127.0.0.1", int(port))
    await logs.replicate(*stream, mode="pull")


async def test_a_killed_receiver_has_no_gap_and_catches_up(
    new_logs: Callable[..., Scuttleup], tmp_path: Path
) -> None:
    choose = random.Random(6)
    path = tmp_path / "receiver.db"
    source = new_logs("source", value_encoding="binary")
    total = source.write(change for peer, head in LOGS.items() for change in log_of(peer, head))
    here = 0
    async with Peer(source, listen=HERE) as server:
        for _ in range(KILLS):
            enough = here + choose.randrange(100, 3_000)
            receiver = await asyncio.create_subprocess_exec(
                *(sys.executable, __file__, str(path), str(server.addresses[0][1]), str(enough))
            )
            assert await receiver.wait() in (-KILL, KILL)
            with scuttleup.open(path) as logs:
                found = list(logs.create_read_stream())
                assert found == [
                    change for peer in LOGS for change in log_of(peer, logs.head.get(peer, 0))
                ]
            here = len(found)
            assert enough <= here < total
        with scuttleup.open(path) as logs:
            async with Peer(logs, connect=server.addresses, live=False) as client:
                assert (await client.wait())[:3] == (0, total - here, {})
            assert logs.head == LOGS


if __name__ == "__main__":
    asyncio.run(receive(*sys.argv[1:]))
