"""What this package costs, as a Markdown table: `python tests/benchmark.py [row ...]`.

Ratios say more than seconds: machines differ, and are busy with other things as well. So raw
plyvel, which is the limit, this package and, where `npm ci` in tests/interop installed it, the
original take turns at the same work, each time in a fresh database, and what counts is the time of
the processor. A ratio is the median of the ratios of all turns, and a figure is the median of our
own. Entries are 100 random bytes. Where two processes replicate, it is the receiver that is timed.
"""

from __future__ import annotations

import asyncio
import json
import math
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext, suppress
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time, thread_time
from typing import Any

import psutil
from leveldb import binding, open_leveldb

import scuttleup
from scuttleup import Peer, Scuttleup, ScuttleupError
from scuttleup.keys import change_keys, log_prefix
from scuttleup.replication.messages import encode_changes, encode_handshake
from scuttleup.signed.signing import FIRST_LINK, Signer

TESTS = Path(__file__).parent
NODE_MODULES = TESTS / "interop" / "node_modules"
SPAWN = multiprocessing.get_context("spawn")
HOST = "127.0.0.1"
MIB = 2**20
NOISE = os.urandom(MIB)
ENTRY = NOISE[:100]


# ---------------------------------------------------------------------------------- the log


def append() -> None:
    @timed(scuttleup.open, 20_000)
    def ours(logs: Scuttleup) -> None:
        for _ in range(20_000):
            logs.append(ENTRY)

    @timed(open_leveldb, 20_000)
    def raw(db: Any) -> None:
        put = db.put
        for key in keys:
            put(key, ENTRY)

    keys = make_keys(20_000)
    figures = compare(9, ours, raw, original("append", 5_000))
    row("`append`, one at a time", *figures, "≥ 0.55 of raw, ≥ 12 times")


def extend() -> None:
    @timed(scuttleup.open, 50_000)
    def ours(logs: Scuttleup) -> None:
        for batch in batches:
            changes = logs.extend(batch)
        assert changes[-1].seq == 50_000

    @timed(open_leveldb, 50_000)
    def raw(db: Any) -> None:
        for keys, batch in zip(keys_by_batch, batches, strict=True):
            with db.write_batch() as write_batch:
                for key, entry in zip(keys, batch, strict=True):
                    write_batch.put(key, entry)

    batches = [make_entries(1_000)] * 50
    all_keys = iter(make_keys(50_000))
    keys_by_batch = [[next(all_keys) for _ in batch] for batch in batches]
    figures = compare(9, ours, raw, original("extend", 50_000))
    row("`extend`, 1,000 at a time", *figures, "≥ 0.70 of raw, ≥ 4 times")


def read() -> None:
    @timed(scuttleup.open, 100_000)
    def ours(logs: Scuttleup) -> None:
        for change in logs.create_read_stream():
            pass
        assert change.seq == 100_000

    @timed(open_leveldb, 100_000)
    def raw(db: Any) -> None:
        for key, value in db.iterator(prefix=b"c"):
            pass

    with new_folder() as filled:
        fill(filled, 100_000)
        figures = compare(9, ours, raw, original("read", 100_000), folder=filled)
    row("reading a snapshot", *figures, "≥ 0.50 of raw, ≥ 4 times")


def open_logs() -> None:
    ours = timed(open_leveldb)(Scuttleup)

    @timed(open_leveldb)
    def scan(db: Any) -> None:
        for key in db.iterator(include_value=False):
            pass

    for count, length, goal, node in (
        (100_000, 1, "≤ 8 key scans", None),  # it takes the original a minute
        (100_000, 10, "≤ 8 key scans", None),
        (10_000, 1, "≥ 70 times", original("open")),
    ):
        with new_folder() as filled:
            fill_logs(filled, "us", count, length)
            seconds, scans, times = compare(5, ours, scan, node, folder=filled)
        work = f"opening {count:,} logs, {length} in each"
        row(work, f"{seconds:.3f} s", f"{1 / scans:.1f} key scans", times, goal)


def signed() -> None:
    @timed(partial(scuttleup.open, signed=True), 5_000)
    def append(logs: Scuttleup) -> None:
        for _ in range(5_000):
            logs.append(ENTRY)

    figures = compare(5, append, None, original("append", 5_000))
    row("signed `append`", *figures, "≥ 1.5 times")
    with new_folder() as source, new_folder() as few:
        fill(source, 100_000, signed=True)
        fill(few, 20_000)
        ours = partial(replicate_in_one, source)
        figures = compare(5, ours, None, original("replicate", 20_000, few))
    work = "replicating 100,000 signed entries, checked on arrival, in one process"
    row(work, *figures, "≥ 20 times")


def followers() -> None:
    """A live entry, from its append to its reading, with 100,000 logs beside one with one log."""

    @timed(scuttleup.open, 50_000)
    def live(logs: Scuttleup) -> None:
        stream = logs.create_read_stream(since=logs.head, live=True)
        for _ in range(50_000):
            logs.append(ENTRY)
            next(stream)

    with new_folder() as one, new_folder() as many:
        fill_logs(many, "us", 100_000, 1)
        turns = [(live(one), live(many)) for _ in range(9)]
    ratio = median(with_many / with_one for with_one, with_many in turns)
    figure = f"{ratio:.2f} times that with one log"
    row("one live entry with 100,000 logs", figure, goal="≤ 1.5 times")


# What append.py and read.py do, for raw plyvel and for the original on Node.
RAW = {"append": 'db.put(b"key", b"hello world")', "read": "for pair in db: print(*pair)"}
ON_NODE = {
    "append": "logs.append('hello world')",
    "read": "logs.createReadStream({valueEncoding: 'utf-8'}).on('data', console.log)",
}


def scripts() -> None:
    def run(*command: str | Path) -> Measure:
        def measure(folder: Path) -> float:
            before = os.times()
            subprocess.check_call(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
            return sum(os.times()[2:4]) - sum(before[2:4])

        measure(folder)  # the first run makes the database, and Python's compiled modules
        return measure

    environment = {**os.environ, "NODE_PATH": str(NODE_MODULES)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as installed, it is compiled
    open_raw = f"import {binding.__name__} as b; db = b.DB('raw.db', create_if_missing=True)\n"
    open_on_node = "var logs = require('scuttleup')(require('level')('node.db'))\n"
    with new_folder() as folder:
        for script in "append", "read":
            (folder / "raw.py").write_text(open_raw + RAW[script])
            (folder / "on_node.js").write_text(open_on_node + ON_NODE[script])
            ours = run(sys.executable, TESTS.parent / f"{script}.py")
            node = run("node", "on_node.js") if original_process() else None
            raw = run(sys.executable, "raw.py")
            seconds, ratio, times = compare(15, ours, raw, node, folder=folder)
            work = f"`python {script}.py`, the whole process"
            row(work, milliseconds(seconds), f"{1 / ratio:.2f} times its time", times)


# ------------------------------------------------------------- replication, over TCP


def replicate() -> None:
    with new_folder() as source, new_folder() as few:
        fill(source, 100_000)
        fill(few, 20_000)  # for the original, which does not get faster with more
        for ours, its_work, where, goal in (
            (replicate_in_one, "replicate", "both peers in one process", "≥ 20 times"),
            (replicate_in_two, "replicateInTwo", "each peer in its own", "≥ 30 times"),
        ):
            figures = compare(5, partial(ours, source), None, original(its_work, 20_000, few))
            row(f"replicating 100,000 entries, {where}", *figures, goal)


def replicate_in_one(source: Path, folder: Path) -> float:
    with scuttleup.open(source) as ours, scuttleup.open(folder) as copy:
        seconds = asyncio.run(replicate_once(ours, copy))
        assert list(copy.head.values()) == [100_000]
    return seconds / 100_000


def replicate_in_two(source: Path, folder: Path) -> float:
    with running_peer(source, "--once") as (_, port), scuttleup.open(folder) as copy:
        start = process_time()
        asyncio.run(fetch(copy, port))
        seconds = process_time() - start
        assert list(copy.head.values()) == [100_000]
    return seconds / 100_000


# ------------------------------------------------- two processes, one database


def sharing() -> None:
    """What each side takes, and how late the owner's event loop is, by the clock, beside a user."""
    many, large = make_entries(1_000), make_entries(500_000)
    with new_folder() as folder, SPAWN.Pool(1) as pool, scuttleup.open(folder, share=True) as logs:
        use = partial(pool.apply, use_shared)
        for work, batch in ("`append`", None), ("`extend`, 1,000 at a time,", many):
            turns = []
            for _ in range(5):
                start = process_time()
                theirs = use((folder, batch, 5_000 if batch is None else 50))
                count = 5_000 if batch is None else 50_000
                turns.append((theirs / count, (process_time() - start) / count))
            for side, seconds in zip(("user", "owner"), zip(*turns, strict=True), strict=True):
                row(f"{work} in a shared database: the {side}", median(seconds))
        late = asyncio.run(lateness(asyncio.to_thread(use, (folder, None, 20_000))))
        figure = milliseconds(sorted(late)[len(late) * 99 // 100])
        row("the owner's loop beside a user who appends, p99", figure, goal="< 6 ms")
        longest = []
        for _ in range(5):
            local = asyncio.run(lateness(asyncio.to_thread(logs.extend, large)))
            shared = asyncio.run(lateness(asyncio.to_thread(use, (folder, large, 1))))
            longest.append((max(shared), max(local)))
        figures = [milliseconds(median(seconds)) for seconds in zip(*longest, strict=True)]
        work = "the owner's loop, longest, while a user extends by 50 MB"
        row(work, figures[0], goal=f"as a local `extend`: {figures[1]}")


def use_shared(folder: Path, batch: list[bytes] | None, times: int) -> float:
    """Append so many entries, or batches, to a database that is shared; seconds that it took."""
    with scuttleup.open(folder) as logs:
        start = process_time()
        for _ in range(times):
            if batch is None:
                logs.append(ENTRY)
            else:
                logs.extend(batch)
        return process_time() - start


async def lateness(work: Awaitable[object]) -> list[float]:
    """How much later than it should the event loop came back, each millisecond during `work`."""
    task, late = asyncio.ensure_future(work), []
    while not task.done():
        start = perf_counter()
        await asyncio.sleep(0.001)
        late.append(perf_counter() - start - 0.001)
    return late


# ----------------------------------------------------- what strangers can cost a peer


def longest_rounds() -> None:
    """The longest round of the event loop, in processor time, for what a stranger may send."""

    async def longest_round(data: bytes) -> float:
        with new_folder() as folder, scuttleup.open(folder, id="us") as logs:
            async with Peer(logs, listen=(HOST, 0)) as peer:
                port = peer.addresses[0][1]
                with SPAWN.Pool(1) as pool:  # the loop's thread has the processor to itself
                    sent = asyncio.to_thread(pool.apply, send, (port, data))
                    return await longest_turn(sent)

    def tiny_logs(seq: int) -> bytes:
        return b"".join(encode_changes(f"{n:06x}", seq, [b"x"]) for n in range(100_000))

    def signed_log(n: int) -> bytes:
        author = Signer(n.to_bytes(32, "big"))
        return encode_changes(author.id, 1, author.seal(1, [b"x"], FIRST_LINK)[0])

    hello = encode_handshake("remote", {}, "sync")
    turns = (encode_changes(peer, seq, [b"x"]) for seq in range(1, 50_001) for peer in "ab")
    digests = {f"{n:032x}": 5 for n in range(300_000)}
    for name, data in {
        "100,000 logs of one entry": hello + tiny_logs(1),
        "100,000 logs whose only entry is number 1000": hello + tiny_logs(1000),
        "20,000 signed logs of one entry": hello + b"".join(map(signed_log, range(20_000))),
        "two logs by turns, 100,000 entries": hello + b"".join(turns),
        "a handshake of 300,000 digests": encode_handshake("remote", digests, "sync"),
    }.items():
        figure = milliseconds(asyncio.run(longest_round(data)))
        row(f"longest round: {name}", figure, goal="< 100 ms")


def idle_connections() -> None:
    """What 1,000 of them take: `Peer` lets one host have 250, so four addresses come."""
    with new_folder() as folder, running_peer(folder) as (peer, port), ExitStack() as opened:
        before = peer.memory_info().rss
        for n in range(1_000):
            source = (f"127.0.0.{n % 4 + 1}", 0)
            remote = opened.enter_context(socket.create_connection((HOST, port), 9, source))
            remote.sendall(encode_handshake(f"remote {n}", {}, "sync"))
            assert remote.recv(1024), "not accepted"
        kb = (peer.memory_info().rss - before) / 1_000 / 1_000
    row("memory of an idle connection, of 1,000", f"{kb:.0f} KB", goal="≤ 25 KB")


def remotes() -> None:
    """The longest stop of the loop while 100 remotes bring 10,000 entries each, by the clock.

    LevelDB makes who writes wait for its own thread, which takes no time of the processor.
    """
    entries, turn, longest = make_entries(10_000), 64 * 1024, 0.0
    with new_folder() as folder, scuttleup.open(folder) as logs:
        brought = []
        for number in range(100):
            peer = f"{number:032x}"
            data = encode_handshake(peer, {peer: 10_000}, "sync")
            data += encode_changes(peer, 1, entries)
            brought.append((logs.create_replication_stream(), data))
        for at in range(0, len(data), turn):
            for stream, data in brought:
                start = perf_counter()
                stream.receive_data(data[at : at + turn])
                longest = max(longest, perf_counter() - start)
    row("longest `receive_data`: 100 remotes", milliseconds(longest), goal="< 100 ms")


# --------------------------------------------------------------------- what they share

Cell = float | str


def row(work: str, figure: Cell, of_raw: Cell = "–", times: Cell = "–", goal: str = "–") -> None:
    """Print what one work costs. A figure that is a number is the seconds of an entry."""
    if isinstance(figure, float):
        figure = f"{1 / figure:,.0f}/s"
    print(f"| {work} | {figure} | {show(of_raw)} | {show(times)} | {goal} |", flush=True)


def show(ratio: Cell) -> str:
    if isinstance(ratio, str):
        return ratio
    return "–" if math.isnan(ratio) else f"{ratio:.2f}" if ratio < 3 else f"{ratio:.1f}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


Work = Callable[[Any], object]
Measure = Callable[[Path], float]  # works in a folder, and returns the seconds that an entry took


def timed(open_it: Callable[[Path], Any], count: int = 1) -> Callable[[Work], Measure]:
    """Makes a `Measure` of what works on `count` entries of what `open_it` opens."""

    def measure(work: Work, folder: Path) -> float:
        with open_it(folder) as opened:
            start = process_time()
            work(opened)
            return (process_time() - start) / count

    return lambda work: partial(measure, work)


def original(work: str, count: int = 1, *source: Path) -> Measure | None:
    """The original, if it is there, at `work` in benchmark.js; it takes its own time."""

    def measure(folder: Path) -> float:
        request = json.dumps([work, folder, count, *source], default=str)
        process.stdin.write(request.encode() + b"\n")
        process.stdin.flush()
        return float(process.stdout.readline()) / count

    process = original_process()
    return measure if process else None


def compare(
    turns: int, *measures: Measure | None, folder: Path | None = None
) -> tuple[float, float, float]:
    """Our seconds; then those of raw LevelDB and of the original, each divided by ours.

    Each of these three `measures` works in `folder`, or else in a fresh one; NaN where one is None.
    """
    results: list[list[float]] = [[] for _ in range(turns)]
    for seconds in results:
        for measure in measures:
            with nullcontext(folder) if folder else new_folder() as where:
                seconds.append(measure(where) if measure else math.nan)
    return (
        median(ours for ours, _, _ in results),
        median(raw / ours for ours, raw, _ in results),
        median(original / ours for ours, _, original in results),
    )


@cache
def original_process() -> Any:
    if not shutil.which("node") or not (NODE_MODULES / "scuttleup").exists():
        return None
    command = ["node", str(TESTS / "interop" / "benchmark.js")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@contextmanager
def new_folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


def make_keys(count: int) -> list[bytes]:
    return list(change_keys(log_prefix("x" * 32), 1, count))


def make_entries(count: int) -> list[bytes]:
    starts = (number * 101 % (len(NOISE) - 100) for number in range(count))
    return [NOISE[start : start + 100] for start in starts]


def fill(folder: Path, count: int, *, signed: bool = False) -> None:
    entries = make_entries(10_000)
    with scuttleup.open(folder, signed=signed) as logs:
        for _ in range(0, count, len(entries)):
            logs.extend(entries)


def fill_logs(folder: Path, id: str, count: int, length: int) -> None:
    with open_leveldb(folder) as db:
        Scuttleup(db, id=id)
        for number in range(count):
            peer = f"{number * 2654435761 % 2**32:032x}"  # as different as random ids
            for key in change_keys(log_prefix(peer), 1, length):
                db.put(key, ENTRY)


@asynccontextmanager
async def serving(logs: Scuttleup) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        with suppress(ScuttleupError):
            await logs.replicate(reader, writer, live=False)

    tasks: list[Any] = []
    server = await asyncio.start_server(serve, HOST, 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.gather(*tasks)


async def fetch(logs: Scuttleup, port: int) -> None:
    reader, writer = await asyncio.open_connection(HOST, port)
    await logs.replicate(reader, writer, live=False)


async def replicate_once(ours: Scuttleup, theirs: Scuttleup) -> float:
    """Seconds from connecting until both have everything and are done."""
    async with serving(ours) as port:
        start = process_time()
        await fetch(theirs, port)
        return process_time() - start


@contextmanager
def running_peer(folder: Path, *options: str) -> Iterator[tuple[psutil.Popen, int]]:
    """`scuttleup replicate` in a process of its own, and its port."""
    command = [sys.executable, "-m", "scuttleup", "replicate", "--db", ".", "--listen", "0"]
    pipes: Any = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with psutil.Popen([*command, *options], cwd=folder, **pipes) as peer:
        port = int(peer.stderr.readline().rpartition(b":")[2])
        threading.Thread(target=peer.stderr.read, daemon=True).start()
        try:
            yield peer, port
        finally:
            peer.terminate()


def send(port: int, data: bytes) -> None:
    """Send it, and wait until the peer has had it."""
    with socket.create_connection((HOST, port)) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(MIB):
            pass


async def longest_turn(work: Awaitable[object]) -> float:
    """The longest turn of the event loop during `work`, in seconds of processor time."""
    times = []
    task = asyncio.ensure_future(work)
    while not task.done():
        times.append(thread_time())
        await asyncio.sleep(0)
    return max(after - before for before, after in pairwise(times))


ROWS = [append, extend, read, open_logs, followers, signed, scripts]
ROWS += [replicate, sharing, longest_rounds, idle_connections, remotes]


def main() -> None:
    rows = {measure.__name__: measure for measure in ROWS}
    names = sys.argv[1:] or list(rows)
    if unknown := [name for name in names if name not in rows]:
        sys.exit(f"no row {unknown[0]!r}: there are {', '.join(rows)}")
    print("| work | figure | of raw plyvel | times the original | goal |")
    print("|---|---|---|---|---|")
    for name in names:
        rows[name]()
    if process := original_process():
        process.communicate()


if __name__ == "__main__":
    main()
