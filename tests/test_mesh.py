"""Many peers over connections that break, and one that is killed: nothing is lost on the way."""

from __future__ import annotations

import asyncio
import random
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scuttleup import Change, ConnectionLost, Scuttleup
from scuttleup.database import binding as plyvel
from scuttleup.keys import CHANGES, CHANGES_END

if TYPE_CHECKING:
    import pytest  # the receiver runs this file, too, and need not load it

# --- A mesh ---------------------------------------------------------------------------------------

PEERS = 20
EXTRA_LINKS = 15  # besides the ring that keeps all together
ENTRIES = 40  # of each peer
CUTS = 150


class Mesh:
    """Twenty peers that listen, and links between them that are made again whenever they break."""

    def __init__(self, peers: list[Scuttleup], seed: int) -> None:
        self.choose = random.Random(seed)
        self.peers = peers
        self.open: dict[int, StreamWriter] = {}  # by link
        self.made = 0
        self.running = 0
        self.closing = False
        self.wrong: list[BaseException] = []  # what left `replicate` and is no ConnectionLost

    async def replicate(self, logs: Scuttleup, reader: StreamReader, writer: StreamWriter) -> None:
        self.running += 1
        try:
            await logs.replicate(reader, writer)
        except ConnectionLost:
            pass
        except Exception as error:
            self.wrong.append(error)
        finally:
            self.running -= 1

    async def keep_linked(self, link: int, logs: Scuttleup, port: int) -> None:
        while not self.closing:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            self.open[link] = writer
            self.made += 1
            await self.replicate(logs, reader, writer)
            del self.open[link]

    async def append(self, logs: Scuttleup, seed: int) -> None:
        choose = random.Random(seed)
        while logs.head.get(logs.id, 0) < ENTRIES:
            # Large ones, too: a link is then cut in the middle of a frame.
            size = choose.choice([0, 10, 100, 100, 1_000, 1_000, 1_000, 20_000])
            logs.extend([choose.randbytes(size) for _ in range(choose.randint(1, 4))])
            await asyncio.sleep(choose.random() * 0.05)

    async def cut(self) -> None:
        for _ in range(CUTS):
            await asyncio.sleep(self.choose.random() * 0.02)
            if self.open:
                self.open[self.choose.choice(sorted(self.open))].transport.abort()

    async def run(self) -> None:
        """All append at once, links break meanwhile; return when all have all."""
        servers = [
            await asyncio.start_server(partial(self.replicate, logs), "127.0.0.1", 0)
            for logs in self.peers
        ]
        ports = [server.sockets[0].getsockname()[1] for server in servers]
        ends = [(i, (i + 1) % PEERS) for i in range(PEERS)]
        ends += [self.choose.sample(range(PEERS), 2) for _ in range(EXTRA_LINKS)]  # type: ignore[misc]
        links = [
            asyncio.create_task(self.keep_linked(link, self.peers[one], ports[other]))
            for link, (one, other) in enumerate(ends)
        ]
        appending = [self.append(logs, seed) for seed, logs in enumerate(self.peers)]
        await asyncio.gather(self.cut(), *appending)

        whole = {logs.id: logs.head[logs.id] for logs in self.peers}
        await asyncio.gather(*(arrival_of(whole, logs) for logs in self.peers))

        self.closing = True
        while self.running or not all(link.done() for link in links):
            for writer in self.open.values():
                writer.transport.abort()
            await asyncio.sleep(0.01)
        for server in servers:
            server.close()
        await asyncio.gather(*links)


async def arrival_of(whole: dict[str, int], logs: Scuttleup) -> None:
    with logs.create_read_stream(live=True, value_encoding="binary") as changes:
        async for _ in changes:
            if logs.head == whole:
                return


def dump(db: Any) -> list[tuple[bytes, bytes]]:
    return list(db.iterator(start=CHANGES, stop=CHANGES_END))


def test_all_logs_of_a_mesh_whose_links_break_end_up_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dbs = [plyvel.DB(str(tmp_path / f"{i}.db"), create_if_missing=True) for i in range(PEERS)]
    mesh = Mesh([Scuttleup(db, id=f"peer {i}") for i, db in enumerate(dbs)], seed=3)

    asyncio.run(asyncio.wait_for(mesh.run(), 60))

    assert mesh.wrong == []
    assert caplog.messages == []
    assert mesh.made > PEERS + EXTRA_LINKS + CUTS / 2, "the links were hardly cut"
    whole = dump(dbs[0])
    assert len(whole) >= PEERS * ENTRIES
    for db in dbs:
        assert dump(db) == whole
        db.close()


# --- A kill ---------------------------------------------------------------------------------------

KILLS = 8
LOGS = ["one", "three", "two"]
AHEAD = 4_000  # entries that the source writes at most before the receiver says that it has them


def entry(peer: str, seq: int) -> bytes:
    return b"%s %d %s" % (peer.encode(), seq, b"x" * (seq % 200))


def receive(path: str, port: int) -> None:
    """Be the receiver: print the number of entries that are here whenever there are more."""

    async def main() -> None:
        logs = Scuttleup(plyvel.DB(path, create_if_missing=True), id="receiver")
        stream = await asyncio.open_connection("127.0.0.1", port)
        replication = asyncio.create_task(logs.replicate(*stream, mode="pull"))
        with logs.create_read_stream(live=True) as changes:
            for number in count(1):
                await anext(changes)
                if number % 100 == 0:
                    print(number, flush=True)
        await replication

    asyncio.run(main())


class Source:
    """Writes on and on, as long as there is a receiver that gets it."""

    def __init__(self, logs: Scuttleup) -> None:
        self.logs = logs
        self.written = 0

    def write(self) -> None:
        """A few hundred more entries, of all logs in turn."""
        for peer in LOGS:
            first = self.logs.head.get(peer, 0) + 1
            seqs = range(first, first + 100)
            self.written += self.logs.write(Change(peer, seq, entry(peer, seq)) for seq in seqs)

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        with suppress(ConnectionLost):  # it is killed
            await self.logs.replicate(reader, writer)

    async def feed(self, path: Path, port: int, enough: Callable[[int], bool]) -> int:
        """Run a receiver, SIGKILL it when `enough` of what it has; return that."""
        receiver = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, str(path), str(port)), stdout=asyncio.subprocess.PIPE
        )
        assert receiver.stdout
        said = 0
        while not enough(said):
            while self.written < said + AHEAD:
                self.write()
                await asyncio.sleep(0)
            line = await receiver.stdout.readline()
            assert line, "the receiver ended by itself"
            said = int(line)
        self.write()  # it is in the middle of receiving
        receiver.kill()
        said = max([said, *(int(line) for line in (await receiver.stdout.read()).split())])
        assert await receiver.wait() != 0
        return said


def check(path: Path, known: int) -> int:
    """Open what the receiver left: no gap, nothing wrong; return how many entries it has."""
    db = plyvel.DB(str(path), paranoid_checks=True)
    logs = Scuttleup(db)
    head = logs.head
    changes = list(logs.create_read_stream())
    assert changes == [
        Change(peer, seq, entry(peer, seq))
        for peer in LOGS
        for seq in range(1, head.get(peer, 0) + 1)
    ]
    assert len(changes) >= known, "what it said that it has is gone"
    db.close()
    return len(changes)


async def kill_and_catch_up(source: Source, path: Path) -> None:
    choose = random.Random(6)
    server = await asyncio.start_server(source.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    here = 0
    for _ in range(KILLS):
        goal = here + choose.randrange(100, 3_000)
        said = await source.feed(path, port, lambda said, goal=goal: said >= goal)  # type: ignore[misc]
        here = check(path, said)
        assert here < source.written, "it was not in the middle"

    db = plyvel.DB(str(path), paranoid_checks=True)
    logs = Scuttleup(db)
    stream = await asyncio.open_connection("127.0.0.1", port)
    assert await logs.replicate(*stream, live=False) == (0, source.written - here, {})
    logs.close()
    db.close()
    assert check(path, source.written) == source.written
    server.close()
    source.logs.close()


def test_a_killed_receiver_has_no_gap_and_catches_up(tmp_path: Path) -> None:
    db = plyvel.DB(str(tmp_path / "source.db"), create_if_missing=True)
    source = Source(Scuttleup(db, id="source"))

    asyncio.run(asyncio.wait_for(kill_and_catch_up(source, tmp_path / "receiver.db"), 60))

    db.close()


if __name__ == "__main__":
    receive(sys.argv[1], int(sys.argv[2]))
