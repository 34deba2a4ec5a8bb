"""How the protocol does among many peers: `python tests/simulate.py [--svg FILE]`.

Up to a thousand peers, each with an entry of its own, replicate over links that are late (one to
three rounds) and get cut: what is under way is then lost, and some rounds later the two begin
anew. A round is what a message takes at least. Everything is drawn from a seed, so a run can be
had again. The peers are the real thing without I/O, in one LevelDB with a prefix each.

A message arrives in two pieces, and a link can be cut between them. When all peers have every
entry and no link is cut any more, they come to rest: nothing goes around for ever.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import log10
from pathlib import Path
from typing import NamedTuple, Protocol

from leveldb import open_leveldb

from scuttleup import Replicated, Scuttleup


@dataclass
class Result:
    rounds: int = 0  # until all peers had all entries
    bytes: int = 0  # sent by all
    handshake_bytes: int = 0  # of these
    sent: int = 0  # changes
    lost: int = 0  # of these, by a cut
    received: int = 0  # of these, by one who did not have them
    cuts: int = 0

    @property
    def known(self) -> int:
        """How many of those sent the receiver already had when they arrived."""
        return self.sent - self.lost - self.received


class Stream(Protocol):
    """What a link needs of a `ReplicationStream`."""

    @property
    def replicated(self) -> Replicated: ...
    def data_to_send(self) -> bytes: ...
    def receive_data(self, data: bytes) -> None: ...
    def close(self) -> None: ...


class Arriving(NamedTuple):
    round: int
    data: bytes
    changes: int  # in `data`


class End(NamedTuple):
    """One peer's end of a link that is up."""

    stream: Stream
    arriving: deque[Arriving]  # in order


class Link:
    """Carries what two streams have for each other. `connect` makes them, if there can be some."""

    def __init__(
        self, connect: Callable[[], Iterable[Stream]], rng: random.Random, total: Result
    ) -> None:
        self.connect = connect
        self.rng = rng
        self.total = total
        self.ends: list[End] = []
        self.up_at = 0  # the round in which it comes back, when it is down

    def step(self, now: int, cut: float) -> None:
        if not self.ends:
            if now >= self.up_at:
                self.ends = [End(stream, deque()) for stream in self.connect()]
        elif self.rng.random() < cut:
            for end in self.ends:
                self.total.lost += sum(arriving.changes for arriving in end.arriving)
            self.close()
            self.total.cuts += 1
            self.up_at = now + self.rng.randint(1, 10)
        for end in self.ends:
            while end.arriving and end.arriving[0].round <= now:
                end.stream.receive_data(end.arriving.popleft().data)
        for sender, receiver in (self.ends, reversed(self.ends)) if self.ends else ():
            before = sender.stream.replicated.sent
            while data := sender.stream.data_to_send():
                at = now + self.rng.randint(1, 3)
                if receiver.arriving:
                    at = max(at, receiver.arriving[-1].round)
                changes = sender.stream.replicated.sent - before
                before += changes
                half = self.rng.randrange(len(data))
                if half:
                    receiver.arriving.append(Arriving(at, data[:half], 0))
                    at += self.rng.randint(0, 1)
                receiver.arriving.append(Arriving(at, data[half:], changes))
                self.total.bytes += len(data)
                self.total.handshake_bytes += len(data) if not changes else 0

    def close(self) -> None:
        for end in self.ends:
            self.total.sent += end.stream.replicated.sent
            self.total.received += end.stream.replicated.received
            end.stream.close()
        self.ends = []


async def drive(
    links: Iterable[Link], total: Result, cut: float, all_agree: Callable[[], bool]
) -> None:
    """Have the links carry bytes until `all_agree`, then, without cuts, until there are none."""
    now = quiet = 0
    while quiet < 20:  # by then each link has come up again
        now, before = now + 1, total.bytes
        for link in links:
            link.step(now, 0 if total.rounds else cut)
        await asyncio.sleep(0)
        if total.rounds:
            quiet = quiet + 1 if total.bytes == before else 0
            assert now < 100 * total.rounds, "something goes around for ever"
        elif all_agree():
            total.rounds = now
    for link in links:
        link.close()


def random_graph(peers: int, rng: random.Random, *, each: int) -> list[tuple[int, int]]:
    """Everybody connects to `each` of those who came before. No peer is left without a link."""
    return [(n, other) for n in range(1, peers) for other in rng.sample(range(n), min(n, each))]


TOPOLOGIES: dict[str, Callable[[int, random.Random], list[tuple[int, int]]]] = {
    "ring": lambda peers, rng: [(n, (n + 1) % peers) for n in range(peers)],
    "star": lambda peers, rng: [(0, n) for n in range(1, peers)],
    "2 random": partial(random_graph, each=2),
    "8 random": partial(random_graph, each=8),
}


def simulate(
    topology: str, peers: int, *, logs_each: int = 1, cut: float = 0.02, seed: int = 1
) -> Result:
    """Run until all agree; `logs_each` logs of one entry begin at every peer."""
    rng = random.Random(f"{topology} {peers} {logs_each} {cut} {seed}")
    with tempfile.TemporaryDirectory() as folder, open_leveldb(Path(folder)) as db:
        everyone = []
        for n in range(peers):
            logs = Scuttleup(db.prefixed_db(b"%06d/" % n), id=f"peer-{n:020}")
            logs.append(b"x" * 100)
            logs.write((f"peer-{n:020}-{k}", 1, b"x" * 100) for k in range(1, logs_each))
            everyone.append(logs)
        goal = {peer: seq for logs in everyone for peer, seq in logs.head.items()}
        behind, total, links = everyone[:], Result(), []
        for one, other in sorted(TOPOLOGIES[topology](peers, rng)):
            pair = everyone[one], everyone[other]
            connect = partial(map, Scuttleup.create_replication_stream, pair)
            links.append(Link(connect, rng, total))

        def all_agree() -> bool:
            behind[:] = [logs for logs in behind if logs.head != goal]
            return not behind

        asyncio.run(drive(links, total, cut, all_agree))
    assert total.received == len(goal) * (peers - 1)
    return total


SIZES = 10, 30, 100, 300, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--svg", metavar="FILE", help="draw the bytes a peer into FILE")
    args = parser.parse_args()
    print("| links | peers | logs | rounds | MB | handshakes | sent/needed | known | lost |")
    print("|---|---|---|---|---|---|---|---|---|")
    curves = {
        topology: [(peers, _row(topology, peers, 1)) for peers in SIZES if peers <= most]
        for topology, most in {"ring": 300, "star": 1000, "2 random": 1000, "8 random": 300}.items()
    }
    for logs_each in (10, 100, 1000):
        _row("2 random", 30, logs_each)
    if args.svg:
        Path(args.svg).write_text(_svg(curves), encoding="utf-8")


def _row(topology: str, peers: int, logs_each: int) -> float:
    """Print a row of the table and return how many bytes were sent for each peer and entry."""
    result = simulate(topology, peers, logs_each=logs_each)
    entries = peers * logs_each
    needed = entries * (peers - 1)
    print(
        f"| {topology} | {peers:,} | {entries:,} | {result.rounds} | {result.bytes / 1e6:,.2f} "
        f"| {result.handshake_bytes / result.bytes:.0%} | {result.sent / needed:.2f} "
        f"| {result.known / result.sent:.0%} | {result.lost / result.sent:.0%} |",
        flush=True,
    )
    return result.bytes / (peers * entries)


COLOURS = "#c33", "#393", "#36c", "#939"


def _svg(curves: dict[str, list[tuple[int, float]]]) -> str:
    """Bytes a peer and entry over the number of peers, both axes logarithmic."""

    def at(peers: float, each: float) -> tuple[float, float]:
        return 60 + (log10(peers) - 1) * 200, 260 - (log10(each) - 2) * 100

    lines = []
    for each in (100, 200, 500, 1000, 2000, 5000, 10000):
        x, y = at(10, each)
        lines.append(f'<path d="M{x} {y:.0f}h400" stroke="#ddd"/>')
        lines.append(f'<text x="{x - 6}" y="{y + 4:.0f}" text-anchor="end">{each}</text>')
    for peers in SIZES:
        x, y = at(peers, 100)
        lines.append(f'<text x="{x:.0f}" y="{y + 18}" text-anchor="middle">{peers}</text>')
    for (topology, points), colour in zip(curves.items(), COLOURS, strict=True):
        path = " ".join(f"{x:.0f},{y:.0f}" for x, y in (at(*point) for point in points))
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = at(*points[-1])
        lines.append(f'<text x="{x + 6:.0f}" y="{y + 4:.0f}" fill="{colour}">{topology}</text>')
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="540" height="310" font-family="sans-serif"'
        ' font-size="12"><rect width="540" height="310" fill="#fff"/>'
        '<text x="60" y="20">bytes for each peer and entry</text>'
        '<text x="260" y="302" text-anchor="middle">peers, with one log each</text>'
        f"{''.join(lines)}</svg>\n"
    )


if __name__ == "__main__":
    main()
